"""Autoencoder for anomalies. Legend: N rows, D values of a row."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.spec.model import AutoencoderModel


class Autoencoder(nn.Module):
    """Dense layers with ReLU down to the code, which is linear, and up again; gives how far off a row comes back."""

    def __init__(self, spec: AutoencoderModel, width: int) -> None:
        super().__init__()
        self.noise = nn.Dropout(spec.dropout)
        self.encoder = _stack([width, *spec.hidden, spec.code_width])
        self.decoder = _stack([spec.code_width, *reversed(spec.hidden), width])

    def forward(self, values: Tensor) -> Tensor:
        """Return the mean squared error (N, 1) of rows (N, ...)."""
        values_ND = torch.flatten(values, 1)
        again_ND = self.decoder(self.encoder(self.noise(values_ND)))
        error_N1: Tensor = (again_ND - values_ND).square().mean(1, keepdim=True)
        return error_N1


def _stack(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for given, made in itertools.pairwise(widths):
        layers += [nn.Linear(given, made), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def build(spec: AutoencoderModel, inputs: Sequence[ModelInput], num_outputs: int) -> Autoencoder:
    """Build the module with fresh weights; ``num_outputs`` is 1, the score."""
    (values,) = inputs
    return Autoencoder(spec, math.prod(values.shape))
