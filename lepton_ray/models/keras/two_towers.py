"""A network for a user's columns and one for an item's. Legend: N rows, D columns, W width of a vector, C outputs of a row."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.ids import Scale, add_biases, embed
from lepton_ray.models.keras.layers import dense, entry
from lepton_ray.spec.model import TwoTowersModel

_SQUARED_NORM = 1e-24  # the least, as torch's ``normalize`` has it


def build(spec: TwoTowersModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build biases and the product of what two towers give."""
    (given,) = inputs
    ops, ids_ND = keras.ops, entry(given)
    vectors_NDW = embed(ids_ND, given, spec.embedding_width)
    sides = {"user": spec.user, "item": spec.item}
    user_NCW, item_NCW = (
        _tower(vectors_NDW, spec, name, [given.columns.index(column) for column in columns], num_outputs)
        for name, columns in sides.items()
    )
    if spec.similarity == "cosine":
        user_NCW, item_NCW = _normalize(user_NCW), _normalize(item_NCW)
    product_NC = ops.sum(user_NCW * item_NCW, axis=2)
    if spec.similarity == "cosine":
        product_NC = Scale(name="scale")(product_NC)
    return keras.Model(ids_ND, add_biases(ids_ND, given, num_outputs) + product_NC, name="two_towers")


def _tower(vectors_NDW: Any, spec: TwoTowersModel, name: str, places: Sequence[int], num_outputs: int) -> Any:
    """Return a vector for each output (N, C, W), of the vectors of some columns side by side through dense layers."""
    x = keras.ops.concatenate([vectors_NDW[:, place] for place in places], axis=1)
    for place, width in enumerate(spec.hidden):
        x = dense(x, width, f"{name}_hidden_{place}", "relu")
        x = keras.layers.Dropout(spec.dropout, name=f"{name}_dropout_{place}")(x)
    encodings = dense(x, num_outputs * spec.encoding_width, f"{name}_encoding")
    return keras.ops.reshape(encodings, (-1, num_outputs, spec.encoding_width))


def _normalize(vectors_NCW: Any) -> Any:
    ops = keras.ops
    squared = ops.sum(ops.square(vectors_NCW), axis=2, keepdims=True)
    return vectors_NCW / ops.sqrt(ops.maximum(squared, _SQUARED_NORM))
