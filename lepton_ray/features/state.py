"""What fitting learns from the training split, in one pass over it, and the reference sketches that drift needs."""

from collections import Counter
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Strict

from lepton_ray.spec.data import CategoryColumn, DataSpec, NumberColumn
from lepton_ray.spec.model import CategoryFeatures, FeaturesSpec, NumberFeatures

_LEAST_SPREAD = 1e-300  # dividing by less overflows
_NUM_BINS = 10
_MAX_REFERENCE_CATEGORIES = 100


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NumberState(_Frozen):
    """(value, or ``impute`` where it is missing, - ``offset``) / ``scale``."""

    impute: float
    offset: float
    scale: float


class CategoryState(_Frozen):
    """One-hot over ``vocabulary``; a missing value counts as the category at ``missing_index``."""

    vocabulary: Annotated[tuple[str, ...], Strict(False)]
    missing_index: int


class FeatureState(_Frozen):
    """Fitted state of all features; images need none."""

    numbers: dict[str, NumberState]
    categories: dict[str, CategoryState]


def fit_state(train: pa.Table, data: DataSpec, spec: FeaturesSpec) -> tuple[FeatureState, dict[str, Any]]:
    """Return the fitted state and the reference sketches of a typed training table with at least one row."""
    numbers: dict[str, NumberState] = {}
    categories: dict[str, CategoryState] = {}
    reference: dict[str, Any] = {}
    for name, column in data.features.items():
        if isinstance(column, NumberColumn):
            values = train.column(name).to_numpy()
            numbers[name] = _fit_number(values, spec.numbers)
            reference[name] = _sketch_number(values)
        elif isinstance(column, CategoryColumn):
            counts = Counter(train.column(name).to_pylist())
            categories[name] = _fit_category(counts, spec.categories)
            reference[name] = _sketch_category(counts)
    labels = Counter(train.column(data.label).to_pylist())
    reference_all = {"rows": train.num_rows, "features": reference, "label": _sketch_category(labels)}
    return FeatureState(numbers=numbers, categories=categories), reference_all


def _fit_number(values_N: NDArray[np.float64], spec: NumberFeatures) -> NumberState:
    present = values_N[~np.isnan(values_N)]
    if len(present) == 0:
        return NumberState(impute=0.0, offset=0.0, scale=1.0)
    impute = 0.0 if spec.impute == "zero" else (_mean(present) if spec.impute == "mean" else float(np.median(present)))
    filled = np.where(np.isnan(values_N), impute, values_N)
    offset, scale = 0.0, 1.0
    if spec.scale == "standard":
        offset = _mean(filled)
        scale = _root_mean_square(filled - offset)
    elif spec.scale == "min_max":
        offset, scale = float(filled.min()), float(np.ptp(filled))
    return NumberState(impute=impute, offset=offset, scale=scale if _is_usable(scale) else 1.0)


def _mean(values_N: NDArray[np.float64]) -> float:
    """Mean within the values' range, where rounding may not leave it: equal values have no spread, not a trace of one."""
    return float(np.clip(values_N.mean(), values_N.min(), values_N.max()))


def _root_mean_square(values_N: NDArray[np.float64]) -> float:
    """Root of the mean square, of values whose squares may overflow or vanish."""
    largest = np.abs(values_N).max()
    return float(largest * np.sqrt(np.square(values_N / largest).mean())) if largest else 0.0


def _is_usable(scale: float) -> bool:
    """A constant column has no spread to divide by."""
    return bool(np.isfinite(scale)) and scale > _LEAST_SPREAD


def _fit_category(counts: Counter[str], spec: CategoryFeatures) -> CategoryState:
    ranked = sorted((value for value in counts if value), key=lambda value: (-counts[value], value))
    vocabulary = tuple(ranked[: spec.max_categories])
    is_own = spec.impute == "own_category" or not vocabulary
    return CategoryState(vocabulary=vocabulary, missing_index=len(vocabulary) if is_own else 0)


def _sketch_number(values_N: NDArray[np.float64]) -> dict[str, Any]:
    present = values_N[~np.isnan(values_N)]
    sketch: dict[str, Any] = {"kind": "number", "missing_fraction": 1 - len(present) / len(values_N)}
    if len(present):
        mean = _mean(present)
        edges = np.unique(np.quantile(present, np.linspace(0, 1, _NUM_BINS + 1)))
        inner = edges[1:-1]
        counts = np.bincount(np.searchsorted(inner, present, side="right"), minlength=len(inner) + 1)
        sketch |= {
            "mean": mean,
            "std": _root_mean_square(present - mean),
            "min": float(present.min()),
            "max": float(present.max()),
        }
        sketch |= {"bin_edges": inner.tolist(), "bin_fractions": (counts / len(present)).tolist()}
    return sketch


def _sketch_category(counts: Counter[str]) -> dict[str, Any]:
    total = sum(counts.values())
    top = sorted((value for value in counts if value), key=lambda value: (-counts[value], value))[
        :_MAX_REFERENCE_CATEGORIES
    ]
    fractions = {value: counts[value] / total for value in top}
    return {"kind": "category", "missing_fraction": counts[""] / total, "fractions": fractions}
