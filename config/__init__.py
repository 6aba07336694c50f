"""What every other folder needs: the checks of settings, addresses, languages and file descriptors."""
