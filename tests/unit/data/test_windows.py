"""Windows of time series against plain Python lists."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.data.hashing import hash_columns, to_words
from lepton_ray.data.windows import find_missing, find_short, make_windows, order_rows
from lepton_ray.spec.clean import WindowSpec

PROPERTY = settings(max_examples=150, deadline=None)
rows_of_series = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "", "é"]),
        st.none() | st.integers(-3, 3) | st.sampled_from([-(2**62), 2**62]),
        st.none() | st.floats(-1e300, 1e300),
    ),
    max_size=20,
)


def window_of(**options):
    return WindowSpec(value="v", time="t", **{"length": 2, **options})


def prepare(rows, with_entity=True):
    """The order of rows (entity, time, value), and their values."""
    entities = [pa.array([row[0] for row in rows], pa.string())] if with_entity else []
    times = np.array([row[1] or 0 for row in rows], np.int64)
    has_time = np.array([row[1] is not None for row in rows], bool)
    values = np.array([np.nan if row[2] is None else row[2] for row in rows], np.float64)
    hashes = to_words(hash_columns([pa.array([repr(row) for row in rows], pa.string())]))
    return order_rows(to_words(hash_columns(entities, len(rows))), times, has_time, hashes), values, hashes


def series_of(rows, hashes, with_entity):
    """Positions of rows by entity, in the order of time, then hash."""
    series = {}
    for i, (entity, time, _) in enumerate(rows):
        if time is not None:
            series.setdefault(entity if with_entity else None, []).append(i)
    return [sorted(members, key=lambda i: (rows[i][1], *hashes[i].tolist(), i)) for members in series.values()]


def expected_windows(rows, hashes, window, with_entity):
    windows, short = [[None] * window.length for _ in rows], [True] * len(rows)
    for members in series_of(rows, hashes, with_entity):
        for place, row in enumerate(members):
            last = place - window.horizon
            places = range(last - window.length + 1, last + 1)
            windows[row] = [rows[members[p]][2] if 0 <= p < len(members) else None for p in places]
            short[row] = places[0] < 0 or places[-1] >= len(members)
    return windows, short


@PROPERTY
@given(rows_of_series, st.integers(1, 5), st.integers(-6, 3), st.booleans(), st.data())
def test_windows_against_lists(rows, length, horizon, with_entity, data):
    window = window_of(length=length, horizon=horizon)
    order, values, hashes = prepare(rows, with_entity)
    expected, short = expected_windows(rows, hashes, window, with_entity)
    made, is_short = make_windows(order, values, window, np.arange(len(rows)))
    assert made.type == pa.list_(pa.float64(), length)
    assert made.to_pylist() == expected
    assert is_short.tolist() == short
    assert find_short(order, window).tolist() == short
    is_missing = find_missing(order, values, window)
    assert all(is_missing[row] == (None in expected[row]) for row in range(len(rows)) if not short[row])
    chosen = data.draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=5)) if rows else []
    some, some_short = make_windows(order, values, window, np.array(chosen, np.int64))
    assert some.to_pylist() == [expected[row] for row in chosen]
    assert some_short.tolist() == [short[row] for row in chosen]


@PROPERTY
@given(rows_of_series, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, random):
    window = window_of(length=3)

    def rows_with_windows(rows):
        order, values, _ = prepare(rows)
        made, _ = make_windows(order, values, window, np.arange(len(rows)))
        return sorted(zip(map(repr, rows), map(repr, made.to_pylist()), strict=True))  # equal rows may change places

    assert rows_with_windows(random.sample(rows, len(rows))) == rows_with_windows(rows)


def test_times_may_be_numbers():
    times = np.array([0.5, -1e300, 1e300, 0.25])
    entity = to_words(hash_columns([], 4))
    order = order_rows(entity, times, np.ones(4, bool), to_words(hash_columns([pa.array(times)])))
    assert order.order.tolist() == [1, 3, 0, 2]
    assert order.num_before.tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize("rows", [[], [("a", None, 1.0)], [("a", 1, None)]])
def test_hardly_any_rows(rows):
    order, values, _ = prepare(rows)
    made, is_short = make_windows(order, values, window_of(horizon=0, length=1), np.arange(len(rows)))
    assert made.to_pylist() == [[None]] * len(rows)
    assert is_short.tolist() == [row[1] is None for row in rows]


def test_a_long_window_of_many_rows():
    rows = 200_000
    entities = to_words(hash_columns([pa.array(np.arange(rows) % 100, pa.float64())]))
    times = np.arange(rows)[::-1].copy()
    order = order_rows(entities, times, np.ones(rows, bool), entities)
    made, is_short = make_windows(order, times.astype(float), window_of(length=48), np.arange(1000))
    values = made.flatten().to_numpy().reshape(-1, 48)
    assert not is_short.any()
    assert (np.diff(values, axis=1) == 100).all()
    assert (values[:, -1] == times[:1000] - 100).all()
