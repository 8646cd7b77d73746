"""Training on rows that stay in files: their order, how they are read ahead, and the ``Source`` that batches take them from."""
