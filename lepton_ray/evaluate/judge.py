"""How each task is judged: what its answers are measured by, drawn as and compared with. Legend: N rows, C outputs of a row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LinearRegression, LogisticRegression

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.evaluate import metrics, plots
from lepton_ray.evaluate.by_class import class_table
from lepton_ray.spec.data import Task
from lepton_ray.spec.release import EvaluateSpec

Array = NDArray[Any]
_SPARSE_FRACTION = 0.1  # of values that are not 0; up to it a fit on sparse rows takes half the time at most


class Judge(NamedTuple):
    """What belongs to a task."""

    measure: Callable[[Array, Feeds, Target, EvaluateSpec], dict[str, float]]
    """From what is true of N rows and what was answered to ``spec.release.METRICS`` of the task."""
    draw: Callable[[Array, Feeds, Target, EvaluateSpec, str], list[str]]
    """To SVG and tables; the last is the label's name."""
    baseline_name: str
    fit_baseline: Callable[[Any, Array, Target], "Answer"]
    """From the matrix and the labels of training rows to scikit-learn's model of them."""


Answer = Callable[[Any], Feeds]
"""From a matrix (N, columns) to what is answered for its rows."""


def _measure_classes(y_N: Array, answers: Feeds, _: Target, spec: EvaluateSpec) -> dict[str, float]:
    return metrics.compute_metrics(y_N, answers["probabilities"], spec.calibration_bins)


def _draw_classes(y_N: Array, answers: Feeds, target: Target, spec: EvaluateSpec, _: str) -> list[str]:
    p_NC = answers["probabilities"]
    calibration = metrics.calibrate(y_N, p_NC, spec.calibration_bins)
    confusion = metrics.confusion(y_N, p_NC)
    return [
        plots.plot_confusion(confusion, target.classes),
        plots.plot_calibration(calibration),
        class_table(confusion, target.classes),
    ]


def _fit_classes(x_train: Any, y_N: Array, target: Target) -> Answer:
    known = np.unique(y_N)  # a sample of many rows may have none of a rare class
    model = LogisticRegression(max_iter=2000).fit(_to_sparse(x_train), y_N) if len(known) > 1 else None

    def answer(x: Any) -> Feeds:
        p_NC = np.zeros((x.shape[0], len(target.classes)))
        p_NC[:, known] = 1.0 if model is None else model.predict_proba(x)
        return {"probabilities": p_NC}

    return answer


def _to_sparse(x: Any) -> Any:
    """Return rows that are mostly zeros, as the words of short texts are, as a sparse matrix; others as they are."""
    is_mostly_zero = isinstance(x, np.ndarray) and np.count_nonzero(x) <= _SPARSE_FRACTION * x.size
    return sparse.csr_array(x) if is_mostly_zero else x


def _measure_labels(y_NC: Array, answers: Feeds, _: Target, __: EvaluateSpec) -> dict[str, float]:
    return metrics.compute_label_metrics(y_NC, answers["probabilities"])


def _draw_labels(y_NC: Array, answers: Feeds, target: Target, _: EvaluateSpec, __: str) -> list[str]:
    return [plots.plot_labels(metrics.f1_by_label(y_NC, answers["probabilities"]), y_NC.mean(axis=0), target.classes)]


def _fit_labels(x_train: Any, y_NC: Array, _: Target) -> Answer:
    """A logistic regression for each label; one that no row or every row has is answered with its share."""
    shares = y_NC.mean(axis=0)
    learned = np.flatnonzero((y_NC.min(axis=0) < 1) & (y_NC.max(axis=0) > 0))
    x_train = _to_sparse(x_train)
    models = {label: LogisticRegression(max_iter=2000).fit(x_train, y_NC[:, label]) for label in learned}

    def answer(x: Any) -> Feeds:
        p_NC = np.tile(shares, (x.shape[0], 1))
        for label, model in models.items():
            p_NC[:, label] = model.predict_proba(x)[:, 1]
        return {"probabilities": p_NC}

    return answer


def _measure_numbers(y: Array, answers: Feeds, target: Target, _: EvaluateSpec) -> dict[str, float]:
    return metrics.compute_errors(y, answers[target.output])


def _draw_numbers(y: Array, answers: Feeds, target: Target, _: EvaluateSpec, label: str) -> list[str]:
    numbers = answers[target.output]
    figures = [plots.plot_values(y.ravel(), numbers.ravel(), label), plots.plot_errors(y.ravel(), numbers.ravel())]
    if target.num_values is not None:
        figures.append(plots.plot_error_by_step(np.abs(numbers - y).mean(axis=0), label))
    return figures


def _fit_numbers(x_train: Any, y: Array, target: Target) -> Answer:
    model = LinearRegression().fit(x_train, y)
    return lambda x: {target.output: model.predict(x)}


def _measure_lists(_: Array, __: Feeds, ___: Target, ____: EvaluateSpec) -> dict[str, float]:
    """Nothing: what a score says is said within lists alone (``ranking.measure_ranking``)."""
    return {}


def _draw_lists(_: Array, __: Feeds, ___: Target, ____: EvaluateSpec, _____: str) -> list[str]:
    return []


def _measure_anomalies(y_N: Array, answers: Feeds, target: Target, _: EvaluateSpec) -> dict[str, float]:
    is_odd = ~target.is_normal(y_N) if target.normal_class is not None else None
    return metrics.compute_anomaly_metrics(is_odd, answers["score"], answers["is_anomaly"])


def _draw_anomalies(y_N: Array, answers: Feeds, target: Target, _: EvaluateSpec, __: str) -> list[str]:
    return [plots.plot_scores(answers["score"], target.is_normal(y_N), target.threshold)]


def _fit_anomalies(x_train: Any, y_N: Array, target: Target) -> Answer:
    """An isolation forest (Liu et al. 2008) on the normal rows; as many of them are flagged as the model flags by its threshold."""
    rows = x_train[np.flatnonzero(target.is_normal(y_N))]
    forest = IsolationForest(random_state=0).fit(rows)
    threshold = np.quantile(-forest.score_samples(rows), target.quantile)

    def answer(x: Any) -> Feeds:
        score_N = -forest.score_samples(x)
        return {"score": score_N, "is_anomaly": score_N > threshold}

    return answer


JUDGES: dict[Task, Judge] = {
    "classification": Judge(_measure_classes, _draw_classes, "logistic regression", _fit_classes),
    "multi_label": Judge(_measure_labels, _draw_labels, "logistic regressions", _fit_labels),
    "regression": Judge(_measure_numbers, _draw_numbers, "linear regression", _fit_numbers),
    "ranking": Judge(_measure_lists, _draw_lists, "linear regression", _fit_numbers),
    "anomaly_detection": Judge(_measure_anomalies, _draw_anomalies, "isolation forest", _fit_anomalies),
}
