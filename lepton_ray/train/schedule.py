"""The learning rate of each step: from its place among all steps alone, so that there is no state to resume."""

import math

from lepton_ray.spec.model import TrainSpec

MOMENTUM = 0.9
"""Of SGD, in both frameworks."""


def learning_rate(spec: TrainSpec, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of ``num_steps`` in the whole training."""
    warmup_steps = spec.warmup_fraction * num_steps
    if step + 1 < warmup_steps:
        return spec.lr * (step + 1) / warmup_steps
    # a little less than 0 where the warm-up ends within a step
    done = (step - warmup_steps) / (num_steps - warmup_steps)
    if spec.schedule == "linear":
        return spec.lr * min(1.0, 1 - done)
    if spec.schedule == "cosine":
        return spec.lr * (1 + math.cos(math.pi * max(0.0, done))) / 2
    return spec.lr
