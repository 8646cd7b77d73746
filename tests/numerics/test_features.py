"""Numbers and categories through the compiled graph, against scikit-learn and NumPy, on data that is hard on it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from lepton_ray.features.prepare import encode_labels

from .feature_case import NAN, TOLERANCE, fit, typed_table

PROPERTY = settings(max_examples=50, deadline=None)


def prepared(train, test=None, **sections):
    """What the graph, fitted on ``train``, makes of ``test``; both map names to values."""
    columns = {n: "category" if any(isinstance(v, str) for v in values) else "number" for n, values in train.items()}
    return fit(columns, train, **sections).features(test or train)


IMPUTERS = {
    "mean": SimpleImputer(strategy="mean"),
    "median": SimpleImputer(strategy="median"),
    "most_frequent": SimpleImputer(strategy="most_frequent"),
    "zero": SimpleImputer(strategy="constant", fill_value=0.0),
}
SCALERS = {"standard": StandardScaler(), "min_max": MinMaxScaler()}


def numbers_by_sklearn(train, test, impute, scale):
    imputer = IMPUTERS[impute].fit(train)
    filled, result = imputer.transform(train), imputer.transform(test)
    return SCALERS[scale].fit(filled).transform(result) if scale in SCALERS else result


@pytest.mark.parametrize("impute", list(IMPUTERS))
@pytest.mark.parametrize("scale", ["standard", "min_max", "none"])
def test_numbers_are_those_of_sklearn(impute, scale):
    rng = np.random.default_rng(0)
    train = rng.normal(size=(500, 4)) * [1, 1e-6, 1e5, 3] + [0, 1, -7, 1e3]
    test = rng.normal(size=(100, 4)) * 10
    train[rng.random(train.shape) < 0.2] = NAN
    test[rng.random(test.shape) < 0.2] = NAN
    names = ["a", "b", "c", "d"]
    result = prepared(
        dict(zip(names, train.T.tolist(), strict=True)),
        dict(zip(names, test.T.tolist(), strict=True)),
        numbers={"impute": impute, "scale": scale},
    )
    expected = numbers_by_sklearn(train, test, impute, scale)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, **TOLERANCE)


@PROPERTY
@given(
    st.lists(st.integers(-100, 100) | st.none(), min_size=1, max_size=20).filter(lambda v: len(set(v) - {None}) > 1),
    st.lists(st.floats(-1e3, 1e3) | st.just(NAN), min_size=1, max_size=5),
    st.sampled_from(list(IMPUTERS)),
    st.sampled_from(["standard", "min_max", "none"]),
)
def test_any_numbers_are_those_of_sklearn(train, test, impute, scale):
    values = np.array([NAN if value is None else value for value in train], float)
    result = prepared({"x": train}, {"x": test}, numbers={"impute": impute, "scale": scale})
    expected = numbers_by_sklearn(values[:, None], np.array(test)[:, None], impute, scale)
    np.testing.assert_allclose(result, expected, **TOLERANCE)


def test_large_numbers_keep_small_differences():
    """Seconds since 1970 within an hour; float32 alone would round them to 128 s."""
    stamps = 1.7e9 + np.arange(0, 3600, 0.5)
    for scale, expected in (
        ("standard", (stamps - stamps.mean()) / stamps.std()),
        ("min_max", np.arange(7200) / 7199),
    ):
        result = prepared({"t": stamps.tolist()}, numbers={"scale": scale})[:, 0]
        np.testing.assert_allclose(result, expected, **TOLERANCE)
        assert len(np.unique(result)) == len(stamps)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-300, 1e9 + 0.1, 1.7e308])
@pytest.mark.parametrize("impute", ["mean", "median"])
@pytest.mark.parametrize(("scale", "missing"), [("standard", 0), ("min_max", 0), ("standard", 3), ("robust", 2)])
def test_a_constant_column_gives_zeros_and_keeps_distances(value, impute, scale, missing):
    """Rounding of the mean is no spread: another value is as far away as it is, not by a factor of 1e17."""
    train = [value] * 7 + [NAN] * missing
    sections = {"numbers": {"impute": impute, "scale": scale}}
    result = prepared({"x": train}, {"x": [value, NAN, 1.5]}, **sections)[:, 0]
    assert result[:2].tolist() == [0, 0]
    if abs(value) < 1e38:
        assert result[2] == pytest.approx(1.5 - value, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-290, 1e-160, 1e160, 1e300])
def test_spreads_whose_squares_overflow_or_vanish(factor):
    unit = np.array([1.0, 2.0, 4.0, 7.0])
    expected = (unit - unit.mean()) / unit.std()
    # onnxruntime leaves out subtracting a lone constant that float32 holds as 0, so there are two columns
    train = {"x": (unit * factor).tolist(), "z": unit.tolist()}
    np.testing.assert_allclose(prepared(train), np.stack([expected, expected], axis=1), **TOLERANCE)


def test_a_column_without_values_gives_zeros():
    for scale in ("standard", "min_max", "robust", "max_abs", "none"):
        result = prepared({"x": [NAN, NAN], "y": [1.0, 2.0]}, numbers={"scale": scale, "clip": "iqr"})
        assert result[:, 0].tolist() == [0, 0]


TRAIN = ["b", "a", "b", "", "é", "\U0001f600", "a", "b", " x", "A", "b\u0301", "\x00", "nul\x00inside"]
TEST = ["a", "", None, "unseen", "B", "é", "e\u0301", "\U0001f600", "x", "\x00", "nul\x00inside", "nul", "a" * 5000]


@pytest.mark.parametrize("impute", ["most_frequent", "own_category"])
def test_categories_are_those_of_sklearn(impute):
    result = prepared({"c": TRAIN}, {"c": TEST}, categories={"impute": impute})
    fill = "b" if impute == "most_frequent" else "\x7f missing"
    train, test = (np.array([[value or fill] for value in values], object) for values in (TRAIN, TEST))
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train)
    expected = encoder.transform(test)
    assert sorted(map(tuple, result.T)) == sorted(map(tuple, expected.T))
    assert result.shape == expected.shape


@PROPERTY
@given(st.lists(st.text(max_size=4), min_size=1, max_size=20), st.lists(st.text(max_size=4), min_size=1, max_size=8))
def test_any_unicode_stands_in_one_column_or_none(train, test):
    fitted = fit({"c": "category"}, {"c": train}, categories={"impute": "own_category"})
    result = fitted.features({"c": test})
    known = set(train) - {""}
    assert result.shape == (len(test), len(known) + 1)
    assert result.sum(axis=1).tolist() == [1 if text in known | {""} else 0 for text in test]
    for text, row in zip(test, result, strict=True):
        if text in known:
            assert fitted.names[int(row.argmax())] == f"c={text}"
        for other, other_row in zip(test, result, strict=True):
            assert (row == other_row).all() == (text == other or not {text, other} & (known | {""}))


def test_only_the_most_frequent_categories_have_columns():
    train = ["a"] * 3 + ["b"] * 2 + ["d", "c", ""]
    test = {"c": ["a", "b", "c", "d", ""]}
    result = prepared({"c": train}, test, categories={"max_categories": 3})
    assert result.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert prepared({"c": train}, test, categories={"min_count": 2}).tolist() == [
        [1, 0],
        [0, 1],
        [0, 0],
        [0, 0],
        [1, 0],
    ]


def test_other_categories_may_share_a_column():
    train = ["a"] * 3 + ["b"] * 2 + ["c", ""]
    sections = {"max_categories": 2, "impute": "own_category", "encode": {"kind": "one_hot", "other": True}}
    fitted = fit({"c": "category"}, {"c": train}, categories=sections)
    assert fitted.names == ["c=a", "c=b", "c:missing", "c:other"]
    result = fitted.features({"c": ["a", "b", "", "c", "new"]})
    assert result.argmax(axis=1).tolist() == [0, 1, 2, 3, 3]
    assert result.sum() == 5


@pytest.mark.parametrize("impute", ["most_frequent", "own_category"])
def test_a_category_without_values_has_one_column_for_missing_ones(impute):
    columns, rows = {"c": "category"}, {"c": ["", None]}
    fitted = fit(columns, rows, categories={"impute": impute})
    assert fitted.features({"c": ["", "new"]}).tolist() == [[1], [0]]


def test_numbers_come_first_then_categories_in_the_order_of_columns():
    train = {"c": ["u", "v"], "x": [0.0, 2.0], "d": ["w", "w"], "y": [5.0, 9.0]}
    assert prepared(train).tolist() == [[-1, -1, 1, 0, 1], [1, 1, 0, 1, 1]]


def test_batches_join_without_a_seam(monkeypatch):
    monkeypatch.setattr("lepton_ray.features.runners.BATCH_ROWS", 3)
    values = np.arange(10.0)
    result = prepared({"x": values.tolist(), "c": list("abcabcabca")}, numbers={"scale": "none"})
    assert result[:, 0].tolist() == values.tolist()
    assert result[:, 1:].argmax(axis=1).tolist() == [0, 1, 2] * 3 + [0]


def test_labels_become_positions():
    table = typed_table({"x": "number"}, {"x": [1.0] * 5}, labels=list("abbab"), chunk_rows=2)
    assert encode_labels(table, "label", ("b", "a")).tolist() == [1, 0, 0, 1, 0]
