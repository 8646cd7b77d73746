"""Bounds of outliers against pandas, SciPy and exact fractions; groups, order, values at the ends of float64."""

import math
import statistics

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from lepton_ray.data.outliers import (
    MIN_GROUP_ROWS,
    Bounds,
    FittedOutliers,
    find_outliers,
    fit_bounds,
    fit_outliers,
    outlier_columns,
)
from lepton_ray.spec.clean import OutlierSpec
from lepton_ray.spec.data import DataSpec

PROPERTY = settings(max_examples=150, deadline=None)
RULES = {
    "iqr": OutlierSpec(method="iqr", threshold=1.5),
    "z_score": OutlierSpec(method="z_score", threshold=2.0),
    "mad": OutlierSpec(method="mad", threshold=3.5),
    "quantile": OutlierSpec(method="quantile", low=0.05, high=0.9),
}
methods = pytest.mark.parametrize("method", list(RULES))
tame = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
wild = st.floats(allow_nan=False, allow_infinity=False)


def expected_bounds(method, values):
    series = pd.Series(values)
    if method == "quantile":
        return series.quantile(0.05), series.quantile(0.9)
    if method == "iqr":
        low, high = series.quantile([0.25, 0.75])
        reach = 1.5 * stats.iqr(values)
    elif method == "z_score":
        low = high = statistics.fmean(values)
        reach = 2 * statistics.pstdev(values)
    else:
        low = high = series.median()
        reach = 3.5 * 1.4826 * stats.median_abs_deviation(values)
    return low - reach, high + reach


@methods
@PROPERTY
@given(values=st.lists(tame, min_size=2, max_size=60))
def test_bounds_are_those_of_independent_code(method, values):
    found = fit_bounds(np.array(values), RULES[method])
    low, high = expected_bounds(method, values)
    if found is None:
        # all equal, or most: no spread to judge by
        assert len(set(values)) == 1 or math.isclose(low, high, abs_tol=1e-9 * max(map(abs, values)))
    else:
        scale = max(map(abs, values))
        assert found.low == pytest.approx(low, rel=1e-12, abs=1e-12 * scale)
        assert found.high == pytest.approx(high, rel=1e-12, abs=1e-12 * scale)


@methods
@PROPERTY
@given(values=st.lists(wild, max_size=40), random=st.randoms(use_true_random=False))
@example(values=[0.1] * 9 + [0.3], random=None)
@example(values=[1e308, -1e308, 0.0, 5e-324], random=None)
@example(values=[1.7976931348623157e308] * 3 + [0.0], random=None)
def test_any_values_give_sane_bounds_that_do_not_depend_on_order(method, values, random):
    found = fit_bounds(np.array(values), RULES[method])
    if random is not None:
        assert fit_bounds(np.array(random.sample(values, len(values))), RULES[method]) == found
    if found is not None:
        assert not math.isnan(found.low)
        assert not math.isnan(found.high)
        assert found.low <= found.high
        is_outlier = np.array([value < found.low or value > found.high for value in values])
        fitted = FittedOutliers("x", None, {None: found})
        assert find_outliers(fitted, pa.table({"x": values}))[0].tolist() == is_outlier.tolist()
        assert method == "quantile" or not is_outlier.all()  # of two values both lie outside of quantiles between them


@methods
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1e300, 5e-324])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 1000])
def test_equal_values_have_no_outliers(method, value, rows):
    assert fit_bounds(np.full(rows, value), RULES[method]) is None


def test_a_spread_of_zero_judges_nothing():
    mostly_equal = np.array([1.0] * 90 + [1.5, 2.0, 1000.0])
    assert fit_bounds(mostly_equal, RULES["iqr"]) is None
    assert fit_bounds(mostly_equal, RULES["mad"]) is None
    assert fit_bounds(np.append(mostly_equal, [1.0] * 900), RULES["quantile"]) is None
    assert fit_bounds(mostly_equal, RULES["z_score"]) is not None


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_z_scores_neither_overflow_nor_underflow(scale):
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    unscaled = fit_bounds(values, RULES["z_score"])
    scaled = fit_bounds(values * scale, RULES["z_score"])
    assert (scaled.low / scale, scaled.high / scale) == pytest.approx((unscaled.low, unscaled.high), rel=1e-12)


