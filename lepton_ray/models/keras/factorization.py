"""Factorisation machine of second order. Legend: N rows, D columns, W width of a vector, C outputs of a row."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.ids import add_biases, embed
from lepton_ray.models.keras.layers import entry
from lepton_ray.spec.model import FactorizationModel


def build(spec: FactorizationModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build biases and products of each two of a row's vectors (Rendle 2010, equation 1); each output has vectors of its own."""
    (given,) = inputs
    ops, ids_ND = keras.ops, entry(given)
    vectors = embed(ids_ND, given, num_outputs * spec.embedding_width)
    vectors_NDCW = ops.reshape(vectors, (-1, *given.shape, num_outputs, spec.embedding_width))
    # The products of all pairs are half of what the square of the sum has more than the sum of the squares.
    more_NCW = ops.square(ops.sum(vectors_NDCW, axis=1)) - ops.sum(ops.square(vectors_NDCW), axis=1)
    logits_NC = add_biases(ids_ND, given, num_outputs) + ops.sum(more_NCW, axis=2) / 2
    return keras.Model(ids_ND, logits_NC, name="factorization")
