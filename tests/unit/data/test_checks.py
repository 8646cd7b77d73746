"""Checks of the training sample: associations against plain counting over pairs, findings on planted leaks."""

import itertools
import math
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import DataError
from lepton_ray.data import checks
from lepton_ray.data.checks import association_by_value, association_in_order, check_sample, stop_on
from lepton_ray.spec.clean import ChecksSpec
from lepton_ray.spec.data import DataSpec

PROPERTY = settings(max_examples=150, deadline=None)
CATEGORY = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("us", "UTC")
pairs_of_codes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=14)


def chance_to_differ(classes):
    pairs = list(itertools.combinations(classes, 2))
    return sum(a != b for a, b in pairs) / len(pairs) if pairs else 0.0


def codes(rows):
    return (np.array([row[side] for row in rows], np.int64) for side in (0, 1))


@PROPERTY
@given(pairs_of_codes)
def test_association_by_value_against_counted_pairs(rows):
    overall = chance_to_differ([c for _, c in rows])
    groups = [[c for v, c in rows if v == value] for value in {v for v, _ in rows}]
    left = sum(len(group) * (chance_to_differ(group) if len(group) > 1 else overall) for group in groups) / len(rows)
    expected = max(0.0, 1 - left / overall) if overall else 0.0
    assert association_by_value(*codes(rows)) == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(pairs_of_codes)
def test_association_in_order_against_counted_neighbours(rows):
    """Expected changes between neighbours, over all orders of rows with equal values, by pairs of rows."""
    classes = [c for _, c in rows]
    expected = (len(rows) - 1) * chance_to_differ(classes)
    groups = [[c for v, c in rows if v == value] for value in sorted({v for v, _ in rows})]
    changes = sum((len(group) - 1) * chance_to_differ(group) for group in groups)
    for left, right in itertools.pairwise(groups):
        changes += sum(a != b for a, b in itertools.product(left, right)) / (len(left) * len(right))
    changes = max(0.0, changes - (len(set(classes)) - 1))
    wanted = min(1.0, max(0.0, 1 - changes / expected)) if expected else 0.0
    assert association_in_order(*codes(rows)) == pytest.approx(wanted, abs=1e-12)


@PROPERTY
@given(pairs_of_codes, st.randoms(use_true_random=False))
def test_associations_do_not_depend_on_order(rows, rng):
    shuffled = rng.sample(rows, len(rows))
    for association in (association_by_value, association_in_order):
        assert association(*codes(shuffled)) == pytest.approx(association(*codes(rows)), abs=1e-12)


def test_many_rare_values_and_noise_are_no_knowledge():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 2000)
    for values in (np.arange(2000), rng.integers(0, 900, 2000), np.zeros(2000, int)):
        assert association_by_value(values, classes) < 0.1
        assert association_in_order(values, classes) < 0.1


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_value_that_tells_the_class_is_fully_associated(num_classes):
    rng = np.random.default_rng(1)
    classes = rng.integers(0, num_classes, 1000)
    assert association_by_value(classes * 7, classes) == 1
    assert association_by_value(classes * 100 + rng.integers(0, 5, 1000), classes) == pytest.approx(1)
    noisy = np.argsort(np.argsort(classes + rng.random(1000) * 0.9))
    assert association_in_order(noisy, classes) == 1


def columns_of(**columns):
    return {**columns, "y": "category"}


def check(columns, cells, section=None, label="y", num_rows=None):
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "columns": columns, "label": label})
    kinds = {"number": pa.float64(), "category": CATEGORY, "text": pa.string(), "time": TIME, "ignored": pa.string()}
    table = pa.table({name: pa.array(cells[name], kinds[column.kind]) for name, column in data.columns.items()})
    return check_sample(table, data, ChecksSpec.model_validate(section or {}), num_rows)


RNG = random.Random(4)
LABELS = [RNG.choice(["no", "yes"]) for _ in range(400)]
NOISE = [RNG.gauss(0, 1) for _ in range(400)]
LEAKS = {
    "copied number": ("number", [1.0 if label == "yes" else 0.0 for label in LABELS]),
    "shifted number": ("number", [x + (100 if label == "yes" else 0) for label, x in zip(LABELS, NOISE, strict=True)]),
    "inside a band": ("number", [abs(x) * (-1) ** i if label == "yes" else 50 + x for i, (label, x) in enumerate(zip(LABELS, NOISE, strict=True))]),
    "renamed label": ("category", ["J" if label == "yes" else "N" for label in LABELS]),
    "finer label": ("category", [f"{label}{RNG.randrange(5)}" for label in LABELS]),
    "missing for one class": ("number", [x if label == "yes" else None for label, x in zip(LABELS, NOISE, strict=True)]),
    "missing category for one class": ("category", [RNG.choice("ab") if label == "yes" else None for label in LABELS]),
    "time after the fact": ("time", [1_700_000_000_000_000 + i + 10**12 * (label == "yes") for i, label in enumerate(LABELS)]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LEAKS))
