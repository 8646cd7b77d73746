"""The profile of a table, against NumPy, pandas and SciPy, on anything that a typed table may hold."""

import math
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from lepton_ray.artifacts.profile import QUANTILES, Distribution, Profile, share_between
from lepton_ray.data.profile import profile
from lepton_ray.spec.data import Column

_COLUMNS: TypeAdapter[dict[str, Column]] = TypeAdapter(dict[str, Column])
_FEW = settings(max_examples=60, deadline=None)
_number = st.one_of(
    st.none(),
    st.integers(-5, 5).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1.7e308, -1.7e308, 5e-324, -0.0, 0.1]),
)
_text = st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["", " ", "a b", "<b>"]))


def _profile(columns: dict[str, Any], rows_total: int | None = None, **arrays: Any) -> Profile:
    table = pa.table(
        {
            name: array if isinstance(array, pa.Array | pa.ChunkedArray) else pa.array(array)
            for name, array in arrays.items()
        }
    )
    return profile(table, _COLUMNS.validate_python(columns), table.num_rows if rows_total is None else rows_total)


def _floats(values: Any) -> pa.Array:
    return pa.array(values, pa.float64())


@_FEW
@given(st.lists(_number, max_size=60))
def test_numbers_agree_with_numpy(values: list[float | None]) -> None:
    facts: Any = _profile({"x": "number"}, x=_floats(values)).columns["x"]
    present = np.array([v for v in values if v is not None])
    assert (facts.count, facts.missing) == (len(present), len(values) - len(present))
    assert facts.distinct == len(set(present.tolist()))
    assert (facts.zeros, facts.negative) == (int((present == 0).sum()), int((present < 0).sum()))
    if not len(present):
        assert facts.numbers is None
        return
    summary = facts.numbers
    part = present / 64  # the sum of so many must not overflow
    tiny = max(np.abs(part).max() * 1e-12, 1e-323)
    assert summary.mean / 64 == pytest.approx(part.mean(), rel=1e-9, abs=tiny)
    for name, level in QUANTILES.items():
        assert summary.quantiles[name] / 64 == pytest.approx(np.quantile(part, level), rel=1e-9, abs=tiny)
    if len(present) == 1:
        assert summary.std is None
    elif np.abs(present).max() < 1e150:
        assert summary.std == pytest.approx(present.std(ddof=1), rel=1e-6, abs=np.abs(present).max() * 1e-12)
    assert summary.std is None or math.isfinite(summary.std)


@_FEW
@given(st.lists(_number, max_size=60))
def test_a_histogram_counts_each_number_once(values: list[float | None]) -> None:
    facts: Any = _profile({"x": "number"}, x=_floats(values)).columns["x"]
    if facts.numbers is None:
        return
    histogram = facts.numbers.histogram
    present = np.sort([v for v in values if v is not None])
    edges = np.array(histogram.edges)
    assert len(edges) == len(histogram.counts) + 1 <= 32
    assert np.all(np.diff(edges / 2) >= 0)
    assert histogram.below + sum(histogram.counts) + histogram.above == len(present)
    if np.all(np.diff(edges) > 0) and np.abs(present).max() < 1e150:
        counts, _ = np.histogram(present, edges)
        assert list(histogram.counts) == counts.tolist()
        assert histogram.below == int((present < edges[0]).sum())


def test_whole_numbers_have_bins_of_whole_width() -> None:
    facts: Any = _profile({"x": "number"}, x=_floats(np.arange(1000) % 100)).columns["x"]
    widths = set(np.diff(facts.numbers.histogram.edges).tolist())
    assert widths == {4.0}
    assert set(facts.numbers.histogram.counts[:-1]) == {40}


def test_far_values_do_not_squeeze_the_others_into_one_bin() -> None:
    values = np.append(np.random.default_rng(0).normal(size=999), 1e12)
    facts: Any = _profile({"x": "number"}, x=_floats(values)).columns["x"]
    assert max(facts.numbers.histogram.counts) < 150
    assert facts.numbers.histogram.above >= 1


def test_nan_and_infinity_count_as_missing() -> None:
    facts: Any = _profile({"x": "number"}, x=_floats([1.0, float("nan"), float("inf"), -float("inf"), None])).columns[
        "x"
    ]
    assert (facts.count, facts.missing, facts.numbers.mean) == (1, 4, 1.0)


