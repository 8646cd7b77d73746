"""Convolutional network. As in torch, the ReLU comes after the pooling: the same function and gradient, on a quarter of the values."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.layers import channels_last, convolve, dense, entry
from lepton_ray.spec.model import CnnModel


def build(spec: CnnModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build 3x3 convolutions with 2x2 max-pooling and ReLU, a dense layer, dropout, and the classes."""
    (given,) = inputs
    image = entry(given)
    x = channels_last(image)
    for place, channels in enumerate(spec.channels):
        x = convolve(x, channels, 3, f"convolution_{place}", padding=spec.padding)
        x = keras.layers.MaxPooling2D(2, name=f"pool_{place}")(x)
        x = keras.layers.ReLU(name=f"relu_{place}")(x)
    x = keras.layers.Flatten(name="flat")(x)
    if spec.hidden is not None:
        x = dense(x, spec.hidden, "hidden", "relu")
    x = keras.layers.Dropout(spec.dropout, name="dropout")(x)
    return keras.Model(image, dense(x, num_outputs, "logits"), name="cnn")
