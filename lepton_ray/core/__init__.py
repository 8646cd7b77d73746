"""What every layer needs and no engine: errors, settings, optional dependencies, files, progress, metric names."""
