"""Windows of time series in long tables: for each row the values of other rows of the same entity.

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
    num_after: Positions
    """Number of rows of the same entity after each row; -1 without a time."""


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
    before, after = np.full(len(order), -1), np.full(len(order), -1)
    before[ordered] = np.arange(len(ordered)) - np.repeat(starts, sizes)
    after[ordered] = np.repeat(starts + sizes, sizes) - np.arange(len(ordered)) - 1
    return SeriesOrder(order, place, before, after)


def make_windows(
    order: SeriesOrder, values: Values, window: WindowSpec, rows: Positions
) -> tuple[pa.FixedSizeListArray, Mask]:
    """Return the windows of some rows, and which of them have too few rows before or after them.

    Args:
        order: Of all rows.
        values: (N,) values of all rows, in the rows' order; NaN where one is missing.
        window: Length L and horizon.
        rows: Rows to make windows for, M of them.

    Returns:
        M windows of L values, null where there is no row or its value is missing, and a mask (M,).
    """
    length, first, last = window.length, *_span(window)
    before, after = max(-first, 0), max(last, 0)
    padded = np.concatenate([np.full(before, np.nan), values[order.order], np.full(after + 1, np.nan)])
    views = np.lib.stride_tricks.sliding_window_view(padded, length)
    made_ML = views[order.place[rows] + before + first]  # a copy: rows are chosen
    is_short = find_short(order, window)[rows]
    short = np.flatnonzero(is_short)
    if len(short):
        offset_L = np.arange(first, last + 1)
        num_before, num_after = order.num_before[rows[short]], order.num_after[rows[short]]
        is_own = (offset_L >= -num_before[:, None]) & (offset_L <= num_after[:, None]) & (num_before[:, None] >= 0)
        made_ML[short] = np.where(is_own, made_ML[short], np.nan)
    return pa.FixedSizeListArray.from_arrays(pa.array(made_ML.ravel(), from_pandas=True), length), is_short


def find_short(order: SeriesOrder, window: WindowSpec) -> Mask:
    """Return which of all rows (N,) have too few rows before or after them, without making a window."""
    first, last = _span(window)
    mask: Mask = (order.num_before < -first) | (order.num_after < last) | (order.num_before < 0)
    return mask


def find_last(order: SeriesOrder, window: WindowSpec) -> Positions:
    """Return for each of all rows (N,) which of them its window's last value is of; some row for a window that is too short."""
    return order.order[np.clip(order.place + _span(window)[1], 0, len(order.order) - 1)]


def find_missing(order: SeriesOrder, values: Values, window: WindowSpec) -> Mask:
    """Return which of all rows (N,) have a missing value in their window; places without a row do not count."""
    first, last = _span(window)
    counts = np.concatenate([[0], np.cumsum(np.isnan(values[order.order]))])
    low, high = (np.clip(order.place + offset, 0, len(values)) for offset in (first, last + 1))
    mask: Mask = counts[high] > counts[low]
    return mask


def _span(window: WindowSpec) -> tuple[int, int]:
    """Return where the first and the last value of a window lie, in rows after its row."""
    return 1 - window.length - window.horizon, -window.horizon
