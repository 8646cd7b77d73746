"""Repeats against pandas, however the rows are cut into batches and sweeps."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.data import duplicates
from lepton_ray.data.duplicates import find_repeats

PROPERTY = settings(max_examples=100, deadline=None)
HASHES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40)


def words(hashes):
    """Spread over all prefixes, so that sweeps hold some each."""
    pairs = np.array(hashes, np.uint64).reshape(-1, 2)
    return pairs * np.array([2**62, 1], np.uint64)


def batches_of(arrays, cuts):
    ends = sorted({min(cut, len(arrays[0])) for cut in cuts} | {0, len(arrays[0])})
    return lambda: (
        tuple(None if a is None else a[start:end] for a in arrays) for start, end in itertools.pairwise(ends)
    )


@PROPERTY
@given(HASHES, st.lists(st.integers(0, 40), max_size=4), st.integers(1, 10), st.booleans(), st.data())
def test_all_but_the_first_or_last_of_equals_are_repeats(hashes, cuts, sweep, keep_last, data):
    is_in = np.array(data.draw(st.lists(st.booleans(), min_size=len(hashes), max_size=len(hashes))), bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_ROWS_PER_SWEEP", sweep)
        found = find_repeats(batches_of([words(hashes), None, is_in], cuts), len(hashes), keep_last)
    frame = pd.DataFrame({"hash": hashes})[is_in]
    expected = frame["hash"].duplicated(keep="last" if keep_last else "first")
    assert np.flatnonzero(found).tolist() == expected[expected].index.tolist()


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=30),
    st.integers(1, 10),
    st.randoms(),
)
def test_the_least_rank_stays_whatever_the_order(rows, sweep, random):
    """Rows differ by rank and tie here, so that one of them is the least."""
    rows = list(dict.fromkeys(rows))
    survivors = set()
    for _ in range(2):
        random.shuffle(rows)
        ranks = np.array([row[1:] for row in rows], np.uint64).reshape(-1, 2)
        arrays = [words([(row[0], 0) for row in rows]), ranks, np.ones(len(rows), bool)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(duplicates, "_ROWS_PER_SWEEP", sweep)
            found = find_repeats(batches_of(arrays, [3, 7]), len(rows))
        survivors.add(frozenset(row for row, lost in zip(rows, found, strict=True) if not lost))
    least = {key: min(row for row in rows if row[0] == key) for key in {row[0] for row in rows}}
    assert survivors == {frozenset(least.values())}


def test_hashes_that_share_a_half_are_not_equal():
    found = find_repeats(
        lambda: iter([(np.array([[1, 1], [1, 2], [2, 1], [1, 1]], np.uint64), None, np.ones(4, bool))]), 4
    )
    assert found.tolist() == [False, False, False, True]
