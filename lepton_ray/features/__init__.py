"""Features: statistics fitted once on the training split, compiled to an ONNX graph for training and serving alike."""
