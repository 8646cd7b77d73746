"""Every way to treat numbers, against scikit-learn, SciPy and NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.preprocessing import KBinsDiscretizer, MaxAbsScaler, PowerTransformer, RobustScaler

from lepton_ray.core.errors import DataError
from lepton_ray.features.numbers import fit_number, transform_values
from lepton_ray.spec.features_number import NumberFeatures

from .feature_case import NAN, TOLERANCE, fit

PROPERTY = settings(max_examples=40, deadline=None)
NUMBERS = {"x": "number"}
VALUES = st.lists(st.integers(-1000, 1000).map(lambda v: v / 8), min_size=2, max_size=30).filter(
    lambda v: len(set(v)) > 1
)
OTHERS = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5)


def one(train, test, **section):
    return fit(NUMBERS, {"x": list(train)}, numbers=section).features({"x": list(test)})[:, 0]


@PROPERTY
@given(VALUES, OTHERS)
def test_robust_and_max_abs_are_those_of_sklearn(train, test):
    column = np.array(train)[:, None]
    scaler = RobustScaler().fit(column)
    np.testing.assert_allclose(
        one(train, test, scale="robust"), scaler.transform(np.array(test)[:, None])[:, 0], rtol=1e-6, atol=1e-5
    )
    scaler = MaxAbsScaler().fit(column)
    np.testing.assert_allclose(
        one(train, test, scale="max_abs"), scaler.transform(np.array(test)[:, None])[:, 0], **TOLERANCE
    )


def bounds_of(values, clip):
    """The bounds by NumPy and SciPy; none where they coincide."""
    low, high = _bounds_of(values, clip)
    return (low, high) if low < high else (-np.inf, np.inf)


def _bounds_of(values, clip):
    if clip["kind"] == "quantile":
        return np.quantile(values, [clip["low"], clip["high"]])
    if clip["kind"] == "iqr":
        first, third = np.quantile(values, [0.25, 0.75])
        return first - clip["factor"] * (third - first), third + clip["factor"] * (third - first)
    if clip["kind"] == "z_score":
        return values.mean() - clip["limit"] * values.std(), values.mean() + clip["limit"] * values.std()
    reach = clip["limit"] * 1.4826 * stats.median_abs_deviation(values)
    return np.median(values) - reach, np.median(values) + reach


CLIPS = st.sampled_from(
    [
        {"kind": "quantile", "low": 0.1, "high": 0.8},
        {"kind": "iqr", "factor": 1.5},
        {"kind": "z_score", "limit": 1.0},
        {"kind": "mad", "limit": 2.0},
    ]
)


@PROPERTY
@given(VALUES, OTHERS, CLIPS, st.booleans())
def test_clipping_comes_after_imputing_and_before_scaling(train, test, clip, is_missing):
    """Bounds come from present values; mean and spread from clipped ones, imputed ones among them."""
    values = np.array(train)
    low, high = bounds_of(values, clip)
    filled = np.append(values, [np.median(values)] * (3 * is_missing))
    clipped = np.clip(filled, low, high)
    result = one([*train, *[NAN] * (3 * is_missing)], [*test, NAN], clip=clip, scale="none")
    np.testing.assert_allclose(result, np.clip([*test, np.median(values)], low, high), rtol=1e-6, atol=1e-6)
    if clipped.std() > 1e-9:
        result = one([*train, *[NAN] * (3 * is_missing)], test, clip=clip)
        expected = (np.clip(test, low, high) - clipped.mean()) / clipped.std()
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", ["log1p", "sqrt"])
def test_log_and_root_keep_the_sign(transform):
    values = [0.0, 1e-18, -1e-18, 1e-9, 0.5, -0.5, 3.0, -1e6, 1e12, 1e300, 1e306, -1.7e308]
    reference = np.log1p if transform == "log1p" else np.sqrt
    expected = np.sign(values) * reference(np.abs(values))
    result = one([1.0, 2.0], values, transform=transform, scale="none")
    np.testing.assert_allclose(result, np.clip(expected, -1e9, 1e9), rtol=1e-6)


@pytest.mark.parametrize("method", ["yeo_johnson", "box_cox"])
def test_powers_are_those_of_sklearn(method):
    rng = np.random.default_rng(0)
    train = {"a": rng.lognormal(size=400), "b": rng.gamma(2, size=400) * 1e3, "c": rng.normal(size=400) ** 2 + 0.1}
    if method == "yeo_johnson":
        train["b"] = rng.normal(size=400) ** 3
    test = {name: values[:50] * 1.1 for name, values in train.items()}
    columns = dict.fromkeys(train, "number")
    rows = ({name: values.tolist() for name, values in part.items()} for part in (train, test))
    train_rows, test_rows = rows
    result = fit(columns, train_rows, numbers={"transform": method}).features(test_rows)
    scaler = PowerTransformer(method.replace("_", "-")).fit(np.stack([*train.values()], axis=1))
    # both search the likeliest exponent by Brent's method, to about 1e-8 of a flat optimum
    np.testing.assert_allclose(result, scaler.transform(np.stack([*test.values()], axis=1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", ["yeo_johnson", "log1p", "sqrt"])
@pytest.mark.parametrize("train", [[3.0] * 5, [NAN] * 3, [0.0, 1e300], [-1e300, 1.0, 1e300], [1e-300, 2e-300, 3e-300]])
def test_powers_of_extreme_values_are_finite(transform, train):
    result = one(train, [NAN, 0.0, -1e300, 1e300, 1.0], transform=transform)
    assert np.isfinite(result).all()


def test_box_cox_refuses_values_that_are_not_positive_and_bears_them_later():
    with pytest.raises(
        DataError, match=r"column 'x' must be positive for transform 'box_cox', got -1\. Use yeo_johnson"
    ):
        one([1.0, -1.0], [1.0], transform="box_cox")
    result = one([1.0, 2.0, 5.0], [1.0, -3.0, 0.0], transform="box_cox")
    assert result[0] == result[1] == result[2]  # as the least of the training rows


@PROPERTY
@given(VALUES, OTHERS, st.integers(2, 6), st.booleans())
def test_quantile_bins_are_those_of_sklearn(train, test, num_bins, one_hot):
    section = {"scale": {"kind": "quantile_bins", "num_bins": num_bins, "one_hot": one_hot}}
    result = fit(NUMBERS, {"x": train}, numbers=section).features({"x": test})
    edges = np.unique(np.quantile(train, np.linspace(0, 1, num_bins + 1)))
    expected = np.searchsorted(edges[1:-1], test, side="right")
    if one_hot:
        expected = np.eye(len(edges) - 1)[expected]
    np.testing.assert_array_equal(result, expected.reshape(result.shape))


def test_bins_agree_with_sklearn_itself():
    train = np.random.default_rng(0).normal(size=300)
    section = {"scale": {"kind": "quantile_bins", "num_bins": 7}}
    result = fit(NUMBERS, {"x": train.tolist()}, numbers=section).features({"x": train.tolist()})
    bins = KBinsDiscretizer(7, encode="ordinal", quantile_method="linear").fit(train[:, None])
    np.testing.assert_array_equal(result, bins.transform(train[:, None]))


@pytest.mark.parametrize("value", [0.2004865494579971, 25.36831987426383, 1944444444.9583333])
@pytest.mark.parametrize("transform", ["log1p", "sqrt", "yeo_johnson", "box_cox"])
def test_the_bin_of_a_frequent_value_does_not_depend_on_the_rows_beside_it(transform, value):
    """The last digit of a logarithm depends on the place in the batch, and an edge is a value that many rows have."""
    section = NumberFeatures.model_validate({"transform": transform, "scale": {"kind": "quantile_bins", "num_bins": 2}})
    state = fit_number("x", np.repeat([value / 2, value, value * 2], 40), section, None)
    for rows in range(1, 10):
        found = transform_values(np.full(rows, value), transform, state.power)
        assert np.searchsorted(state.edges, found, side="right").tolist() == [1] * rows
    just_below = transform_values(np.array([value * 0.99]), transform, state.power)
    assert np.searchsorted(state.edges, just_below, side="right").tolist() == [0]


def test_the_order_of_rows_does_not_change_how_many_bins_there_are():
    """A frequent value is several quantiles, whose last digits depend on the places of its rows."""
    rng = np.random.default_rng(0)
    section = NumberFeatures.model_validate({"transform": "log1p", "scale": {"kind": "quantile_bins", "num_bins": 8}})
    for _ in range(300):
        values = np.concatenate([np.repeat(rng.uniform(0.1, 100), 61), rng.uniform(0.01, 200, 40)])
        edges, mixed = (fit_number("x", x, section, None).edges for x in (values, rng.permutation(values)))
        np.testing.assert_allclose(mixed, edges, rtol=1e-11)


def test_given_edges():
    section = {"scale": {"kind": "edge_bins", "edges": [0, 10]}}
    test = {"x": [-1e308, -1e-9, 0.0, 9.99, 10.0, 1e308, NAN]}
    assert fit(NUMBERS, {"x": [5.0]}, numbers=section).features(test)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 1]
    section["scale"]["one_hot"] = True
    fitted = fit(NUMBERS, {"x": [5.0]}, numbers=section)
    assert fitted.names == ["x=bin0", "x=bin1", "x=bin2"]
    assert fitted.features(test).argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 1]


def test_a_constant_is_imputed_and_missing_values_are_marked():
    columns = {"x": "number", "y": "number", "z": "number"}
    rows = {"x": [1.0, NAN, 3.0], "y": [NAN, 2.0, 2.0], "z": [1.0, 1.0, 1.0]}
    given = {"kind": "number", "impute": -1, "scale": "none", "missing_indicator": True}
    plain = {"kind": "number", "impute": "most_frequent", "scale": "none"}
    fitted = fit(columns, rows, numbers={"scale": "none"}, columns={"x": given, "y": plain})
    assert fitted.names == ["x", "y", "z", "x:missing"]
    assert fitted.features(rows).tolist() == [[1, 2, 1, 0], [-1, 2, 1, 1], [3, 2, 1, 0]]


@PROPERTY
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "", "c"]), st.integers(-5, 5) | st.none()), min_size=1, max_size=25),
    st.sampled_from(["mean", "median", "most_frequent"]),
)
def test_imputing_by_group(pairs, statistic):
    groups, values = zip(*pairs, strict=True)
    values = [NAN if value is None else float(value) for value in values]
    columns = {"x": "number", "other": "number", "g": "category"}
    section = {"kind": "number", "impute": {"kind": "by_group", "column": "g", "statistic": statistic}, "scale": "none"}
    train = {"x": values, "other": values, "g": list(groups)}
    test = {"x": [NAN] * 5 + [7.0], "other": [NAN] * 6, "g": ["a", "b", "c", "", "unseen", "a"]}
    result = fit(columns, train, numbers={"scale": "none", "impute": statistic}, columns={"x": section}).features(test)

    def reference(chosen):
        present = [v for v in chosen if not math.isnan(v)]
        if not present:
            return None
        if statistic == "mean":
            return np.mean(present)
        return np.median(present) if statistic == "median" else stats.mode(sorted(present)).mode

    overall = reference(values) or 0.0
    by_group = {g: reference([v for v, h in zip(values, groups, strict=True) if h == g]) for g in "abc"}
    expected = [overall if by_group[g] is None else by_group[g] for g in "abc"] + [overall, overall, 7.0]
    np.testing.assert_allclose(result[:, 0], expected, **TOLERANCE)
    np.testing.assert_allclose(result[:, 1], [overall] * 6, **TOLERANCE)


def test_columns_with_other_treatments_stand_in_order():
    rng = np.random.default_rng(0)
    columns = {name: "number" for name in "abcdef"}
    train = {name: rng.gamma(2, size=60).tolist() for name in columns}
    sections = {
        "b": {"kind": "number", "transform": "log1p", "scale": "none"},
        "c": {"kind": "number", "scale": {"kind": "edge_bins", "edges": [1, 2]}},
        "d": {"kind": "number", "transform": "yeo_johnson"},
        "e": {"kind": "number", "transform": "log1p", "scale": "min_max", "clip": "quantile"},
    }
    fitted = fit(columns, train, columns=sections)
    result = dict(zip(fitted.names, fitted.features(train).T, strict=True))
    assert list(result) == ["a", "b", "d", "e", "f", "c:bin"]
    values = {name: np.array(column) for name, column in train.items()}
    for name in "af":
        expected = (values[name] - values[name].mean()) / values[name].std()
        np.testing.assert_allclose(result[name], expected, **TOLERANCE)
    np.testing.assert_allclose(result["b"], np.log1p(values["b"]), **TOLERANCE)
    np.testing.assert_array_equal(result["c:bin"], np.digitize(values["c"], [1, 2]))
    clipped = np.log1p(np.clip(values["e"], *np.quantile(values["e"], [0.01, 0.99])))
    np.testing.assert_allclose(result["e"], (clipped - clipped.min()) / np.ptp(clipped), **TOLERANCE)
    expected = PowerTransformer().fit_transform(values["d"][:, None])[:, 0]
    np.testing.assert_allclose(result["d"], expected, rtol=1e-4, atol=1e-4)
