"""Convolutional network. Images come with channels first, as for every framework; TensorFlow convolves them last on CPUs."""

from typing import Any

from lepton_ray.engine.tensorflow import keras
from lepton_ray.spec.model import CnnModel

_CHANNELS_LAST = (2, 3, 1)


def build(spec: CnnModel, input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Build 3x3 convolutions with ReLU and 2x2 max-pooling, a dense layer, dropout, and the classes."""
    layers = keras.layers
    stack = [keras.Input(input_shape, name="features"), layers.Permute(_CHANNELS_LAST, name="channels_last")]
    for place, channels in enumerate(spec.channels):
        stack.append(layers.Conv2D(channels, 3, padding="same", activation="relu", name=f"convolution_{place}"))
        stack.append(layers.MaxPooling2D(2, name=f"pool_{place}"))
    head = [
        layers.Flatten(name="flat"),
        layers.Dense(spec.hidden, activation="relu", name="hidden"),
        layers.Dropout(spec.dropout, name="dropout"),
        layers.Dense(num_classes, name="logits"),
    ]
    return keras.Sequential([*stack, *head], name="cnn")
