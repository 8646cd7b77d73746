"""Families in Keras: ``build(spec, input_shape, num_classes)`` returns a model from model input to logits."""
