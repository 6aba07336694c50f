"""What runs the service and watches it: logs, metrics, workers and the local run."""
