"""What the command line does beside running specs, one command or a part of one per file: scoring, drift, snapshots, rollouts, starter specs."""
