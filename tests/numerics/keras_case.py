"""Twins of the families in both frameworks: built from one spec, with equal weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, Framework, LinearModel, MlpModel

MLP = MlpModel(kind="mlp", hidden=(6, 5))
CNN = CnnModel(kind="cnn", channels=(4, 3), hidden=7)
CASES: tuple[tuple[Any, tuple[int, ...]], ...] = (
    (MLP, (3,)),
    (MlpModel(kind="mlp", hidden=()), (3,)),
    (LinearModel(kind="linear"), (3,)),
    (CnnModel(kind="cnn", channels=(4, 3), padding="valid", hidden=None), (2, 12, 11)),
    (MLP, (2, 3, 4)),
    (CNN, (2, 8, 9)),
)
NUM_CLASSES = 3
FRAMEWORKS: tuple[Framework, Framework] = ("torch", "keras")


def inputs_of(shape: tuple[int, ...]) -> list[ModelInput]:
    return [ModelInput(name="x", shape=shape)]


def twins(spec: Any, shape: tuple[int, ...], seed: int = 0) -> tuple[Any, Any]:
    """Return a torch module and a Keras model with its weights."""
    torch.manual_seed(seed)
    torch_model, keras_model = (build_model(spec, inputs_of(shape), NUM_CLASSES, name) for name in FRAMEWORKS)
    copy_weights(torch_model, keras_model, spec, shape)
    return torch_model, keras_model


def copy_weights(torch_model: Any, keras_model: Any, spec: Any, shape: tuple[int, ...]) -> None:
    """Give a Keras model the weights of a torch module."""
    values = [value.detach().numpy() for value in torch_model.state_dict().values()]
    keras_model.set_weights(to_keras(values, spec, shape))


def to_keras(values: Sequence[np.ndarray], spec: Any, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return weights, or their gradients, in torch's order as Keras lays them out.

    torch multiplies by (out, in) and flattens an image by channel; Keras multiplies by (in, out) and flattens by place.
    """
    result = []
    for value in values:
        if value.ndim == 4:
            result.append(value.transpose(2, 3, 1, 0))
        elif value.ndim == 2:
            result.append(value.T)
        else:
            result.append(value)
    if isinstance(spec, CnnModel):
        first = 2 * len(spec.channels)  # the dense layer behind the convolutions
        sides = list(shape[1:])
        for _ in spec.channels:
            sides = [spec.next_side(side) for side in sides]
        image = (spec.channels[-1], *sides)
        result[first] = result[first].reshape(*image, -1).transpose(1, 2, 0, 3).reshape(result[first].shape)
    return [np.ascontiguousarray(value) for value in result]
