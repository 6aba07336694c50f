"""MongoDB: the connection and its errors, shared writes, e-mails owed, dead letters and changes."""
