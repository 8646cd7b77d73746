"""What a step makes smaller, and what is told beside it, for each task: ``torch_loss`` in TensorFlow. Legend: N rows, C outputs."""

from collections.abc import Callable
from typing import Any

from lepton_ray.engine.tensorflow import tf
from lepton_ray.spec.data import Task

Tensor = Any


def sums(task: Task, outputs_NC: Tensor, target: Tensor) -> list[Tensor]:
    """Return float32 sums over the rows as ``torch_loss.sums`` does."""
    return _SUMS[task](outputs_NC, target)


def _classification(logits_NC: Tensor, target: Tensor) -> list[Tensor]:
    """The gradient of TensorFlow's own cross entropy for (N, C) holds only for weights that sum to 1."""
    best_N = tf.argmax(logits_NC, axis=1)
    if target.shape.rank == 1:
        loss_N = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits_NC)
        return [tf.reduce_sum(loss_N), tf.reduce_sum(tf.cast(best_N == target, tf.float32))]
    loss_N = -tf.reduce_sum(target * tf.nn.log_softmax(logits_NC), axis=1)
    return [tf.reduce_sum(loss_N), tf.reduce_sum(tf.gather(target, best_N, axis=1, batch_dims=1))]


def _multi_label(logits_NC: Tensor, target_NC: Tensor) -> list[Tensor]:
    loss_NC = tf.nn.sigmoid_cross_entropy_with_logits(labels=target_NC, logits=logits_NC)
    right_NC = tf.cast((logits_NC >= 0) == (target_NC >= 1 / 2), tf.float32)
    return [tf.reduce_sum(tf.reduce_mean(values, axis=1)) for values in (loss_NC, right_NC)]


def _regression(numbers_NC: Tensor, target: Tensor) -> list[Tensor]:
    error_NC = numbers_NC - tf.reshape(target, tf.shape(numbers_NC))
    return [tf.reduce_sum(tf.reduce_mean(values, axis=1)) for values in (tf.square(error_NC), tf.abs(error_NC))]


def _anomaly_detection(scores_N1: Tensor, _: Tensor) -> list[Tensor]:
    return [tf.reduce_sum(scores_N1)]


_SUMS: dict[Task, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "anomaly_detection": _anomaly_detection,
}
