"""Metrics and baselines, by scikit-learn. Legend: N rows, C classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]
from sklearn import metrics as sk
from sklearn.linear_model import LinearRegression, LogisticRegression

from lepton_ray.artifacts.kinds import ModelInput
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


def compute_errors(y_N: NDArray[np.float64], value_N: NDArray[np.float64]) -> dict[str, float]:
    """Return what a prediction of numbers is off by, in the label's units, and the share of the variance that it explains."""
    return {
        "rmse": float(sk.root_mean_squared_error(y_N, value_N)),
        "mae": float(sk.mean_absolute_error(y_N, value_N)),
        "median_absolute_error": float(sk.median_absolute_error(y_N, value_N)),
        "r2": float(sk.r2_score(y_N, value_N)) if len(y_N) > 1 else float("nan"),
    }


def _normalise(probabilities_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """In float64, with rows that add up to 1: float32 misses it by more than scikit-learn takes."""
    p = probabilities_NC.astype(np.float64)
    normalised: NDArray[np.float64] = p / p.sum(axis=1, keepdims=True)
    return normalised


def _roc_auc(y_N: NDArray[np.int64], p_NC: NDArray[np.float64]) -> float:
    scores = [sk.roc_auc_score(y_N == c, p_NC[:, c]) for c in range(p_NC.shape[1]) if 0 < (y_N == c).sum() < len(y_N)]
    return float(np.mean(scores)) if scores else float("nan")


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
    """Return the values of model inputs as one matrix (N, columns): numbers flattened, token ids as counts, sparse then."""
    parts = [
        arrays[i.name].reshape(len(arrays[i.name]), -1)
        if i.num_ids is None
        else _count_ids(arrays[i.name], i.num_ids, i.padding_id)
        for i in inputs
    ]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts, axis=1)
    return parts[0] if len(parts) == 1 else sparse.hstack(parts, "csr")


def _count_ids(ids_NL: NDArray[np.int64], num_ids: int, padding_id: int) -> Any:
    rows, length = ids_NL.shape
    is_token = (ids_NL != padding_id).ravel().astype(np.float32)
    starts = np.arange(rows + 1) * length
    counts = sparse.csr_array((is_token, ids_NL.flatten(), starts), (rows, num_ids))  # a copy: it is changed in place
    counts.sum_duplicates()
    return counts


def baseline_probabilities(
    x_train: Any, y_train: NDArray[np.int64], x_test: Any, num_classes: int
) -> NDArray[np.float64]:
    """Return what scikit-learn's logistic regression, fitted on the same training rows, says of the test rows."""
    model = LogisticRegression(max_iter=2000).fit(x_train, y_train)
    result = np.zeros((x_test.shape[0], num_classes))
    result[:, model.classes_] = model.predict_proba(x_test)
    return result


def baseline_values(x_train: Any, y_train: NDArray[np.float64], x_test: Any) -> NDArray[np.float64]:
    """Return what scikit-learn's linear regression, fitted on the same training rows, says of the test rows."""
    values: NDArray[np.float64] = LinearRegression().fit(x_train, y_train).predict(x_test)
    return values


def missed_gates(metrics: Mapping[str, float], gates: Mapping[str, Gate]) -> dict[str, str]:
    """Return a sentence for each gate that a metric does not keep; a metric that is NaN keeps none."""
    missed = {}
    for name, gate in gates.items():
        value = metrics[name]
        if gate.min is not None and not value >= gate.min:
            missed[name] = f"evaluate.gates.{name} must be at least {gate.min:g}, got {value:.4f}"
        elif gate.max is not None and not value <= gate.max:
            missed[name] = f"evaluate.gates.{name} must be at most {gate.max:g}, got {value:.4f}"
    return missed
