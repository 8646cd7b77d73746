"""Multi-layer perceptron. Legend: N rows, C classes."""

import math

from torch import Tensor, nn

from lepton_ray.spec.model import MlpModel


class Mlp(nn.Module):
    """Linear layers with ReLU and dropout between; no hidden layer makes it logistic regression."""

    def __init__(self, spec: MlpModel, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for hidden in spec.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(spec.dropout)]
            width = hidden
        layers.append(nn.Linear(width, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of features (N, *input_shape)."""
        logits_NC: Tensor = self.layers(features)
        return logits_NC


def build(spec: MlpModel, input_shape: tuple[int, ...], num_classes: int) -> Mlp:
    """Build the module with fresh weights."""
    return Mlp(spec, input_shape, num_classes)
