"""How Ray Tune starts a search."""
