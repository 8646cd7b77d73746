"""A spec as a job of a cluster: checked here (``request``), packed (``package``), sent and followed (``on_ray``)."""
