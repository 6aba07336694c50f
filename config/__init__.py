"""What every other folder needs: the checks of settings, addresses, ids, languages and file descriptors."""