@_FEW
@given(
    st.lists(st.floats(-100, 100).map(lambda v: round(v, 1)), min_size=1, max_size=150),
    st.lists(st.floats(-120, 120), max_size=20),
)
def test_a_distribution_of_few_values_is_exact(values: list[float], points: list[float]) -> None:
    facts: Any = _profile({"x": "number"}, x=_floats(values)).columns["x"]
    distribution: Distribution = facts.numbers.distribution
    array, at = np.array(values), np.array(points + values)
    known = np.isin(at, array)  # between values, rows are taken as spread evenly: there are none
    assert distribution.share_through(at) == pytest.approx((array <= at[:, None]).mean(axis=1))
    assert distribution.share_below(at) == pytest.approx((array < at[:, None]).mean(axis=1))
    assert known.sum() >= len(values)


def test_a_distribution_of_many_values_is_right_to_half_a_percent() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.lognormal(size=20_000), np.full(3_000, 1.0), -rng.random(500)])
    facts: Any = _profile({"x": "number"}, x=_floats(values)).columns["x"]
    points = np.concatenate([rng.choice(values, 500), rng.random(500) * 5])
    distribution = facts.numbers.distribution
    assert len(distribution.values) <= 200
    through = (values <= points[:, None]).mean(axis=1)
    below = (values < points[:, None]).mean(axis=1)
    assert np.abs(distribution.share_through(points) - through).max() < 0.005
    assert np.abs(distribution.share_below(points) - below).max() < 0.005
    edges = [0.0, 0.5, 1.0, 2.0, 50.0]
    counts, _ = np.histogram(values, edges)
    assert share_between(distribution, edges) == pytest.approx(counts / len(values), abs=0.01)


@_FEW
@given(st.lists(_text, max_size=40), st.booleans())
def test_categories_agree_with_a_counter(values: list[str | None], encoded: bool) -> None:
    array = pa.array(values, pa.string())
    facts: Any = _profile({"c": "category"}, c=array.dictionary_encode() if encoded else array).columns["c"]
    counts = Counter(value for value in values if value is not None)
    assert (facts.count, facts.missing, facts.distinct) == (counts.total(), len(values) - counts.total(), len(counts))
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0].encode()))
    assert [(item.value, item.count) for item in facts.top] == expected
    assert facts.is_complete


def test_dictionaries_may_differ_between_chunks_repeat_values_and_hold_null() -> None:
    first = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None]), pa.array(["a", "b", "a"]))
    second = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array([None, "b"], pa.string()))
    facts: Any = _profile({"c": "category"}, c=pa.chunked_array([first, second])).columns["c"]
    assert (facts.count, facts.missing, facts.distinct) == (5, 2, 2)
    assert [(item.value, item.count) for item in facts.top] == [("b", 3), ("a", 2)]


def test_many_and_long_categories_are_cut_short() -> None:
    values = [f"{'x' * 500}{index}" for index in range(1000)] + ["often"] * 3
    facts: Any = _profile({"c": "category"}, c=values).columns["c"]
    assert (len(facts.top), facts.distinct, facts.is_complete) == (200, 1001, False)
    assert facts.top[0].value == "often"
    shown = [item.value for item in facts.top]
    assert len(set(shown)) == 200
    assert max(map(len, shown)) <= 120


@_FEW
@given(st.lists(_text, max_size=30))
def test_texts_agree_with_python(values: list[str | None]) -> None:
    facts: Any = _profile({"t": "text"}, t=pa.array(values, pa.string())).columns["t"]
    present = [value for value in values if value is not None]
    assert (facts.count, facts.missing, facts.distinct) == (len(present), len(values) - len(present), len(set(present)))
    if present:
        assert facts.lengths.quantiles["100%"] == max(map(len, present))
        assert facts.lengths.mean == pytest.approx(np.mean([len(value) for value in present]))
    spaces = [value for value in present if not value.strip("\t\n\r\x0b\x0c ")]
    assert facts.empty >= len(spaces)


@_FEW
@given(st.lists(st.text("aAßÉé дД中1_-'\n😀", max_size=12), max_size=20))
def test_words_are_counted_once_a_text(values: list[str]) -> None:
    facts: Any = _profile({"t": "text"}, t=pa.array(values, pa.string())).columns["t"]
    words = Counter(word for text in set(values) for word in set(re.findall(r"[^\W_]+", text.lower())))
    assert {item.value: item.count for item in facts.words} == dict(words)
    assert facts.words_of == len(set(values))


def test_many_texts_are_sampled_by_hash() -> None:
    texts = [f"word{index % 7} text {index}" for index in range(60_000)]
    facts: Any = _profile({"t": "text"}, t=texts).columns["t"]
    assert facts.words_of == 20_000
    assert facts.distinct == 60_000
    counts = {item.value: item.count for item in facts.words}
    assert counts["text"] == 20_000
    assert counts["word3"] == pytest.approx(20_000 / 7, rel=0.1)
    again: Any = _profile({"t": "text"}, t=texts[::-1]).columns["t"]
    assert again == facts


