"""What a replica holds and does, on Ray Serve."""
