"""Which flat features stay: by variance, by correlation, by what they tell about the label."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_ray.core.errors import DataError
from lepton_ray.spec.features import BestFeatures, SelectFeatures

_NUM_TREES = 100
_MAX_ROWS = 20_000
"""Rows that the tests on the label look at: those of the least keys."""

Matrix = NDArray[np.float32]


def select_features(
    features_NF: Matrix, is_binary: Sequence[bool], labels_N: NDArray[np.int64], spec: SelectFeatures, seed: int
) -> list[int]:
    """Return the positions of the features that stay.

    Args:
        features_NF: Rows in an order that does not depend on how they came; the first ones are a uniform sample of all.
        is_binary: Of each feature whether it is 0 or 1.
        labels_N: Class index of each row; empty without a label.
        spec: The tests.
        seed: Of the tests that draw at random.

    Raises:
        DataError: If none is left.
    """
    kept = np.arange(features_NF.shape[1])
    variance = features_NF.var(axis=0, dtype=np.float64)
    if spec.min_variance is not None:
        kept = kept[variance > spec.min_variance]
    if spec.max_correlation is not None:
        kept = kept[_uncorrelated(features_NF[:, kept], variance[kept], spec.max_correlation)]
    if spec.best is not None and len(kept):
        chosen, labels = features_NF[:_MAX_ROWS, kept], labels_N[:_MAX_ROWS]
        scores = _score(spec.best, chosen, np.asarray(is_binary)[kept], labels, seed)
        ranked = np.lexsort((kept, -scores))
        kept = np.sort(kept[ranked[: spec.best.num_features]])
    if len(kept) == 0:
        raise DataError("features.select must leave a feature, got none. Lower min_variance")
    return [int(place) for place in kept]


def _uncorrelated(features_NF: Matrix, variance_F: NDArray[np.float64], most: float) -> NDArray[np.bool_]:
    """Mark the features that correlate with no earlier marked one."""
    deviation = np.sqrt(variance_F)
    centred = features_NF - features_NF.mean(axis=0, dtype=np.float64)
    covariance_FF = centred.T @ centred / max(len(centred), 1)
    scale_FF = np.outer(deviation, deviation)
    correlation_FF = np.abs(np.divide(covariance_FF, scale_FF, out=np.zeros_like(covariance_FF), where=scale_FF > 0))
    is_kept = np.zeros(len(variance_F), bool)
    for place, row in enumerate(correlation_FF):
        is_kept[place] = not (row[:place][is_kept[:place]] > most).any()
    return is_kept


def _score(
    spec: BestFeatures, features_NF: Matrix, is_binary: NDArray[np.bool_], labels_N: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    if len(np.unique(labels_N)) < 2:  # noqa: PLR2004  one class tells nothing
        return np.zeros(features_NF.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that stop early: the order of the weights is what counts
        if spec.by == "mutual_information":
            return _mutual_information(features_NF, is_binary, labels_N, seed)
        return _logistic(features_NF, labels_N) if spec.by == "logistic" else _trees(features_NF, labels_N, seed)


def _mutual_information(
    features_NF: Matrix, is_binary: NDArray[np.bool_], labels_N: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    from sklearn.feature_selection import mutual_info_classif  # noqa: PLC0415  optional, slow to load

    return np.asarray(mutual_info_classif(features_NF, labels_N, discrete_features=is_binary, random_state=seed))


def _logistic(features_NF: Matrix, labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Greatest weight of each standardised feature over one-against-all regressions."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  optional, slow to load

    deviation = features_NF.std(axis=0, dtype=np.float64)
    standard: NDArray[np.float64] = (features_NF - features_NF.mean(axis=0, dtype=np.float64)) / np.where(
        deviation > 0, deviation, 1
    )
    classes = np.unique(labels_N)
    weights = []
    for chosen in classes if len(classes) > 2 else classes[1:]:  # noqa: PLR2004  of two classes one says all
        model = LogisticRegression(l1_ratio=1.0, solver="liblinear", random_state=0, max_iter=200)
        weights.append(np.abs(model.fit(standard, labels_N == chosen).coef_[0]))
    greatest: NDArray[np.float64] = np.max(weights, axis=0)
    return greatest


def _trees(features_NF: Matrix, labels_N: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    from sklearn.ensemble import ExtraTreesClassifier  # noqa: PLC0415  optional, slow to load

    model = ExtraTreesClassifier(_NUM_TREES, random_state=seed, min_samples_leaf=5)
    return np.asarray(model.fit(features_NF, labels_N).feature_importances_)
