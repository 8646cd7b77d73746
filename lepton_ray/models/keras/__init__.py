"""Families in Keras, a module each, the same function of its weights as the family of its name in ``models/torch``.

``build(spec, inputs, num_outputs)`` returns a functional model that is called with its input (N, ...), or with the list of its
inputs where they are several, and gives logits (N, num_outputs). A row's logits depend on that row alone. Layers have names,
so that the paths of weights in a checkpoint do not depend on what was built before. A user's own family (``kind: custom``) is
built and called in the same way.
"""
