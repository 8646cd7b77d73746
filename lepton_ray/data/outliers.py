"""Outliers of number columns: bounds fitted on the training rows, and which rows lie outside.

A fit looks at one column's values at a time and does not depend on their order. Where no distance is known to judge by - all
or most values are equal, or a distance is beyond the largest number - there are no bounds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts import statistics
from lepton_ray.artifacts.statistics import Values
from lepton_ray.core.text import show
from lepton_ray.data.block import decode
from lepton_ray.data.keys import Mask
from lepton_ray.data.rules import describe
from lepton_ray.spec.clean import OutlierSpec
from lepton_ray.spec.data import DataSpec

MIN_GROUP_ROWS = 10
"""A group (``per``) with fewer values has no bounds: a quantile or spread of a handful says nothing."""


@dataclass(frozen=True)
class Bounds:
    """Least and greatest value that is no outlier."""

    low: float
    high: float

    @property
    def words(self) -> str:
        """The rule in words, after the column's name."""
        return f"must lie in {self.low:.10g}..{self.high:.10g}"


_BOUNDLESS = Bounds(-np.inf, np.inf)


@dataclass(frozen=True)
class FittedOutliers:
    """One column's bounds; plain data, so that it can be written down."""

    column: str
    per: str | None
    bounds: Mapping[str | None, Bounds]
    """By the value of ``per``, None where that is missing; without ``per`` one entry under None."""


def outlier_columns(rule: OutlierSpec, data: DataSpec) -> Sequence[str]:
    """Return the number columns that a rule looks at."""
    return rule.columns or [name for name, column in data.features.items() if column.kind == "number"]


def fit_outliers(
    column: str, rule: OutlierSpec, values: pa.ChunkedArray, groups: pa.ChunkedArray | None = None
) -> FittedOutliers:
    """Fit one column's bounds.

    Args:
        column: Its name.
        rule: The method; one of ``CleanSpec.outlier_rules``.
        values: Its values in all training rows, float64 with null for missing.
        groups: The category column ``rule.per`` in the same rows; None without one.
    """
    numbers = values.to_numpy()
    members = [(None, numbers[~np.isnan(numbers)])] if groups is None else _split(numbers, groups)
    found = ((name, fit_bounds(present, rule)) for name, present in members)
    return FittedOutliers(column, rule.per, {name: bounds for name, bounds in found if bounds is not None})


def _split(numbers: Values, groups: pa.ChunkedArray) -> Iterator[tuple[str | None, Values]]:
    """Yield each group's name and present values."""
    names, codes = encode_groups(groups)
    is_present = ~np.isnan(numbers)
    codes, numbers = codes[is_present], numbers[is_present]
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(names)), side="right")
    for name, members in zip(names, np.split(numbers[order], ends[:-1]), strict=True):
        if len(members) >= MIN_GROUP_ROWS:
            yield name, members


def fit_bounds(values: Values, rule: OutlierSpec) -> Bounds | None:
    """Return the bounds of present values, whatever their order, or None if no distance is known to judge by."""
    found = statistics.bounds(values, rule.method, rule.distance, rule.quantiles)
    return Bounds(*found) if found is not None else None


def find_outliers(fitted: FittedOutliers, table: pa.Table) -> tuple[Mask, pa.Array]:
    """Return which rows of a typed table are outliers, and the rule with the value for each of them, in order."""
    groups = (
        table.column(fitted.per)
        if fitted.per is not None
        else pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    )
    names, codes = encode_groups(groups)
    bounds = [fitted.bounds.get(name, _BOUNDLESS) for name in names]
    low, high = np.array([(each.low, each.high) for each in bounds]).T
    values = table.column(fitted.column).to_numpy()
    is_outlier: Mask = (values < low[codes]) | (values > high[codes])
    used, positions = np.unique(codes[is_outlier], return_inverse=True)
    rules = pa.array(
        [f"{fitted.column} {bounds[code].words}{_where(fitted.per, names[code])}" for code in used], pa.string()
    )
    return is_outlier, describe(rules.take(pa.array(positions)), table.filter(pa.array(is_outlier)), [fitted.column])


def encode_groups(groups: pa.ChunkedArray) -> tuple[list[str | None], NDArray[np.int64]]:
    """Return the values of a category column, None last, and for each row the position of its value."""
    encoded = decode(groups).combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return [*encoded.dictionary.to_pylist(), None], codes.astype(np.int64)


def _where(per: str | None, name: str | None) -> str:
    if per is None:
        return ""
    return f" where {per} is {'missing' if name is None else show(name)}"
