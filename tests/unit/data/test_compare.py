"""Differences of profiles: known shifts are found, with the size that SciPy gives them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy.stats import ks_2samp

from lepton_ray.artifacts.profile import Profile
from lepton_ray.data.compare import ColumnDifference, Difference, Side, compare
from lepton_ray.data.profile import profile
from lepton_ray.spec.data import Column

_COLUMNS: TypeAdapter[dict[str, Column]] = TypeAdapter(dict[str, Column])


def _side(columns: dict[str, Any], **values: Any) -> Side:
    table = pa.table({name: pa.array(column) for name, column in values.items()})
    return Side.of(profile(table, _COLUMNS.validate_python(columns), table.num_rows))


def _numbers(before: Any, after: Any) -> ColumnDifference:
    sides = [_side({"x": "number"}, x=np.asarray(values, float)) for values in (before, after)]
    return compare(*sides).columns[0]


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 2.0, 10.0])
def test_ks_agrees_with_scipy_on_many_values(shift: float) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=5000), rng.normal(shift, 1, 4000)
    found = _numbers(before, after)
    assert found.measure == "ks"
    assert found.distance == pytest.approx(ks_2samp(before, after).statistic, abs=0.01)
    assert found.mean_after is not None
    assert found.mean_after == pytest.approx(after.mean())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=60), st.lists(st.integers(-9, 9), min_size=1, max_size=60))
def test_ks_is_exact_on_few_values(before: list[int], after: list[int]) -> None:
    shares = [(np.array(values) <= np.arange(-10, 10)[:, None]).mean(axis=1) for values in (before, after)]
    assert _numbers(before, after).distance == pytest.approx(np.abs(shares[0] - shares[1]).max())
    assert _numbers(before, before).distance == 0


def test_ks_with_heavy_ties_beside_many_values() -> None:
    rng = np.random.default_rng(1)
    before = np.concatenate([rng.random(3000), np.zeros(4000)])
    after = np.concatenate([rng.random(3000), np.zeros(1000), np.full(2000, 0.5)])
    assert _numbers(before, after).distance == pytest.approx(ks_2samp(before, after).statistic, abs=0.01)


def _psi(before: np.ndarray, after: np.ndarray) -> float:
    edges = np.quantile(before, np.arange(0.1, 0.95, 0.1))
    shares = [np.bincount(np.searchsorted(edges, values), minlength=10) / len(values) for values in (before, after)]
    expected, actual = np.maximum(shares[0], 1e-4), np.maximum(shares[1], 1e-4)
    return float(np.sum((actual - expected) * np.log(actual / expected)))


@pytest.mark.parametrize(("shift", "level"), [(0.0, "none"), (0.35, "small"), (1.0, "large"), (9.0, "large")])
def test_psi_is_over_the_deciles_of_before(shift: float, level: str) -> None:
    rng = np.random.default_rng(2)
    before, after = rng.normal(size=20_000), rng.normal(shift, 1, 20_000)
    found = _numbers(before, after)
    assert found.psi == pytest.approx(_psi(before, after), abs=0.03, rel=0.05)
    assert found.level == level


def test_a_constant_that_moves_has_nothing_in_common() -> None:
    found = _numbers([5.0] * 10, [6.0] * 10)
    assert found.distance == 1.0
    assert found.level == "large"
    assert _numbers([5.0] * 10, [5.0] * 30).distance == 0


def test_categories_unseen_and_total_variation() -> None:
    before = _side({"c": "category"}, c=["a"] * 50 + ["b"] * 50)
    after = _side({"c": "category"}, c=["a"] * 50 + ["b"] * 20 + ["new"] * 20 + ["newer"] * 10)
    found = compare(before, after).columns[0]
    assert found.measure == "total_variation"
    assert found.distance == pytest.approx(0.3)
    assert found.unseen == ("new", "newer")
    assert found.unseen_fraction == pytest.approx(0.3)


def test_more_categories_than_a_profile_keeps() -> None:
    names = [f"c{index:04d}" for index in range(1000)]
    before = _side({"c": "category"}, c=names)
    after = _side({"c": "category"}, c=[*names, *["new"] * 200])
    found = compare(before, after).columns[0]
    assert found.unseen_fraction is None
    assert found.distance == pytest.approx(200 / 1200, abs=0.05)


def _compare(before: dict[str, Any], after: dict[str, Any], kinds: dict[str, str]) -> Difference:
    return compare(*(_side({n: k for n, k in kinds.items() if n in values}, **values) for values in (before, after)))


def test_changed_schemas_come_first() -> None:
    number = [1.0, 2.0, 3.0, 4.0]
    sides = [
        _side({"same": "number", "gone": "number", "kind": "category"}, same=number, gone=number, kind=list("abcd")),
        _side(
            {"same": "number", "new": "number", "kind": "number"},
            same=[*number, 4.0],
            new=[*number, 4.0],
            kind=[*number, 1.0],
        ),
    ]
    found = compare(*sides)
    assert [(column.name, column.change) for column in found.columns] == [
        ("gone", "removed"),
        ("kind", "kind"),
        ("new", "added"),
        ("same", "none"),
    ]
    assert (found.rows.before, found.rows.after) == (4, 5)
    assert found.is_same is None
    assert (found.columns[1].kind_before, found.columns[1].kind_after) == ("category", "number")


def test_missing_values_that_appear_are_a_change() -> None:
    before = {"x": [1.0] * 100, "y": [1.0] * 100}
    after = {"x": [1.0] * 60 + [None] * 40, "y": [1.0] * 100}
    found = _compare(before, after, {"x": "number", "y": "number"})
    assert [column.name for column in found.columns] == ["x", "y"]
    assert found.columns[0].missing_after == pytest.approx(0.4)
    assert found.columns[0].size == pytest.approx(0.4)
    assert found.columns[0].level == "large"
    assert found.columns[1].level == "none"


def test_all_missing_on_one_side_or_both() -> None:
    empty = pa.array([None, None], pa.float64())
    full = pa.array([1.0, 2.0])
    texts = pa.array([None, None], pa.string())
    assert _compare({"x": empty}, {"x": full}, {"x": "number"}).columns[0].distance == 1.0
    assert _compare({"x": empty}, {"x": empty}, {"x": "number"}).columns[0].distance is None
    assert _compare({"x": texts}, {"x": pa.array(["a", "b"])}, {"x": "category"}).columns[0].distance == 1.0


def test_texts_by_length_and_times_by_seconds() -> None:
    times = [pa.array(np.arange(100) * 86_400_000_000 + shift, pa.timestamp("us", "UTC")) for shift in (0, 10**15)]
    before = {"t": pa.array(["word"] * 100), "when": times[0]}
    after = {"t": pa.array(["word and another"] * 100), "when": times[1]}
    found = _compare(before, after, {"t": "text", "when": "time"})
    assert [column.distance for column in found.columns] == [1.0, 1.0]


def test_a_difference_is_json() -> None:
    found = _compare({"x": [1.0, 2.0]}, {"x": [2.0, 3.0]}, {"x": "number"})
    facts: Any = found.to_json()
    assert facts["columns"][0]["level"] == "large"
    assert facts["rows"] == {"before": 2, "after": 2}


def test_profiles_of_samples_compare_all_rows() -> None:
    table = pa.table({"x": [1.0, 2.0]})
    columns = _COLUMNS.validate_python({"x": "number"})
    sides = [Side.of(profile(table, columns, total)) for total in (100, 200)]
    found = compare(*sides)
    assert (found.rows.before, found.rows.after) == (100, 200)
    assert isinstance(sides[0].profile, Profile)


def test_tags_differ_as_much_as_the_tag_that_differs_most() -> None:
    before = _side({"t": "tags"}, t=["a|b"] * 50 + ["b"] * 50)
    after = _side({"t": "tags"}, t=["a|b"] * 60 + ["b|new"] * 20 + [""] * 20)
    found = compare(before, after).columns[0]
    assert found.measure == "greatest_share"
    assert found.distance == pytest.approx(0.2)
    assert found.unseen == ("new",)
    assert compare(before, before).columns[0].distance == 0


@pytest.mark.parametrize(
    ("shares", "level"),
    [
        ((0.5, 0.5), "none"),
        ((0.54, 0.46), "none"),
        ((0.56, 0.44), "small"),  # by distance
        ((0.7, 0.3), "large"),  # by distance, at a PSI of 0.17
        ((0.48, 0.48, 0.04), "small"),  # by PSI: 0.04 are of a new value
        ((0.47, 0.47, 0.06), "large"),  # by PSI, at a distance of 0.06
    ],
)
def test_a_level_comes_from_the_distance_or_from_psi(shares: tuple[float, ...], level: str) -> None:
    sides = [
        _side(
            {"c": "category"},
            c=[name for name, share in zip("abc", of, strict=False) for _ in range(round(share * 100))],
        )
        for of in ((0.5, 0.5), shares)
    ]
    assert compare(*sides).columns[0].level == level
