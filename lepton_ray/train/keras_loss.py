"""What a step makes smaller, and what is told beside it, for each task: ``torch_loss`` in Keras. Legend: N rows, C outputs, P pairs."""

from collections.abc import Callable
from typing import Any

from lepton_ray.engine.keras import keras
from lepton_ray.spec.data import Task

Tensor = Any
ops = keras.ops


def sums(task: Task, outputs_NC: Tensor, target: Tensor, weight: Tensor = 1.0) -> list[Tensor]:
    """Return float32 sums over the rows as ``torch_loss.sums`` does, each row counted ``weight`` times: a number, or (N,).

    Both rows of a pair have the same weight.
    """
    if task == "ranking" and len(getattr(weight, "shape", ())):
        weight = ops.reshape(weight, (-1, 2))[:, 0]
    return [ops.sum(values_N * weight) for values_N in _OF_ROWS[task](outputs_NC, target)]


def _classification(logits_NC: Tensor, target: Tensor) -> list[Tensor]:
    """The gradient of TensorFlow's own cross entropy for (N, C) holds only for weights that sum to 1."""
    best_N = ops.argmax(logits_NC, axis=1)
    if len(target.shape) == 1:
        loss_N = ops.sparse_categorical_crossentropy(target, logits_NC, from_logits=True)
        return [loss_N, ops.cast(ops.equal(best_N, ops.cast(target, best_N.dtype)), "float32")]
    loss_N = -ops.sum(target * ops.log_softmax(logits_NC), axis=1)
    return [loss_N, ops.take_along_axis(target, best_N[:, None], axis=1)[:, 0]]


def _multi_label(logits_NC: Tensor, target_NC: Tensor) -> list[Tensor]:
    loss_NC = ops.binary_crossentropy(target_NC, logits_NC, from_logits=True)
    right_NC = ops.cast(ops.equal(logits_NC >= 0, target_NC >= 1 / 2), "float32")
    return [ops.mean(values, axis=1) for values in (loss_NC, right_NC)]


def _regression(numbers_NC: Tensor, target: Tensor) -> list[Tensor]:
    error_NC = numbers_NC - ops.reshape(target, ops.shape(numbers_NC))
    return [ops.mean(values, axis=1) for values in (ops.square(error_NC), ops.abs(error_NC))]


def _ranking(scores_N1: Tensor, grade_N: Tensor) -> list[Tensor]:
    score_P2, grade_P2 = ops.reshape(scores_N1, (-1, 2)), ops.reshape(grade_N, (-1, 2))
    lead_P = (score_P2[:, 0] - score_P2[:, 1]) * ops.sign(grade_P2[:, 0] - grade_P2[:, 1])
    return [ops.softplus(-lead_P), ops.cast(lead_P > 0, "float32")]


def _anomaly_detection(scores_N1: Tensor, _: Tensor) -> list[Tensor]:
    return [scores_N1[:, 0]]


_OF_ROWS: dict[Task, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "ranking": _ranking,
    "anomaly_detection": _anomaly_detection,
}
