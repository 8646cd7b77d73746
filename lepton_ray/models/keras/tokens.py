"""What families of token ids and of steps share. Legend: N rows, L tokens or steps, S series, W width.

The padding of token ids may stand anywhere and changes nothing. Each step of a series counts.
"""

from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.layers import dense


def embed(values: Any, given: ModelInput, width: int) -> tuple[Any, Any]:
    """Return vectors (N, L, W) of token ids (N, L) by a table, or of steps (N, L, S) by a dense layer.

    Those of tokens come first. Beside them: which of them are tokens or steps (N, L).
    """
    if given.num_ids is None:
        return dense(values, width, "embedding"), keras.ops.ones_like(values[:, :, 0], dtype="bool")
    is_token_NL = keras.ops.not_equal(values, given.padding_id)
    ids_NL = Take(name="tokens_first")(values, TokensFirst(name="places")(is_token_NL))
    table = keras.layers.Embedding(given.num_ids, width, keras.initializers.RandomNormal(stddev=1.0), name="embedding")
    return table(ids_NL), keras.ops.not_equal(ids_NL, given.padding_id)


class TokensFirst(keras.layers.Layer):  # type: ignore[misc]
    """The places of a row's tokens, whose order stays, and then those of its padding.

    Numbers are made within the layer: tf2onnx takes those that a graph finds ready-made for inputs that are missing.
    """

    def call(self, is_token_NL: Any) -> Any:
        """Return places (N, L)."""
        ops = keras.ops
        length = is_token_NL.shape[1]
        return ops.argsort(ops.arange(length) + ops.where(is_token_NL, 0, length), axis=1)


class Backwards(keras.layers.Layer):  # type: ignore[misc]
    """The places of a row's tokens from last to first; padding stays behind them."""

    def call(self, is_token_NL: Any) -> Any:
        """Return places (N, L)."""
        ops = keras.ops
        place_L = ops.arange(is_token_NL.shape[1])
        last_N1 = ops.sum(ops.cast(is_token_NL, "int32"), axis=1, keepdims=True) - 1
        return ops.where(is_token_NL, last_N1 - place_L, place_L)


class Take(keras.layers.Layer):  # type: ignore[misc]
    """Puts what each row has in another order. Keras' own ``take_along_axis`` repeats the places for each number."""

    def call(self, values: Any, places_NL: Any) -> Any:
        """Return ``values`` (N, L, ...) of a row in the order of its places."""
        ops = keras.ops
        first_N1 = ops.arange(ops.shape(values)[0])[:, None] * values.shape[1]
        flat = ops.reshape(values, (-1, *values.shape[2:]))
        return ops.take(flat, places_NL + first_N1, axis=0)


def mean_of_tokens(values_NLW: Any, is_token_NL: Any) -> Any:
    """Return the mean (N, W) over the tokens of a row; zeros for a row without any."""
    ops = keras.ops
    is_token_NL1 = ops.cast(is_token_NL, values_NLW.dtype)[:, :, None]
    return ops.sum(values_NLW * is_token_NL1, axis=1) / ops.maximum(ops.sum(is_token_NL1, axis=1), 1)
