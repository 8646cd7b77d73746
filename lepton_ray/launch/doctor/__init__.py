"""Is a cluster fit to work? ``facts`` are gathered on each node (``on_ray``), ``checks`` judge them, and say what mends it."""