def test_leaks_are_found(name):
    kind, values = LEAKS[name]
    found = check(columns_of(a=kind, b="number"), {"a": values, "b": NOISE, "y": LABELS})
    assert [finding.check for finding in found if finding.check != "identifier"] == ["leakage"]
    (leak,) = [finding for finding in found if finding.check == "leakage"]
    assert leak.place == "data.columns.a"
    assert leak.message.startswith(
        "data.columns.a must not give the label away (clean.checks.leakage.max_association 0.99), got an association of "
    )
    assert check(columns_of(a=kind, b="number"), {"a": values, "b": NOISE, "y": LABELS}, {"leakage": None}) == []


def test_strong_but_honest_features_are_no_leaks():
    good = [x + 2 * (label == "yes") for label, x in zip(LABELS, NOISE, strict=True)]
    same = ["J" if (label == "yes") != (RNG.random() < 0.05) else "N" for label in LABELS]
    cells = {"a": good, "b": same, "c": ["text"] * 400, "y": LABELS}
    assert check(columns_of(a="number", b="category"), cells) == []
    lowered = check(columns_of(a="number", b="category"), cells, {"leakage": {"max_association": 0.3}})
    assert [finding.place for finding in lowered] == ["data.columns.a", "data.columns.b"]


def test_few_rows_say_nothing():
    kind, values = LEAKS["renamed label"]
    assert check(columns_of(a=kind), {"a": values[:20], "y": LABELS[:20]}) == []


def test_imbalance():
    labels = ["a"] * 990 + ["b"] * 5 + ["it's"] * 5
    cells = {"x": [RNG.random() for _ in labels], "y": labels}
    (found,) = check(columns_of(x="number"), cells)
    assert found.message == (
        "each class of data.label (y) must have at least 1.00% of the rows (clean.checks.imbalance.min_class_fraction), got "
        "'b' 0.50%, \"it's\" 0.50%. Add rows, join classes or lower the limit."
    )
    (found,) = check(columns_of(x="number"), cells, {"imbalance": {"min_class_fraction": 0.0, "max_ratio": 100}})
    assert (
        "at most 100 times the rows of the smallest (clean.checks.imbalance.max_ratio), got 198 times" in found.message
    )
    assert check(columns_of(x="number"), cells, {"imbalance": None}) == []
    assert check(columns_of(x="number"), cells, {"imbalance": {"min_class_fraction": 0.005, "max_ratio": 198}}) == []


@pytest.mark.parametrize(
    ("kind", "values", "shown"),
    [
        ("number", [3.0] * 9, "only 3.0"),
        ("category", ["x"] * 9, "only 'x'"),
        ("text", ["x"] * 9, "only 'x'"),
        ("number", [None] * 9, "only missing values"),
        ("category", [None] * 9, "only missing values"),
        ("number", [3.0] * 8 + [None], None),
        ("category", ["x"] * 8 + [""], None),
    ],
)
def test_constant_columns(kind, values, shown):
    found = check(columns_of(a=kind), {"a": values, "y": ["p", "q", "r"] * 3})
    assert [finding.message for finding in found] == (
        [f"data.columns.a must hold different values to be of use, got {shown}. Make it ignored."] if shown else []
    )
    assert check(columns_of(a=kind), {"a": values, "y": ["p", "q", "r"] * 3}, {"constant_columns": False}) == []


def test_identifiers():
    numbers = list(range(1000, 1400))
    shuffled = RNG.sample(numbers, 400)
    names = [f"row {i}" for i in range(400)]
    columns = columns_of(a="number", b="category", c="number", d="text", e="number")
    cells = {"a": shuffled, "b": names, "c": NOISE, "d": names, "e": [i * 1000 for i in range(400)], "y": LABELS}
    found = check(columns, cells)
    assert [(finding.check, finding.place) for finding in found] == [
        ("identifier", "data.columns.a"),
        ("identifier", "data.columns.b"),
    ]
    sampled = {**cells, "e": RNG.sample(range(10_000), 400)}
    assert [finding.place for finding in check(columns, sampled, num_rows=10_000)] == [
        "data.columns.a",
        "data.columns.b",
        "data.columns.e",
    ]


def test_without_a_label_only_columns_are_looked_at():
    found = check({"a": "number", "b": "number"}, {"a": [1.0, 1.0], "b": [1.0, 2.0]}, label=None)
    assert [finding.check for finding in found] == ["constant"]


