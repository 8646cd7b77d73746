"""Convolutional network. Images come with channels first, as for every framework; TensorFlow convolves them last on CPUs.

As in torch, the ReLU comes after the pooling: the same function and gradient, to the bit, on a quarter of the values.
"""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.tensorflow import keras
from lepton_ray.spec.model import CnnModel

_CHANNELS_LAST = (2, 3, 1)


def build(spec: CnnModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build 3x3 convolutions with 2x2 max-pooling and ReLU, a dense layer, dropout, and the classes."""
    (image,) = inputs
    layers = keras.layers
    stack = [keras.Input(image.shape, name="features"), layers.Permute(_CHANNELS_LAST, name="channels_last")]
    for place, channels in enumerate(spec.channels):
        stack.append(layers.Conv2D(channels, 3, padding=spec.padding, name=f"convolution_{place}"))
        stack.append(layers.MaxPooling2D(2, name=f"pool_{place}"))
        stack.append(layers.ReLU(name=f"relu_{place}"))
    stack.append(layers.Flatten(name="flat"))
    if spec.hidden is not None:
        stack.append(layers.Dense(spec.hidden, activation="relu", name="hidden"))
    head = [layers.Dropout(spec.dropout, name="dropout"), layers.Dense(num_outputs, name="logits")]
    return keras.Sequential([*stack, *head], name="cnn")
