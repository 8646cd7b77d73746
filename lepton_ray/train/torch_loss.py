"""What a step makes smaller, and what is told beside it, for each task. Legend: N rows, C outputs of a row."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lepton_ray.spec.data import Task


def sums(task: Task, outputs_NC: Tensor, target: Tensor) -> Tensor:
    """Return sums over the rows in the order of ``progress.METRICS``: the loss, which has a gradient, then the rest.

    Args:
        task: What the model is for.
        outputs_NC: What it gives.
        target: Class indices (N,) or weights of classes (N, C); which labels hold (N, C), each 0 to 1; scaled numbers (N,) or
            (N, C); of anomaly detection anything with N rows.
    """
    return torch.stack(_SUMS[task](outputs_NC, target))


def _classification(logits_NC: Tensor, target: Tensor) -> list[Tensor]:
    """Cross entropy, and how many classes are right, or the weight of those that are where a row has several."""
    best_N = logits_NC.argmax(1)
    right = (best_N == target) if target.ndim == 1 else target.gather(1, best_N[:, None])
    loss = functional.cross_entropy(logits_NC, target, reduction="sum")
    return [loss, right.sum().to(loss.dtype)]


def _multi_label(logits_NC: Tensor, target_NC: Tensor) -> list[Tensor]:
    """Binary cross entropy and the share of right decisions, means over the labels."""
    loss = functional.binary_cross_entropy_with_logits(logits_NC, target_NC, reduction="none")
    right = (logits_NC >= 0) == (target_NC >= 1 / 2)
    return [loss.mean(1).sum(), right.to(loss.dtype).mean(1).sum()]


def _regression(numbers_NC: Tensor, target: Tensor) -> list[Tensor]:
    """Squared and absolute error, means over the numbers of a row."""
    error_NC = numbers_NC - target.reshape(numbers_NC.shape)
    return [error_NC.square().mean(1).sum(), error_NC.abs().mean(1).sum()]


def _anomaly_detection(scores_N1: Tensor, _: Tensor) -> list[Tensor]:
    return [scores_N1.sum()]


_SUMS: dict[Task, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "anomaly_detection": _anomaly_detection,
}
