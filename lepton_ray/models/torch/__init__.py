"""Families in PyTorch, a module each.

``build(spec, inputs, num_outputs)`` returns a module that is called with one tensor (N, ...) for each of the inputs, in their
order, and gives logits (N, num_outputs). A row's logits depend on that row alone, so that any number of workers takes the same
step. A user's own family (``kind: custom``) is built and called in the same way.
"""
