"""A split that depends on the rows' values alone: not on their order, nor on blocks."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.data.hashing import Words
from lepton_ray.spec.data import SplitSpec

TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")
MAX_EXACT_ROWS = 1 << 22
"""Above it the shares of a class are met to about one in a thousand instead of to the row, without sorting anything."""

_SPAN = 2.0**64


def assign_splits(key_N: Words, label_N: NDArray[np.int32], spec: SplitSpec) -> NDArray[np.uint8]:
    """Return the split (0 train, 1 val, 2 test) of each row, classes keeping their shares to the row.

    Rows with equal keys (equal features) form a group, which stays together: no test row has a twin in training. A group
    counts for the least label in it. Within a class, groups go in the order of their keys to test, then val, until these
    hold their share of the class (at least one row), and the rest to train. Train always gets a group, and each split
    when there are three: however large the groups are, test and val leave one to those who come after.

    Args:
        key_N: Seeded hash of each row's features, from ``hashing.to_keys``.
        label_N: Class index of each row; zeros when there is no label.
        spec: The shares; a split with a share of 0 stays empty.
    """
    if spec.val == spec.test == 0:
        return np.zeros(len(key_N), np.uint8)
    order = np.argsort(key_N, kind="stable")
    key = key_N[order]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
    group_rows = np.diff(np.append(starts, len(key)))
    group_label = np.minimum.reduceat(label_N[order], starts) if len(starts) else label_N
    group_split = np.full(len(starts), TRAIN, np.uint8)
    for label in np.unique(group_label):
        groups = np.flatnonzero(group_label == label)  # in the order of their keys
        num_test, num_val = _shares(group_rows[groups], spec)
        group_split[groups[num_test : num_test + num_val]] = VAL
        group_split[groups[:num_test]] = TEST
    split_N = np.empty(len(key_N), np.uint8)
    split_N[order] = np.repeat(group_split, group_rows)
    return split_N


def assign_in_order(value_N: NDArray[np.float64], spec: SplitSpec) -> NDArray[np.uint8]:
    """Return the split of each row by a column's values: the greatest to test, those before them to val, the rest to train.

    Rows with equal values stay together, and every split has one value at least when there are three.
    """
    if len(value_N) == 0:
        return np.empty(0, np.uint8)
    _, group_N, group_rows = np.unique(value_N, return_inverse=True, return_counts=True)
    num_test, num_val = _shares(group_rows[::-1], spec)
    split = np.full(len(group_rows), TRAIN, np.uint8)
    split[len(split) - num_test - num_val :] = VAL
    split[len(split) - num_test :] = TEST
    return split[group_N]


def to_order(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return times (microseconds) or numbers to put rows in order by; a missing value comes first."""
    values = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
    ordered: NDArray[np.float64] = values.cast(pa.float64(), safe=False).fill_null(-np.inf).to_numpy()
    return ordered


def _shares(group_rows: NDArray[np.int64], spec: SplitSpec) -> tuple[int, int]:
    """Return how many groups of a class go to test and to val."""
    rows_through = np.cumsum(group_rows)
    wanted = [max(1, round(int(rows_through[-1]) * share)) if share else 0 for share in (spec.test, spec.val)]
    num_after = (spec.val > 0) + 1  # splits that come after test and want a group too
    test_end = _groups_holding(rows_through, wanted[0], max(1, len(group_rows) - num_after)) if wanted[0] else 0
    before = int(rows_through[test_end - 1]) if test_end else 0
    val_end = _groups_holding(rows_through, before + wanted[1], len(group_rows) - 1) if wanted[1] else test_end
    test_end = min(test_end, len(group_rows) - 1)
    return test_end, max(0, val_end - test_end)


def _groups_holding(rows_through: NDArray[np.int64], rows: int, most: int) -> int:
    return min(int(np.searchsorted(rows_through, rows)) + 1, most)


def assign_by_share(key_N: Words, spec: SplitSpec) -> NDArray[np.uint8]:
    """Return the split of each row of a table with more than ``MAX_EXACT_ROWS`` rows: by its key alone."""
    is_test = key_N < _bound(spec.test)
    is_held_out = key_N < _bound(spec.test + spec.val)
    split_N: NDArray[np.uint8] = np.where(is_test, TEST, np.where(is_held_out, VAL, TRAIN)).astype(np.uint8)
    return split_N


def _bound(share: float) -> np.uint64:
    return np.uint64(min(int(share * _SPAN), 2**64 - 1))
