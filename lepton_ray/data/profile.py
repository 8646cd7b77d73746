"""The profile of a table: what its columns hold, before or after cleaning.

The table is gathered in the pass that gathers the statistics of the features: all rows while they fit, else a uniform
sample. Columns are looked at side by side in threads; NumPy and Arrow let go of the interpreter while they work.
"""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.profile import ColumnProfile, NumberProfile, Profile
from lepton_ray.data.relations import MAX_GROUPS, Codes, Relations, relate, relate_missing
from lepton_ray.data.summaries import (
    MAX_VALUES,
    encode,
    profile_categories,
    profile_ignored,
    profile_images,
    profile_numbers,
    profile_series,
    profile_tags,
    profile_texts,
    profile_times,
    to_floats,
)
from lepton_ray.spec.data import (
    CategoryColumn,
    Column,
    ImageColumn,
    NumberColumn,
    SeriesColumn,
    TagsColumn,
    TextColumn,
    TimeColumn,
)

_WIDE_COLUMNS = 200  # beyond, each column keeps fewer values, so that a profile stays some MB
_MIN_VALUES = 20
_MAX_MISSING_PER_ROW = 20


@dataclass(frozen=True)
class _Seen:
    """What one column gave."""

    facts: ColumnProfile
    codes: Codes | None = None
    is_missing: NDArray[np.bool_] | None = None
    """None if no row misses it."""


def profile(table: pa.Table, columns: Mapping[str, Column], rows_total: int) -> Profile:
    """Look at a table.

    Args:
        table: Typed rows; may have other columns too. All rows, or a uniform sample of them.
        columns: Those to look at, in this order; what the table lacks is left out.
        rows_total: Rows that the table stands for.

    Returns:
        The same for any order of the rows and any chunks.
    """
    columns = {name: column for name, column in columns.items() if name in table.column_names}
    max_values = max(_MIN_VALUES, MAX_VALUES * _WIDE_COLUMNS // max(len(columns), _WIDE_COLUMNS))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        order = sorted(columns, key=lambda name: not isinstance(columns[name], NumberColumn | CategoryColumn))
        looked = {name: pool.submit(_look_at, table.column(name), columns[name], max_values) for name in order}
        relations = _relate(table, columns, looked)  # while the pool looks at texts
        seen = {name: looked[name].result() for name in columns}
    masks = {name: column.is_missing for name, column in seen.items() if column.is_missing is not None}
    per_row = _count_missing(masks, table.num_rows)
    return Profile(
        rows=table.num_rows,
        rows_total=rows_total,
        columns={name: column.facts for name, column in seen.items()},
        complete_rows=per_row[0],
        missing_per_row=per_row,
        missing_together=relate_missing(masks),
        pearson=relations.pearson,
        cramers_v=relations.cramers_v,
        correlation_ratio=relations.correlation_ratio,
    )


def _relate(table: pa.Table, columns: Mapping[str, Column], looked: Mapping[str, "Future[_Seen]"]) -> Relations:
    numbers: dict[str, NumberProfile] = {}
    categories: dict[str, Codes] = {}
    for name, kind in columns.items():
        if isinstance(kind, NumberColumn | CategoryColumn):
            seen = looked[name].result()
            if isinstance(seen.facts, NumberProfile):
                numbers[name] = seen.facts
            elif seen.codes is not None:
                categories[name] = seen.codes
    return relate(table, numbers, categories)


def _look_at(column: pa.ChunkedArray, kind: Column, max_values: int) -> _Seen:
    if isinstance(kind, CategoryColumn):
        codes, values = encode(column)
        facts: ColumnProfile = profile_categories(codes, values, max_values)
        few = Codes(codes.astype(np.int16), len(values)) if len(values) <= MAX_GROUPS else None
        return _Seen(facts, few, codes < 0 if facts.missing else None)
    facts = _profile_other(column, kind, max_values)
    if not facts.missing:
        return _Seen(facts)
    is_missing: Any = np.isnan(to_floats(column)) if isinstance(facts, NumberProfile) else column.is_null().to_numpy()
    return _Seen(facts, is_missing=is_missing)


def _profile_other(column: pa.ChunkedArray, kind: Column, max_values: int) -> ColumnProfile:
    match kind:
        case NumberColumn():
            return profile_numbers(column, max_values)
        case TagsColumn():
            return profile_tags(column, kind, max_values)
        case TextColumn():
            return profile_texts(column, max_values)
        case TimeColumn():
            return profile_times(column, max_values)
        case SeriesColumn():
            return profile_series(column, max_values)
        case ImageColumn(height=height, width=width, channels=channels):
            return profile_images(column, (height, width, channels), max_values)
        case _:
            return profile_ignored(column)


def _count_missing(masks: Mapping[str, NDArray[np.bool_]], num_rows: int) -> tuple[int, ...]:
    """Rows by number of missing values."""
    per_row = np.zeros(num_rows, np.int16)
    for mask in masks.values():
        per_row += mask
    counts = np.bincount(np.minimum(per_row, _MAX_MISSING_PER_ROW), minlength=1)
    return tuple(counts.tolist())