@_FEW
@given(st.lists(st.one_of(st.none(), st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))), max_size=30))
def test_times_agree_with_python(values: list[datetime | None]) -> None:
    array = pa.array(values, pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    facts: Any = _profile({"t": "time"}, t=array).columns["t"]
    present = sorted(value for value in values if value is not None)
    assert (facts.count, facts.distinct) == (len(present), len(set(present)))
    if not present:
        assert facts.first is facts.last is facts.seconds is None
        return
    epoch = datetime(1970, 1, 1)
    assert datetime.fromisoformat(facts.first) == present[0].replace(tzinfo=UTC)
    assert datetime.fromisoformat(facts.last) == present[-1].replace(tzinfo=UTC)
    assert facts.seconds.quantiles["0%"] == pytest.approx((present[0] - epoch).total_seconds())
    gaps = [later - earlier for earlier, later in zip(sorted(set(present)), sorted(set(present))[1:], strict=False)]
    if gaps:
        longest = max(gaps)
        assert facts.longest_gap_s == pytest.approx(longest.total_seconds())
        assert datetime.fromisoformat(facts.longest_gap_after).replace(tzinfo=None) + longest in present
        assert facts.median_gap_s == pytest.approx(float(np.median([gap.total_seconds() for gap in gaps])))


def test_the_longest_gap_of_all_does_not_overflow() -> None:
    array = pa.array([-(2**63) + 1, 2**63 - 1], pa.int64()).cast(pa.timestamp("us", "UTC"))
    facts: Any = _profile({"t": "time"}, t=array).columns["t"]
    assert facts.longest_gap_s == pytest.approx(2**64 / 1e6)


def test_series_and_their_elements() -> None:
    array = pa.array([[1.0, 2.0], [None, 4.0], None, [1.0, 2.0]], pa.list_(pa.float64(), 2))
    facts: Any = _profile({"s": {"kind": "series", "length": 2}}, s=array).columns["s"]
    assert (facts.count, facts.missing, facts.distinct, facts.missing_elements) == (3, 1, 2, 1)
    assert facts.elements.mean == pytest.approx(np.mean([1, 2, 4, 1, 2]))


def test_images_agree_with_numpy() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (50, 4, 5, 3), np.uint8)
    array = pa.array([*(image.tobytes() for image in pixels), pixels[0].tobytes()], pa.binary())
    kind = {"kind": "image", "height": 4, "width": 5}
    facts: Any = _profile({"i": kind}, i=array).columns["i"]
    seen = np.concatenate([pixels, pixels[:1]])
    assert facts.shape == (4, 5, 3)
    assert facts.distinct == 50
    assert facts.channel_means == pytest.approx(seen.mean(axis=(0, 1, 2)))
    assert facts.channel_stds == pytest.approx(seen.std(axis=(0, 1, 2)))
    assert facts.brightness.mean == pytest.approx(seen.mean())
    empty: Any = _profile({"i": kind}, i=array[:0]).columns["i"]
    assert (empty.count, empty.channel_means, empty.brightness) == (0, (), None)


def _mixed(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows) * 10.0 ** rng.integers(-3, 4)
    groups = rng.choice(["a", "b", "c", "d"], rows)
    other = np.where(rng.random(rows) < 0.5, groups, rng.choice(["p", "q"], rows))
    y = x * 0.3 + rng.normal(size=rows) + (groups == "b") * 2
    texts = [f"text {int(value) % 9} of {group}" for value, group in zip(x, groups, strict=True)]
    missing = rng.random((rows, 3)) < 0.1
    return pa.table(
        {
            "x": pa.array(x),
            "y": pa.array(y, mask=missing[:, 0]),
            "z": pa.array(np.round(y), mask=missing[:, 0] & missing[:, 1]),
            "far": pa.array(rng.standard_cauchy(rows) * 1e6),
            "group": pa.array(groups, mask=missing[:, 1]).dictionary_encode(),
            "other": pa.array(other),
            "text": pa.array(texts, pa.string(), mask=missing[:, 2]),
            "time": pa.array((x * 1e9).astype(np.int64), mask=missing[:, 2]).cast(pa.timestamp("us", "UTC")),
            "id": pa.array([str(index) for index in range(rows)], pa.string()),
        }
    )


_MIXED = _COLUMNS.validate_python(
    {"x": "number", "y": "number", "z": "number", "far": "number", "group": "category", "other": "category"}
    | {"text": "text", "time": "time", "id": "ignored"}
)


