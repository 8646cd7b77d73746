"""Families in Keras: ``build(spec, inputs, num_outputs)`` returns a model from its one input to logits."""