@pytest.mark.parametrize("rows", [0, 1, 60])
def test_any_number_of_rows_of_any_kind(rows):
    columns = {
        "a": "number",
        "b": "category",
        "c": "text",
        "d": "time",
        "i": {"kind": "image", "height": 1, "width": 1},
        "s": {"kind": "series", "length": 2},
        "y": "category",
    }
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "columns": columns, "label": "y"})
    table = pa.table(
        {
            "a": pa.array([1e308, -1e308, None] * rows, pa.float64())[:rows],
            "b": pa.array(["", "\x00", None] * rows, pa.string())[:rows],
            "c": pa.array(["x"] * rows, pa.string()),
            "d": pa.array([-(2**62), 2**62, None] * rows, TIME)[:rows],
            "i": pa.array([b"abc"] * rows, pa.binary()),
            "s": pa.array([[1.0, None]] * rows, pa.list_(pa.float64(), 2)),
            "y": pa.array(["p", "q", "r", "s"] * rows, pa.string())[:rows],
        }
    )
    found = check_sample(table, data, ChecksSpec())
    assert [finding.place for finding in found] == (["data.columns.c"] if rows > 1 else [])


def test_stop_lists_all():
    stop_on([])
    found = check(columns_of(a="number", b="number"), {"a": [1.0] * 3, "b": [2.0] * 3, "y": ["p", "q", "r"]})
    with pytest.raises(
        DataError, match=r"(?s)clean\.checks must find nothing \(action: stop\), got:.*columns\.a .*columns\.b "
    ):
        stop_on(found)


def test_a_large_sample_is_looked_at_in_part_whatever_its_order(monkeypatch):
    monkeypatch.setattr(checks, "MAX_ROWS", 100)
    kind, values = LEAKS["shifted number"]
    blurred = [x if RNG.random() < 0.7 else -x for x in values]
    order = RNG.sample(range(400), 400)
    cells = {"a": blurred, "b": NOISE, "y": LABELS}
    found = check(columns_of(a=kind, b="number"), cells, {"leakage": {"max_association": 0.05}})
    shuffled = {name: [column[i] for i in order] for name, column in cells.items()}
    assert found
    assert check(columns_of(a=kind, b="number"), shuffled, {"leakage": {"max_association": 0.05}}) == found


def test_associations_of_a_large_sample_with_many_classes_take_little_memory():
    rng = np.random.default_rng(2)
    classes, ranks = rng.integers(0, 5000, 200_000), rng.permutation(200_000)
    assert math.isclose(association_in_order(ranks, classes), 0, abs_tol=0.05)


def check_tags(cells, tags, left_out=()):
    columns = {"c": "category", "y": "tags"}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "columns": columns, "label": "y"})
    table = pa.table({"c": pa.array(cells, CATEGORY), "y": pa.array(tags, CATEGORY)})
    return check_sample(table, data, ChecksSpec(), left_out=left_out)


def test_a_column_that_gives_one_tag_away_is_found():
    rng = random.Random(5)
    tags = ["|".join(tag for tag in "abc" if rng.random() < 0.5) for _ in range(400)]
    copied = ["yes" if "b" in row else "no" for row in tags]
    (found,) = check_tags(copied, tags)
    assert (found.check, found.place) == ("leakage", "data.columns.c")
    assert check_tags([rng.choice("xyz") for _ in tags], tags) == []


def test_a_rare_tag_is_found_unless_it_is_no_class():
    rng = random.Random(6)
    tags = [rng.choice(["a", "b", "a|b"]) for _ in range(399)] + ["a|odd"]
    cells = [rng.choice("xyz") for _ in tags]
    (found,) = check_tags(cells, tags)
    assert found.check == "imbalance"
    assert "got 'odd' 0.25%" in found.message
    assert check_tags(cells, tags, left_out=["odd"]) == []


@pytest.mark.parametrize(("split", "places"), [({}, ["data.split.by"]), ({"by": "day"}, [])])
def test_windows_that_are_split_at_random_are_told(split, places):
    data = DataSpec.model_validate(
        {
            "source": {"kind": "csv", "uri": "x"},
            "columns": {"day": "time", "sold": "number"},
            "windows": {"past": {"value": "sold", "time": "day", "length": 3}},
            "label": "sold",
            "split": split,
        }
    )
    table = pa.table({"day": [1, 2], "sold": [3.0, 4.0]})
    found = check_sample(table, data, ChecksSpec(constant_columns=False))
    assert [one.place for one in found if one.check == "leakage"] == places
    assert all("Set it to day." in one.message for one in found)
    assert not check_sample(table, data, ChecksSpec(constant_columns=False, leakage=None))
