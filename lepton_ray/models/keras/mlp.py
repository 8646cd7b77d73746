"""Multi-layer perceptron."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.layers import dense, entry
from lepton_ray.spec.model import MlpModel


def build(spec: MlpModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build dense layers with ReLU and dropout between; no hidden layer makes it logistic regression."""
    (given,) = inputs
    values = entry(given)
    x = keras.layers.Flatten(name="flat")(values)
    for place, width in enumerate(spec.hidden):
        x = dense(x, width, f"hidden_{place}", "relu")
        x = keras.layers.Dropout(spec.dropout, name=f"dropout_{place}")(x)
    return keras.Model(values, dense(x, num_outputs, "logits"), name="mlp")
