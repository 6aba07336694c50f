"""Measurements of the service, compared with what limits it."""
