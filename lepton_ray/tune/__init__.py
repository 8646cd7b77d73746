"""Search through Ray Tune."""
