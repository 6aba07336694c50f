"""The configuration: what its values must be, and reading them from the environment."""
