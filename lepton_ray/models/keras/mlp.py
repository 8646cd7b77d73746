"""Multi-layer perceptron. The layers have names, so that checkpoints do not depend on what was built before."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.tensorflow import keras
from lepton_ray.spec.model import MlpModel


def build(spec: MlpModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build dense layers with ReLU and dropout between; no hidden layer makes it logistic regression."""
    (given,) = inputs
    layers = keras.layers
    stack = [keras.Input(given.shape, name="features"), layers.Flatten(name="flat")]
    for place, width in enumerate(spec.hidden):
        stack.append(layers.Dense(width, activation="relu", name=f"hidden_{place}"))
        stack.append(layers.Dropout(spec.dropout, name=f"dropout_{place}"))
    return keras.Sequential([*stack, layers.Dense(num_outputs, name="logits")], name="mlp")
