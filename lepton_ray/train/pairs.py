"""Pairs of rows that ranking learns from. Legend: N rows, P pairs.

A pair is what a row is to other tasks: workers share the pairs of a batch, and its loss needs no row but its two. So N workers take the
step of one, and no list has to fit into a batch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.train.augment import Ints


def draw_pairs(grade_N: NDArray[Any], group_N: NDArray[np.integer], rng: np.random.Generator) -> Ints:
    """Return (P, 2): each row that some row of its group differs from in grade, beside one of those, each as likely.

    Args:
        grade_N: What puts rows in order.
        group_N: The number of each row's group; less than 0 for a row without one.
        rng: Drawn from exactly once.
    """
    order_N = np.lexsort((grade_N, group_N))
    order = order_N[np.searchsorted(group_N[order_N], 0) :]
    group, grade = group_N[order], grade_N[order]
    first, size = _runs(np.diff(group, prepend=-1) != 0)
    is_other = (np.diff(group, prepend=-1) != 0) | (np.diff(grade, prepend=np.nan) != 0)
    first_equal, num_equal = _runs(is_other)
    num_others = size - num_equal
    drawn = rng.integers(np.maximum(num_others, 1))
    place = first + drawn
    place += np.where(place >= first_equal, num_equal, 0)  # the rows of the same grade stand together: step over them
    has_other = num_others > 0
    pairs: Ints = np.stack([order[has_other], order[place[has_other]]], axis=1)
    return pairs


def _runs(is_first: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return for each place of an array where its run begins and how long it is."""
    starts = np.flatnonzero(is_first)
    lengths = np.diff(starts, append=len(is_first))
    return np.repeat(starts, lengths), np.repeat(lengths, lengths)
