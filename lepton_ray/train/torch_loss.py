"""What a step makes smaller, and what is told beside it, for each task. Legend: N rows, C outputs of a row, P pairs of rows."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lepton_ray.spec.data import Task


def sums(task: Task, outputs_NC: Tensor, target: Tensor) -> list[Tensor]:
    """Return sums over the rows in the order of ``progress.METRICS``: the loss, which has a gradient, then the rest.

    Args:
        task: What the model is for.
        outputs_NC: What it gives.
        target: Class indices (N,) or weights of classes (N, C); which labels hold (N, C), each 0 to 1; scaled numbers (N,) or
            (N, C); of ranking what puts rows in order (N,), where rows 0 and 1, 2 and 3 and so on are pairs; of anomaly
            detection anything with N rows.
    """
    return _SUMS[task](outputs_NC, target)


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


def _ranking(scores_N1: Tensor, grade_N: Tensor) -> list[Tensor]:
    """Cross entropy of which row of a pair has the greater grade, and how many pairs are in order (RankNet, Burges et al. 2005)."""
    score_P2, grade_P2 = scores_N1.reshape(-1, 2), grade_N.reshape(-1, 2)
    lead_P = (score_P2[:, 0] - score_P2[:, 1]) * torch.sign(grade_P2[:, 0] - grade_P2[:, 1])
    return [-functional.logsigmoid(lead_P).sum(), (lead_P > 0).sum().to(lead_P.dtype)]


def _anomaly_detection(scores_N1: Tensor, _: Tensor) -> list[Tensor]:
    return [scores_N1.sum()]


_SUMS: dict[Task, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "ranking": _ranking,
    "anomaly_detection": _anomaly_detection,
}
