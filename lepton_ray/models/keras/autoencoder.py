"""Autoencoder for anomalies. Legend: N rows, D values of a row."""

import math
from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.layers import dense, entry
from lepton_ray.spec.model import AutoencoderModel


def build(spec: AutoencoderModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build dense layers with ReLU down to the code, which is linear, and up again; gives how far off a row comes back (N, 1)."""
    (given,) = inputs
    values = entry(given)
    values_ND = keras.layers.Flatten(name="flat")(values)
    there = keras.layers.Dropout(spec.dropout, name="noise")(values_ND)
    sides = (
        ("encoder", [*spec.hidden, spec.code_width]),
        ("decoder", [*reversed(spec.hidden), math.prod(given.shape)]),
    )
    for side, widths in sides:
        for place, width in enumerate(widths):
            there = dense(there, width, f"{side}_{place}", None if place == len(widths) - 1 else "relu")
    error_N1 = keras.ops.mean(keras.ops.square(there - values_ND), axis=1, keepdims=True)
    return keras.Model(values, error_N1, name="autoencoder")
