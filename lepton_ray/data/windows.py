"""Windows of time series in long tables: for each row the values of earlier rows of the same entity.

The rows are put in order once, over all of them (``order_rows``): by entity, time, and for equal times by hash, so that the order
of the source does not matter. Then windows are read off for any block of rows.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.data.hashing import Words
from lepton_ray.data.keys import Mask
from lepton_ray.spec.clean import WindowSpec

Positions = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class SeriesOrder:
    """Where each row stands among all, ordered by entity and time."""

    order: Positions
    """Rows in order; those without a time come last."""
    place: Positions
    """Place of each row in ``order``."""
    num_before: Positions
    """Number of rows of the same entity before each row; -1 without a time."""


def order_rows(entities: Words, times: NDArray[np.generic], has_time: Mask, row_hashes: Words) -> SeriesOrder:
    """Put all rows in order.

    Args:
        entities: (N, 2) hashes of the entities: ``keys.key_hashes`` of ``WindowSpec.entity``, which may be no column.
        times: (N,) numbers that are ordered as the times are, such as microseconds.
        has_time: Rows that have a time; the others are in no series.
        row_hashes: (N, 2) hashes of the rows, which order equal times.
    """
    rows = np.flatnonzero(has_time)
    keys = (row_hashes[rows, 1], row_hashes[rows, 0], times[rows], entities[rows, 1], entities[rows, 0])
    ordered = rows[np.lexsort(keys)]
    order = np.concatenate([ordered, np.flatnonzero(~has_time)])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = (entities[ordered[1:]] != entities[ordered[:-1]]).any(axis=1)
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(ordered)))
    before = np.full(len(order), -1)
    before[ordered] = np.arange(len(ordered)) - np.repeat(starts, sizes)
    return SeriesOrder(order, place, before)


def make_windows(
    order: SeriesOrder, values: Values, window: WindowSpec, rows: Positions
) -> tuple[pa.FixedSizeListArray, Mask]:
    """Return the windows of some rows, and which of them have too few rows before them.

    Args:
        order: Of all rows.
        values: (N,) values of all rows, in the rows' order; NaN where one is missing.
        window: Length L and horizon.
        rows: Rows to make windows for, M of them.

    Returns:
        M windows of L values, null where there is no row or its value is missing, and a mask (M,).
    """
    length, reach = window.length, _reach(window)
    padded = np.concatenate([np.full(reach, np.nan), values[order.order], [np.nan]])  # long enough without any row
    made_ML = np.lib.stride_tricks.sliding_window_view(padded, length)[order.place[rows]]  # a copy: rows are chosen
    num_before = order.num_before[rows]
    num_foreign = np.where(num_before < 0, length, reach - num_before)  # first values, of before the entity's first row
    foreign = np.flatnonzero(num_foreign > 0)
    made_ML[foreign] = np.where(np.arange(length) < num_foreign[foreign, None], np.nan, made_ML[foreign])
    return pa.FixedSizeListArray.from_arrays(pa.array(made_ML.ravel(), from_pandas=True), length), num_foreign > 0


def find_short(order: SeriesOrder, window: WindowSpec) -> Mask:
    """Return which of all rows (N,) have too few rows before them, without making a window."""
    mask: Mask = order.num_before < _reach(window)
    return mask | (order.num_before < 0)


def _reach(window: WindowSpec) -> int:
    return window.length - 1 + window.horizon
