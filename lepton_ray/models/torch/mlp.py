"""Multi-layer perceptron. Legend: N rows, C classes."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.spec.model import MlpModel


class Mlp(nn.Module):
    """Linear layers with ReLU and dropout between; no hidden layer makes it logistic regression."""

    def __init__(self, spec: MlpModel, width: int, num_outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for hidden in spec.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(spec.dropout)]
            width = hidden
        layers.append(nn.Linear(width, num_outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        """Return logits (N, C) of a table or image (N, ...)."""
        logits_NC: Tensor = self.layers(values)
        return logits_NC


def build(spec: MlpModel, inputs: Sequence[ModelInput], num_outputs: int) -> Mlp:
    """Build the module with fresh weights."""
    (values,) = inputs
    return Mlp(spec, math.prod(values.shape), num_outputs)
