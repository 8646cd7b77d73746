"""Training: a loop that knows nothing of Ray, its checkpoints, and the Ray Train driver."""
