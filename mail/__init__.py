"""E-mail: addresses, templates and messages, what a server's replies mean, and the worker that delivers."""