def test_correlations_agree_with_pandas() -> None:
    table = _mixed(3000, 0)
    seen = profile(table, _MIXED, 3000)
    assert seen.pearson is not None
    expected = table.select(list(seen.pearson.columns)).to_pandas().corr(min_periods=2)
    assert np.array(seen.pearson.values, float) == pytest.approx(expected.to_numpy(), abs=1e-4)


@_FEW
@given(st.lists(st.tuples(_number, _number), min_size=2, max_size=40))
def test_pearson_on_any_numbers(pairs: list[tuple[float | None, float | None]]) -> None:
    left, right = zip(*pairs, strict=True)
    seen = _profile({"a": "number", "b": "number"}, a=_floats(left), b=_floats(right))
    both = np.array([pair for pair in pairs if None not in pair])
    if seen.pearson is None:
        return
    value = seen.pearson.values[0][1]
    assert value is None or -1 <= value <= 1
    if (
        len(both) > 2
        and 1e-100 < np.abs(both).max() < 1e100
        and (np.ptp(both, axis=0) > np.abs(np.array([p for p in left + right if p is not None])).max() * 1e-3).all()
    ):
        assert value == pytest.approx(np.corrcoef(both.T)[0, 1], abs=2e-3)


def test_pearson_of_numbers_far_from_0_and_of_huge_ones() -> None:
    x = np.arange(100.0)
    far, huge = 1e15 + x * 4, np.where(x < 50, -1.6e308, 1.6e308) + x
    seen = _profile(
        {"x": "number", "far": "number", "huge": "number"}, x=_floats(x), far=_floats(far), huge=_floats(huge)
    )
    assert seen.pearson is not None
    assert seen.pearson.values[0][1] == pytest.approx(1.0, abs=1e-4)
    assert seen.pearson.values[0][2] == pytest.approx(np.corrcoef(x, x >= 50)[0, 1], abs=1e-4)


def _bergsma(left: pd.Series, right: pd.Series) -> float:
    counts = pd.crosstab(left, right).to_numpy()
    total = counts.sum()
    phi2 = stats.chi2_contingency(counts, correction=False).statistic / total
    rows, columns = counts.shape
    phi2 = max(0, phi2 - (rows - 1) * (columns - 1) / (total - 1))
    rows, columns = (size - (size - 1) ** 2 / (total - 1) for size in (rows, columns))
    return float(np.sqrt(phi2 / (min(rows, columns) - 1)))


def test_cramers_v_agrees_with_scipy() -> None:
    table = _mixed(2000, 1)
    seen = profile(table, _MIXED, 2000)
    assert seen.cramers_v is not None
    frame = table.to_pandas()
    assert seen.cramers_v.columns == ("group", "other")
    assert seen.cramers_v.values[0][1] == pytest.approx(
        _bergsma(frame["group"].astype(str).where(frame["group"].notna()), frame["other"]), abs=1e-4
    )
    assert seen.cramers_v.values[0][0] == 1.0


def test_the_correlation_ratio_agrees_with_pandas() -> None:
    table = _mixed(2000, 2)
    seen = profile(table, _MIXED, 2000)
    assert seen.correlation_ratio is not None
    frame = table.to_pandas()
    for i, group in enumerate(seen.correlation_ratio.rows):
        for j, name in enumerate(seen.correlation_ratio.columns):
            pairs = frame[[group, name]].dropna()
            values = pairs[name].groupby(pairs[group].astype(str))
            within = values.apply(lambda v: ((v - v.mean()) ** 2).sum()).sum()
            squares = ((pairs[name] - pairs[name].mean()) ** 2).sum()
            total, groups = len(pairs), values.ngroups
            expected = np.sqrt(max(0, 1 - within / squares * (total - 1) / (total - groups)))
            assert seen.correlation_ratio.values[i][j] == pytest.approx(expected, abs=5e-3), (group, name)


def test_chance_alone_associates_nothing() -> None:
    rng = np.random.default_rng(3)
    groups = [[f"g{i}" for i in rng.integers(0, 100, 500)] for _ in range(2)]
    seen = _profile(
        {"a": "category", "b": "category", "x": "number"}, a=groups[0], b=groups[1], x=_floats(rng.normal(size=500))
    )
    assert seen.cramers_v is not None
    assert seen.correlation_ratio is not None
    assert seen.cramers_v.values[0][1] < 0.15  # without correction 0.45
    assert max(value or 0 for row in seen.correlation_ratio.values for value in row) < 0.25


