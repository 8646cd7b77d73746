"""A stratified split that depends on the rows' values alone, not on their order."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.data.hashing import mix
from lepton_ray.spec.data import SplitSpec

TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")


def assign_splits(
    feature_hash_N: NDArray[Any], label_N: NDArray[np.int64], spec: SplitSpec, seed: int
) -> NDArray[np.int8]:
    """Return the split (0 train, 1 val, 2 test) of each row.

    Rows with equal features form a group, which stays together: no test row has a twin in training. A group counts for
    the least label in it. Within a class, groups go in the order of their seeded hash to test, then val, until these
    hold their share of the class (at least one row), and the rest to train. Train always gets a group, and each split
    when there are three: however large the groups are, test and val leave one to those who come after.
    """
    _, first, group_N, group_rows = np.unique(
        feature_hash_N, return_index=True, return_inverse=True, return_counts=True
    )
    words = np.frombuffer(feature_hash_N[first].tobytes(), np.uint64).reshape(-1, 2)
    order_key = mix(words[:, 0] ^ mix(words[:, 1] ^ np.uint64(seed)))
    group_label = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(group_label, group_N, label_N)
    group_split = np.full(len(first), TRAIN, np.int8)
    for label in np.unique(group_label):
        groups = np.flatnonzero(group_label == label)
        groups = groups[np.argsort(order_key[groups], kind="stable")]
        rows_through = np.cumsum(group_rows[groups])
        test_rows, val_rows = (max(1, round(int(rows_through[-1]) * share)) for share in (spec.test, spec.val))
        test_end = min(int(np.searchsorted(rows_through, test_rows)) + 1, max(1, len(groups) - 2))
        val_end = int(np.searchsorted(rows_through, rows_through[test_end - 1] + val_rows)) + 1
        group_split[groups[: min(val_end, len(groups) - 1)]] = VAL
        group_split[groups[: min(test_end, len(groups) - 1)]] = TEST
    return group_split[group_N]
