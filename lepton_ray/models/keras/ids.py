"""What families on ids of categories share. Legend: N rows, D columns, W width of a vector, C outputs of a row."""

from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras

_START = 0.1  # standard deviation of fresh vectors, as libFM has it: products then start near 0


class _Start(keras.initializers.RandomNormal):  # type: ignore[misc]
    """Small first vectors; those that stand for categories not seen in training start at 0.

    No training row may have those: then they stay, and add nothing to a score.
    """

    def __init__(self, given: ModelInput) -> None:
        super().__init__(stddev=_START)
        self._unseen = np.cumsum(given.column_ids) - 1

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        is_seen = np.ones((shape[0], 1), np.float32)
        is_seen[self._unseen] = 0
        return super().__call__(shape, dtype) * is_seen


def embed(ids_ND: Any, given: ModelInput, width: int) -> Any:
    """Return vectors (N, D, W) of ids."""
    return keras.layers.Embedding(sum(given.column_ids), width, _Start(given), name="embedding")(ids_ND)


def add_biases(ids_ND: Any, given: ModelInput, num_outputs: int) -> Any:
    """Return the sum (N, C) of a bias of the whole and one of each id, each for each output; they start at 0."""
    of_ids_NDC = keras.layers.Embedding(sum(given.column_ids), num_outputs, "zeros", name="id_biases")(ids_ND)
    return Shift(name="bias")(keras.ops.sum(of_ids_NDC, axis=1))


class Shift(keras.layers.Layer):  # type: ignore[misc]
    """Adds a number for each output."""

    def build(self, input_shape: Any) -> None:
        """Make the numbers, which start at 0."""
        self.bias_C = self.add_weight(shape=input_shape[-1:], initializer="zeros", name="bias")

    def call(self, values_NC: Any) -> Any:
        """Return (N, C)."""
        return values_NC + self.bias_C


class Scale(keras.layers.Layer):  # type: ignore[misc]
    """Multiplies by a number for each output."""

    def build(self, input_shape: Any) -> None:
        """Make the numbers, which start at 1."""
        self.scale_C = self.add_weight(shape=input_shape[-1:], initializer="ones", name="scale")

    def call(self, values_NC: Any) -> Any:
        """Return (N, C)."""
        return values_NC * self.scale_C
