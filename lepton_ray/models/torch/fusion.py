"""Several inputs together. Legend: N rows, E width of an encoding, C classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import FusionModel


class Fusion(nn.Module):
    """A model for each input that gives a vector in place of logits, and dense layers on the vectors side by side."""

    def __init__(self, spec: FusionModel, inputs: Sequence[ModelInput], num_outputs: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(build_model(spec.encoders[i.name], [i], spec.encoding_width) for i in inputs)
        layers: list[nn.Module] = [nn.ReLU()]
        width = len(inputs) * spec.encoding_width
        for hidden in spec.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(spec.dropout)]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, num_outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits (N, C)."""
        encodings_NE = [encoder(values) for encoder, values in zip(self.encoders, inputs, strict=True)]
        logits_NC: Tensor = self.head(torch.cat(encodings_NE, 1))
        return logits_NC


def build(spec: FusionModel, inputs: Sequence[ModelInput], num_outputs: int) -> Fusion:
    """Build the module with fresh weights."""
    return Fusion(spec, inputs, num_outputs)
