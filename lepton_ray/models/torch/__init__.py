"""Families in PyTorch: ``build(spec, input_shape, num_classes)`` returns a module from model input to logits."""
