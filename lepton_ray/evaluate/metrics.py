"""Metrics, by scikit-learn. Legend: N rows, C classes or outputs of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn import metrics as sk

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.evaluate.page import plain
from lepton_ray.spec.release import Gate


@dataclass(frozen=True)
class Calibration:
    """Reliability of the predicted class's probability, by equally wide bins that hold rows."""

    confidence: list[float]
    accuracy: list[float]
    rows: list[int]
    expected_error: float
    """Mean distance of the two, weighted by rows (Guo et al. 2017, arXiv:1706.04599)."""


def compute_metrics(y_N: NDArray[np.int64], probabilities_NC: NDArray[np.floating], num_bins: int) -> dict[str, float]:
    """Return accuracy, precision, recall, F1, ROC AUC, log loss and expected calibration error.

    Precision, recall, F1 and ROC AUC (one against the rest) are means over the classes; a class without rows in
    ``y_N`` is left out of the ROC AUC.
    """
    p = _normalise(probabilities_NC)
    predicted = p.argmax(1)
    labels = np.arange(p.shape[1])
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        y_N, predicted, labels=labels, average="macro", zero_division=0.0
    )
    return {
        "accuracy": float(sk.accuracy_score(y_N, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": _roc_auc(y_N, p),
        "log_loss": float(sk.log_loss(y_N, p, labels=labels)) if len(labels) > 1 else 0.0,
        "expected_calibration_error": calibrate(y_N, probabilities_NC, num_bins).expected_error,
    }


def compute_label_metrics(y_NC: NDArray[np.floating], probabilities_NC: NDArray[np.floating]) -> dict[str, float]:
    """Return how well probabilities of labels, of which a row may have several, agree with those that hold (0 or 1).

    ``label_accuracy`` is the share of right decisions at one half, ``exact_match`` that of rows with no wrong one. Precision,
    recall, F1, ROC AUC and average precision are means over the labels; one that no row or every row has is left out of the
    last two. ``log_loss`` is the mean binary cross entropy.
    """
    is_true, p = y_NC.astype(bool), probabilities_NC.astype(np.float64)
    is_given = p >= 1 / 2
    precision, recall, f1, _ = sk.precision_recall_fscore_support(is_true, is_given, average="macro", zero_division=0.0)
    mixed = [c for c in range(p.shape[1]) if 0 < is_true[:, c].sum() < len(p)]
    tiny = np.finfo(np.float64).eps
    right = np.clip(np.where(is_true, p, 1 - p), tiny, 1)
    return {
        "label_accuracy": float((is_true == is_given).mean()),
        "exact_match": float((is_true == is_given).all(axis=1).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": mean([sk.roc_auc_score(is_true[:, c], p[:, c]) for c in mixed]),
        "average_precision": mean([sk.average_precision_score(is_true[:, c], p[:, c]) for c in mixed]),
        "log_loss": float(-np.log(right).mean()),
    }


def f1_by_label(y_NC: NDArray[np.floating], probabilities_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return F1 (C,) of each label at one half."""
    f1_C: NDArray[np.float64] = sk.f1_score(
        y_NC.astype(bool), probabilities_NC >= 1 / 2, average=None, zero_division=0.0
    )
    return f1_C


def compute_anomaly_metrics(
    is_odd_N: NDArray[np.bool_] | None, score_N: NDArray[np.floating], is_flagged_N: NDArray[np.bool_]
) -> dict[str, float]:
    """Return how well scores tell anomalies from normal rows; without knowing which are, the share that is flagged alone."""
    flagged = {"flagged_fraction": float(is_flagged_N.mean())}
    if is_odd_N is None:
        return flagged
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        is_odd_N, is_flagged_N, average="binary", zero_division=0.0
    )
    is_mixed = 0 < is_odd_N.sum() < len(is_odd_N)
    return {
        "roc_auc": float(sk.roc_auc_score(is_odd_N, score_N)) if is_mixed else float("nan"),
        "average_precision": float(sk.average_precision_score(is_odd_N, score_N)) if is_mixed else float("nan"),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        **flagged,
    }


def compute_errors(y: NDArray[np.float64], numbers: NDArray[np.float64]) -> dict[str, float]:
    """Return what predicted numbers are off by, in the label's units, and the share of the variance that they explain.

    Of series (N, C), all numbers count alike; R2 is the mean over the steps.
    """
    return {
        "rmse": float(np.sqrt(sk.mean_squared_error(y, numbers))),
        "mae": float(sk.mean_absolute_error(y, numbers)),
        "median_absolute_error": float(sk.median_absolute_error(y.ravel(), numbers.ravel())),
        "r2": float(sk.r2_score(y, numbers)) if len(y) > 1 else float("nan"),
    }


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of none."""
    return float(np.mean(values)) if values else float("nan")


def _normalise(probabilities_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """In float64, with rows that add up to 1: float32 misses it by more than scikit-learn takes."""
    p = probabilities_NC.astype(np.float64)
    normalised: NDArray[np.float64] = p / p.sum(axis=1, keepdims=True)
    return normalised


def _roc_auc(y_N: NDArray[np.int64], p_NC: NDArray[np.float64]) -> float:
    mixed = (c for c in range(p_NC.shape[1]) if 0 < (y_N == c).sum() < len(y_N))
    return mean([sk.roc_auc_score(y_N == c, p_NC[:, c]) for c in mixed])


def calibrate(y_N: NDArray[np.int64], probabilities_NC: NDArray[np.floating], num_bins: int) -> Calibration:
    """Return the reliability curve."""
    p = _normalise(probabilities_NC)
    confidence = p.max(axis=1)
    is_right = p.argmax(1) == y_N
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    used = np.unique(bins)
    means = [float(confidence[bins == b].mean()) for b in used]
    accuracies = [float(is_right[bins == b].mean()) for b in used]
    rows = [int((bins == b).sum()) for b in used]
    error = float(np.average(np.abs(np.subtract(means, accuracies)), weights=rows))
    return Calibration(means, accuracies, rows, error)


def confusion(y_N: NDArray[np.int64], probabilities_NC: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return counts, true class by predicted class."""
    matrix: NDArray[np.int64] = sk.confusion_matrix(
        y_N, probabilities_NC.argmax(1), labels=np.arange(probabilities_NC.shape[1])
    )
    return matrix


def to_matrix(inputs: Sequence[ModelInput], arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the values of model inputs as one matrix (N, columns): numbers flattened, ids as counts, sparse then.

    Ids of categories, one of each column in a row, are so one-hot.
    """
    parts = [
        arrays[i.name].reshape(len(arrays[i.name]), -1)
        if i.num_ids is None
        else _count_ids(arrays[i.name], i.num_ids, i.padding_id if i.kind == "tokens" else None)
        for i in inputs
    ]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts, axis=1)
    return parts[0] if len(parts) == 1 else sparse.hstack(parts, "csr")


def _count_ids(ids_NL: NDArray[np.int64], num_ids: int, padding_id: int | None) -> Any:
    rows, length = ids_NL.shape
    is_counted = np.ones(ids_NL.size, np.float32)
    if padding_id is not None:
        is_counted[ids_NL.ravel() == padding_id] = 0
    starts = np.arange(rows + 1) * length
    counts = sparse.csr_array((is_counted, ids_NL.flatten(), starts), (rows, num_ids))  # a copy: it is changed in place
    counts.sum_duplicates()
    return counts


def missed_gates(metrics: Mapping[str, float], gates: Mapping[str, Gate]) -> dict[str, str]:
    """Return a sentence for each gate that a metric does not keep; a metric that is NaN keeps none."""
    missed = {}
    for name, gate in gates.items():
        value = metrics[name]
        if gate.min is not None and not value >= gate.min:
            missed[name] = f"evaluate.gates.{name} must be at least {gate.min:g}, got {_beside(value, gate.min)}"
        elif gate.max is not None and not value <= gate.max:
            missed[name] = f"evaluate.gates.{name} must be at most {gate.max:g}, got {_beside(value, gate.max)}"
    return missed


def _beside(value: float, bound: float) -> str:
    """Return the value so that it does not read as the bound that it misses."""
    shown = plain(value)
    return repr(value) if shown == plain(bound) else shown
