"""Transformer encoder on token ids or steps. Legend: N rows, L tokens or steps, W width, T heads, D width of a head."""

import math
from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.layers import dense, entry, uniform
from lepton_ray.models.keras.tokens import embed, mean_of_tokens
from lepton_ray.spec.model import TransformerModel

_EPSILON = 1e-5  # as torch; Keras takes 1e-3
_HIDDEN = -1e9  # a score whose share of attention is 0


class _Positions(keras.layers.Layer):  # type: ignore[misc]
    """Adds a learnt vector to each place."""

    def build(self, input_shape: Any) -> None:
        """Make the vectors."""
        self.positions_LW = self.add_weight(input_shape[1:], keras.initializers.RandomNormal(stddev=1.0), name="table")

    def call(self, x_NLW: Any) -> Any:
        """Return the sum."""
        return x_NLW + self.positions_LW


def build(spec: TransformerModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build embeddings and learnt positions, layers that normalise before attention (Xiong et al. 2020), the mean, the classes."""
    (given,) = inputs
    values = entry(given)
    x_NLW, is_token_NL = embed(values, given, spec.width)
    is_hidden_NL = keras.ops.logical_not(is_token_NL)
    x_NLW = _drop(_Positions(name="positions")(x_NLW), spec, "dropout")
    for layer in range(spec.layers):
        x_NLW = _add_layer(x_NLW, is_hidden_NL, spec, f"layer_{layer}")
    mean_NW = mean_of_tokens(_norm(x_NLW, "norm"), is_token_NL)
    return keras.Model(values, dense(mean_NW, num_outputs, "logits"), name="transformer")


def _add_layer(x_NLW: Any, is_hidden_NL: Any, spec: TransformerModel, name: str) -> Any:
    attended = _attend(_norm(x_NLW, f"{name}_attention_norm"), is_hidden_NL, spec, f"{name}_attention")
    x_NLW = x_NLW + _drop(attended, spec, f"{name}_attention_dropout")
    fed = dense(_norm(x_NLW, f"{name}_feed_norm"), spec.feed_forward_width, f"{name}_feed_in", "relu")
    fed = dense(_drop(fed, spec, f"{name}_feed_in_dropout"), spec.width, f"{name}_feed_out")
    return x_NLW + _drop(fed, spec, f"{name}_feed_out_dropout")


def _attend(x_NLW: Any, is_hidden_NL: Any, spec: TransformerModel, name: str) -> Any:
    """Return what each token gathers from the tokens of its row. Where all are padding it is finite, and counts nothing."""
    ops = keras.ops
    length, head_width = x_NLW.shape[1], spec.width // spec.heads
    parts = keras.layers.Dense(3 * spec.width, name=f"{name}_in")(x_NLW)  # as torch's: Glorot, no bias at first
    parts = ops.reshape(parts, (-1, length, 3, spec.heads, head_width))
    query_NTLD, key_NTLD, value_NTLD = (ops.transpose(parts[:, :, part], (0, 2, 1, 3)) for part in range(3))
    scores_NTLL = ops.matmul(query_NTLD, ops.transpose(key_NTLD, (0, 1, 3, 2))) / math.sqrt(head_width)
    scores_NTLL = ops.where(is_hidden_NL[:, None, None, :], _HIDDEN, scores_NTLL)
    shares_NTLL = _drop(ops.softmax(scores_NTLL), spec, f"{name}_shares_dropout")
    heads_NLTD = ops.transpose(ops.matmul(shares_NTLL, value_NTLD), (0, 2, 1, 3))
    out = keras.layers.Dense(spec.width, kernel_initializer=uniform(spec.width), name=f"{name}_out")
    return out(ops.reshape(heads_NLTD, (-1, length, spec.width)))


def _norm(x_NLW: Any, name: str) -> Any:
    return keras.layers.LayerNormalization(epsilon=_EPSILON, name=name)(x_NLW)


def _drop(x: Any, spec: TransformerModel, name: str) -> Any:
    return keras.layers.Dropout(spec.dropout, name=name)(x)
