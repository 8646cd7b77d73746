"""The metrics of requests."""
