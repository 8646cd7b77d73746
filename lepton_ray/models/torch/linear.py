"""Logistic regression. Legend: N rows, C classes."""

import math
from collections.abc import Sequence

from torch import nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.spec.model import LinearModel


def build(spec: LinearModel, inputs: Sequence[ModelInput], num_outputs: int) -> nn.Module:
    """Build the module with fresh weights: logits (N, C) of a table or image (N, ...)."""
    (values,) = inputs
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(values.shape), num_outputs))
