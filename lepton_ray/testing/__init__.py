"""Small real data sets and helpers that tests, demos and users share."""