def test_missing_values_agree_with_pandas() -> None:
    table = _mixed(1000, 4)
    seen = profile(table, _MIXED, 1000)
    missing = table.to_pandas().isna()
    counts = missing.sum(axis=1).value_counts()
    assert {number: count for number, count in enumerate(seen.missing_per_row) if count} == counts.to_dict()
    assert seen.complete_rows == counts[0]
    assert seen.missing_together is not None
    expected = missing[list(seen.missing_together.rows)].astype(float).corr()
    assert np.array(seen.missing_together.values, float) == pytest.approx(expected.to_numpy(), abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 400), st.integers(0, 1000), st.integers(1, 7))
def test_neither_order_nor_chunks_change_anything(rows: int, seed: int, num_chunks: int) -> None:
    table = _mixed(rows, seed)
    rng = np.random.default_rng(seed)
    shuffled = table.take(pa.array(rng.permutation(rows)))
    cuts = sorted(rng.integers(0, rows + 1, num_chunks).tolist())
    bounds = zip([0, *cuts], [*cuts, rows], strict=True)
    chunked = pa.concat_tables(
        [pa.table({n: shuffled.slice(a, b - a)[n].combine_chunks() for n in table.column_names}) for a, b in bounds]
    )
    assert profile(chunked, _MIXED, rows) == profile(table, _MIXED, rows)


def test_sums_over_several_blocks_are_exact_in_any_order() -> None:
    rows = 300_000  # more than one chunk of rows
    rng = np.random.default_rng(5)
    table = pa.table(
        {"a": rng.lognormal(3, 2, rows), "b": rng.standard_cauchy(rows), "c": pa.array(rng.choice(list("xyz"), rows))}
    )
    columns = _COLUMNS.validate_python({"a": "number", "b": "number", "c": "category"})
    seen = profile(table, columns, rows)
    assert profile(table.take(pa.array(rng.permutation(rows))), columns, rows) == seen


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows: int) -> None:
    seen = profile(_mixed(rows, 0), _MIXED, rows)
    assert list(seen.columns) == list(_MIXED)
    assert seen.rows == rows
    assert seen.pearson is None or seen.pearson.values[0][1] is None
    assert Profile.read(seen.model_dump_json()) == seen


def test_constant_columns_have_no_correlation() -> None:
    seen = _profile(
        {"a": "number", "b": "number", "c": "category"}, a=_floats([0.1] * 9), b=_floats(range(9)), c=["x"] * 9
    )
    facts: Any = seen.columns["a"]
    assert (facts.numbers.mean, facts.numbers.std, facts.distinct) == (0.1, 0.0, 1)
    assert facts.numbers.histogram.counts == (9,)
    assert seen.pearson is seen.cramers_v is seen.correlation_ratio is None


def test_a_profile_reads_back_and_stays_small() -> None:
    columns = _COLUMNS.validate_python({f"c{index}": "number" for index in range(500)})
    rng = np.random.default_rng(0)
    table = pa.table({name: rng.normal(size=300) for name in columns})
    seen = profile(table, columns, 5000)
    text = seen.model_dump_json()
    assert Profile.read(text) == seen
    assert seen.is_sample
    assert len(text) < 2.5e6
    assert seen.pearson is not None
    assert len(seen.pearson.rows) == 30


def test_columns_keep_their_order_and_those_not_there_are_left_out() -> None:
    seen = _profile({"b": "number", "none": "number", "a": "number"}, a=_floats([1]), b=_floats([2]), _line=[3])
    assert list(seen.columns) == ["b", "a"]


def test_many_rows_of_one_gap() -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    array = pa.array([start + timedelta(hours=hour) for hour in (0, 1, 2, 9, 10)], pa.timestamp("us", "UTC"))
    facts: Any = _profile({"t": "time"}, t=array).columns["t"]
    assert (facts.median_gap_s, facts.longest_gap_s, facts.longest_gap_after) == (
        3600,
        7 * 3600,
        "2024-01-01T02:00:00Z",
    )


def test_tags_are_counted_in_the_rows_that_have_them() -> None:
    cells = pa.array(["a|b", "b", "", None, "a|b|c", "b"]).dictionary_encode()
    facts: Any = _profile({"t": "tags"}, t=pa.chunked_array([cells[:2], cells[2:]])).columns["t"]
    assert (facts.count, facts.missing, facts.distinct) == (5, 1, 3)
    assert [(item.value, item.count) for item in facts.top] == [("b", 4), ("a", 2), ("c", 1)]
    assert facts.sizes.mean == pytest.approx(1.4)
    assert facts.sizes.quantiles["0%"] == 0
    empty: Any = _profile({"t": "tags"}, t=cells[3:4]).columns["t"]
    assert (empty.count, empty.top, empty.sizes) == (0, (), None)
