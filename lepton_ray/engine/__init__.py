"""The small door to Ray: connect, ask for resources, translate its errors."""
