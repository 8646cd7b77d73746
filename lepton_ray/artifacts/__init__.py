"""What stages hand on: typed artifacts, the store that keeps them, and the sealed model package."""