def test_missing_values_are_no_outliers():
    table = pa.table({"x": [None, -1.0, 0.0, 1.0, 2.0]})
    for bounds, expected in (({None: Bounds(0, 1)}, [False, True, False, False, True]), ({}, [False] * 5)):
        assert find_outliers(FittedOutliers("x", None, bounds), table)[0].tolist() == expected


def test_details_name_column_bounds_group_and_value():
    values = [float(i) for i in range(20)] + [1e6]
    rule = OutlierSpec(method="quantile", low=0.0, high=0.95)
    table = pa.table({"x": values})
    fitted = fit_outliers("x", rule, table["x"])
    mask, details = find_outliers(fitted, table)
    assert np.flatnonzero(mask).tolist() == [20]
    assert details.to_pylist() == ["x must lie in 0..19, got x = 1000000"]
    grouped = rule.model_copy(update={"per": "g"})
    for group, words in (("it's", '"it\'s"'), (None, "missing")):
        table = pa.table({"x": values, "g": pa.array([group] * 21, pa.string())})
        mask, details = find_outliers(fit_outliers("x", grouped, table["x"], table["g"]), table)
        assert details.to_pylist() == [f"x must lie in 0..19 where g is {words}, got x = 1000000"]


group_rows = st.lists(
    st.tuples(
        st.none() | st.integers(-50, 50).map(float) | st.sampled_from([1e9, -1e9]),
        st.sampled_from(["a", "b", "é", "", None]),
    ),
    max_size=120,
)


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
@PROPERTY
@given(rows=group_rows, method=st.sampled_from(list(RULES)), cut=st.integers(0, 120))
def test_groups_have_bounds_of_their_own(kind, rows, method, cut):
    rule = RULES[method].model_copy(update={"per": "g"})
    values, groups = [row[0] for row in rows], [row[1] for row in rows]
    expected = [False] * len(rows)
    for name in set(groups):
        members = [i for i, group in enumerate(groups) if group == name and values[i] is not None]
        if len(members) >= MIN_GROUP_ROWS:
            bounds = fit_bounds(np.array([values[i] for i in members]), rule)
            for i in members:
                expected[i] = bounds is not None and not bounds.low <= values[i] <= bounds.high
    table = pa.table({"x": pa.array(values, pa.float64()), "g": pa.array(groups, kind)})
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    fitted = fit_outliers("x", rule, table["x"], table["g"])
    mask, details = find_outliers(fitted, table)
    assert mask.tolist() == expected
    assert len(details) == sum(expected)
    halves = [find_outliers(fitted, part)[0].tolist() for part in (table.slice(0, cut), table.slice(cut))]
    assert [*halves[0], *halves[1]] == expected


def test_many_groups_at_once():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2000, 100_000)
    values = rng.normal(groups, 1.0)
    values[:20] += 100
    table = pa.table({"x": values, "g": pa.array([f"g{group}" for group in groups])})
    rule = OutlierSpec(method="mad", threshold=10, per="g")
    mask, _ = find_outliers(fit_outliers("x", rule, table["x"], table["g"]), table)
    assert mask[:20].all()
    assert mask[20:].sum() < 20


def test_columns_by_default_are_the_numbers_among_the_features():
    columns = {"a": "number", "b": "category", "c": "number", "d": "ignored", "y": "category"}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "columns": columns, "label": "y"})
    assert list(outlier_columns(OutlierSpec(), data)) == ["a", "c"]
    assert list(outlier_columns(OutlierSpec(columns=("c",)), data)) == ["c"]


def test_empty_tables():
    table = pa.table({"x": pa.array([], pa.float64()), "g": pa.array([], pa.string())})
    for groups in (None, table["g"]):
        rule = OutlierSpec(per=None if groups is None else "g")
        fitted = fit_outliers("x", rule, table["x"], groups)
        assert fitted.bounds == {}
        mask, details = find_outliers(fitted, table)
        assert (len(mask), len(details)) == (0, 0)
