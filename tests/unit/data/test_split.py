"""The split and the hashes under it: they depend on values alone, and every split sees every class that it can."""

import hashlib
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.data.hashing import hash_columns, hash_groups, to_keys, to_words
from lepton_ray.data.split import assign_by_share, assign_in_order, assign_splits, to_order
from lepton_ray.spec.data import SplitSpec

PROPERTY = settings(max_examples=100, deadline=None)
SPLIT = SplitSpec()
SHARES = st.tuples(st.integers(1, 98), st.integers(1, 98)).filter(lambda ends: ends[0] != ends[1])


def split(features, labels, spec=SPLIT, seed=0):
    keys = to_keys(hash_columns([pa.array(list(features), pa.float64())]), seed)
    return assign_splits(keys, np.array(labels, np.int32), spec)


def split_spec(ends):
    first, second = sorted(ends)
    return SplitSpec(train=first / 100, val=(second - first) / 100, test=1 - first / 100 - (second - first) / 100)


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=40), st.randoms())
def test_neither_the_order_of_rows_nor_equal_features_change_a_rows_split(rows, random):
    features, labels = zip(*rows, strict=True)
    assigned = split(features, labels)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert split([features[i] for i in order], [labels[i] for i in order]).tolist() == assigned[order].tolist()
    by_features = {}
    for feature, number in zip(features, assigned.tolist(), strict=True):
        assert by_features.setdefault(feature, number) == number


@PROPERTY
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), SHARES, st.integers(0, 2**31 - 1))
def test_every_split_has_each_class_of_three_groups_or_more(group_rows, ends, seed):
    """However large the groups and however small a share."""
    features = np.repeat(np.arange(len(group_rows)), group_rows)
    assigned = split(features, np.zeros(len(features)), split_spec(ends), seed)
    assert set(assigned.tolist()) >= {1: {0}, 2: {0, 2}}.get(len(group_rows), {0, 1, 2})


@PROPERTY
@given(st.lists(st.integers(6, 60), min_size=1, max_size=4), SHARES)
def test_classes_keep_their_shares_when_rows_differ(class_rows, ends):
    labels = np.repeat(np.arange(len(class_rows)), class_rows)
    spec = split_spec(ends)
    assigned = split(np.arange(len(labels)), labels, spec)
    for label, rows in enumerate(class_rows):
        num_val, num_test = (int((assigned[labels == label] == number).sum()) for number in (1, 2))
        for count, share in ((num_val, spec.val), (num_test, spec.test)):
            assert 1 <= count <= max(1, round(rows * share))
            assert abs(count - rows * share) <= 1 or num_val + num_test == rows - 1  # one row is left to train


def test_rows_in_groups_stay_near_their_shares():
    features = np.repeat(np.arange(600), 5)
    shares = np.bincount(split(features, features % 2)) / len(features)
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.01)  # a group of 5 of 1500 rows may go over


def test_seeds_differ():
    features = np.arange(200)
    results = {split(features, features % 2, seed=seed).tobytes() for seed in range(10)}
    assert len(results) == 10


def test_conflicting_labels_of_equal_features_stay_together():
    assigned = split([0, 0, 1, 1, 2, 2, 3, 3], [0, 1] * 4)
    assert assigned[0::2].tolist() == assigned[1::2].tolist()
    assert set(assigned.tolist()) == {0, 1, 2}


def test_no_rows():
    assert split([], []).tolist() == []


TEXTS = pa.array(["a", "", "a", None, "b", "é", "a\x00", "\x00", ""])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_texts_hash_by_value(kind):
    whole = hash_columns([TEXTS.cast(kind)]).to_pylist()
    assert whole == hash_columns([TEXTS]).to_pylist()
    assert whole[0] == whole[2]
    assert whole[1] == whole[8]
    assert len(set(whole)) == 7
    single = [hash_columns([TEXTS.slice(i, 1).cast(kind)]).to_pylist()[0] for i in range(len(TEXTS))]
    assert single == whole


