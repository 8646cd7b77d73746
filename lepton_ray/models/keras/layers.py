"""Layers with the first weights that torch's have: a family starts from the same distributions in both frameworks.

torch draws the weights of a layer that adds up ``fan_in`` numbers, and its biases, evenly from +-1 / sqrt(fan_in). Keras' own
defaults are wider (Glorot and Bengio, 2010) and without biases.
"""

import math
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras


def entry(given: ModelInput) -> Any:
    """Return the placeholder of an input."""
    return keras.Input(given.shape, dtype="float32" if given.num_ids is None else "int", name=given.name)


def uniform(fan_in: int) -> Any:
    """Return what draws the first values of one variable."""
    bound = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)


def dense(x: Any, units: int, name: str, activation: str | None = None) -> Any:
    """Return ``units`` sums of the last axis of ``x``."""
    fan_in = x.shape[-1]
    layer = keras.layers.Dense(
        units, activation, kernel_initializer=uniform(fan_in), bias_initializer=uniform(fan_in), name=name
    )
    return layer(x)


def convolve(x_NHWK: Any, channels: int, size: int, name: str, **settings: Any) -> Any:
    """Return ``channels`` convolutions of ``size`` x ``size`` pixels."""
    fan_in = size * size * x_NHWK.shape[-1]
    layer = keras.layers.Conv2D(
        channels, size, kernel_initializer=uniform(fan_in), bias_initializer=uniform(fan_in), name=name, **settings
    )
    return layer(x_NHWK)


def channels_last(image_NKHW: Any) -> Any:
    """Return the image as it is convolved on CPUs; it comes with channels first, as for every framework."""
    return keras.layers.Permute((2, 3, 1), name="channels_last")(image_NKHW)
