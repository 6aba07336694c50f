"""What every other folder needs: what settings may be, ids, addresses, file descriptors, tasks in the background."""