@PROPERTY
@given(
    st.lists(st.binary(max_size=20) | st.binary(min_size=120, max_size=136) | st.none(), max_size=20),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_a_hash_is_the_same_number_for_ever(texts, start, length):
    column = pa.array(texts, pa.binary()).slice(start, length)
    assert hash_columns([column]).to_pylist() == [hash_of(text) for text in texts[start : start + length]]


def hash_of(text):
    """Of a row with one text, in Python's whole numbers: splits of old runs come from it."""
    if text is None:
        word = 0xA5A512340F0F4321
    elif len(text) > 128:
        word = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    else:
        eights = [int.from_bytes(text[at : at + 8], "little") for at in range(0, len(text), 8)]
        word = reduce(absorb, eights, (len(text) + 1) * 0xA24BAED4963EE407 % 2**64)
    return b"".join(absorb(seed, word).to_bytes(8, "little") for seed in (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03))


def absorb(state, word):
    state ^= word
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        state = state * factor % 2**64
        state ^= state >> 31
    return state


def test_numbers_hash_by_value():
    payload = np.array([0x7FF8000000000000, 0xFFF8000000000001], np.uint64).view(np.float64)  # two kinds of NaN
    values = pa.array(np.array([0.0, -0.0, 1.0, np.inf, -np.inf, 5e-324, *payload]))
    zero, minus_zero, *others, nan, other_nan = hash_columns([values]).to_pylist()
    assert zero == minus_zero
    assert nan == other_nan
    assert len({zero, nan, *others}) == 6
    with_null = pa.array([1.0, None], pa.float64())
    assert hash_columns([with_null]).to_pylist() == [others[0], nan]


def test_columns_hash_by_place():
    one, two = pa.array(["a", "b"]), pa.array(["b", "a"])
    rows = {
        *hash_columns([one, two]).to_pylist(),
        *hash_columns([one, one]).to_pylist(),
        *hash_columns([one]).to_pylist(),
    }
    assert len(rows) == 6


@PROPERTY
@given(
    st.lists(st.tuples(st.floats() | st.none(), st.text(max_size=3) | st.none()), max_size=12),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_slices_and_chunks_hash_like_the_whole(rows, start, length):
    numbers = pa.array([row[0] for row in rows], pa.float64())
    texts = pa.array([row[1] for row in rows], pa.string())
    whole = hash_columns([numbers, texts])
    part = hash_columns([numbers.slice(start, length), texts.slice(start, length)])
    assert part.to_pylist() == whole.slice(start, length).to_pylist()
    chunks = pa.chunked_array([whole.slice(0, start), whole.slice(start)], pa.binary(16))
    assert to_words(chunks).tobytes() == b"".join(whole.to_pylist())
    by_group = hash_groups([[numbers], [texts]], len(rows))
    assert [array.to_pylist() for array in by_group] == [hash_columns([numbers]).to_pylist(), whole.to_pylist()]


def test_many_values_do_not_collide():
    numbers, texts = pa.array(np.arange(50_000.0)), pa.array([f"text {i}" for i in range(50_000)])
    for values in (numbers, texts, pa.array([("x" * 200) + str(i) for i in range(50_000)])):
        assert len(set(hash_columns([values]).to_pylist())) == 50_000


def test_a_dictionary_hashes_like_its_texts():
    assert hash_columns([TEXTS.dictionary_encode()]).to_pylist() == hash_columns([TEXTS]).to_pylist()
    assert (
        hash_columns([TEXTS.dictionary_encode().slice(3, 4)]).to_pylist()
        == hash_columns([TEXTS.slice(3, 4)]).to_pylist()
    )


def test_lists_of_numbers_hash_by_value():
    lists = pa.array([[1.0, 2.0], [2.0, 1.0], [1.0, None], [1.0, 2.0], [None, None]], pa.list_(pa.float64(), 2))
    first, swapped, half, again, nothing = hash_columns([lists]).to_pylist()
    assert first == again
    assert len({first, swapped, half, nothing}) == 4


def test_many_rows_are_split_by_their_key_alone_near_their_shares():
    keys = to_keys(hash_columns([pa.array(np.arange(100_000.0))]), 5)
    assigned = assign_by_share(keys, SPLIT)
    assert np.bincount(assigned) / len(keys) == pytest.approx([0.7, 0.15, 0.15], abs=0.01)
    assert assign_by_share(keys[::-1], SPLIT).tolist() == assigned[::-1].tolist()
    assert set(assign_by_share(keys, SplitSpec(train=1.0, val=0.0, test=0.0)).tolist()) == {0}


@PROPERTY
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), SHARES)
def test_in_order_nothing_later_is_before_the_bound(values, ends):
    spec = split_spec(ends)
    assigned = assign_in_order(np.array(values, float), spec)
    parts = [sorted({v for v, s in zip(values, assigned.tolist(), strict=True) if s == split}) for split in (0, 1, 2)]
    joined = [value for part in parts for value in part]
    assert joined == sorted(set(values)), "equal values stay together, and train comes before val before test"
    if len(joined) >= 3:
        assert all(parts)
    most = max(values.count(value) for value in values)
    if len(joined) > 40:
        assert abs((assigned == 2).sum() - spec.test * len(values)) <= most + 1


def test_in_order_shares_are_met_to_the_row():
    order = np.random.default_rng(0).permutation(1000).astype(float)
    assigned = assign_in_order(order, SPLIT)
    assert [(order[assigned == s].min(), order[assigned == s].max()) for s in (0, 1, 2)] == [
        (0, 699),
        (700, 849),
        (850, 999),
    ]
    assert assign_in_order(np.empty(0), SPLIT).tolist() == []
    assert assign_in_order(order, SplitSpec(train=0.8, val=0.0, test=0.2)).max() == 2


def test_times_and_numbers_are_put_in_order_and_a_missing_one_comes_first():
    times = pa.chunked_array([pa.array([5, None, -7], pa.timestamp("us", "UTC"))])
    assert to_order(times).tolist() == [5.0, -np.inf, -7.0]
    assert to_order(pa.chunked_array([pa.array([0.5, None])])).tolist() == [0.5, -np.inf]


def test_times_far_away_have_their_place_in_the_order():
    """Such as 9999-12-31, which stands for an end that is open: float64 does not hold its microseconds to the last."""
    times = pa.chunked_array([pa.array([253402300799999999, None, 0, -62135596800000000], pa.timestamp("us", "UTC"))])
    ordered = to_order(times)
    assert np.argsort(ordered).tolist() == [1, 3, 2, 0]
    assert np.isfinite(ordered).tolist() == [True, False, True, True]
