"""The compiled feature graph against scikit-learn and NumPy, on data that is hard on it.

The graph works in float64 and ends in float32, so it agrees with a float64 oracle to half a unit in the last place of
float32 (6e-8 of the value), plus what summing in another order moves mean and spread: 1e-6 leaves room for both.
"""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.prepare import encode_labels, prepare
from lepton_ray.features.state import fit_state
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import FeaturesSpec

PROPERTY = settings(max_examples=50, deadline=None)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
NAN = float("nan")


def prepared(train, test=None, **sections):
    """What the graph, fitted on ``train``, makes of ``test``; both map names to values."""
    columns = {n: "category" if any(isinstance(v, str) for v in values) else "number" for n, values in train.items()}
    return prepared_as(columns, train, test or train, sections)


def prepared_as(columns, train, test, sections):
    data = DataSpec.model_validate(
        {"source": {"kind": "csv", "uri": "x"}, "columns": {**columns, "label": "category"}, "label": "label"}
    )
    spec = FeaturesSpec.model_validate(sections)
    signature = Signature.of(data, ["a", "b"])
    state, _ = fit_state(table_of(columns, train), data, spec)
    graph = compile_graph(signature, state, spec)
    width = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return prepare(graph.SerializeToString(), table_of(columns, test), signature, (width,), 1)


def table_of(columns, values):
    types = {name: pa.float64() if kind == "number" else pa.string() for name, kind in columns.items()}
    rows = len(next(iter(values.values())))
    arrays = {name: pa.array(values[name], kind) for name, kind in types.items()}
    return pa.table({**arrays, "label": pa.array(["a"] * rows)})


IMPUTERS = {
    "mean": SimpleImputer(strategy="mean"),
    "median": SimpleImputer(strategy="median"),
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
        dict(zip(names, train.T, strict=True)),
        dict(zip(names, test.T, strict=True)),
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
    train = np.array([NAN if value is None else value for value in train], float)
    result = prepared({"x": train}, {"x": test}, numbers={"impute": impute, "scale": scale})
    expected = numbers_by_sklearn(train[:, None], np.array(test)[:, None], impute, scale)
    np.testing.assert_allclose(result, expected, **TOLERANCE)


def test_large_numbers_keep_small_differences():
    """Seconds since 1970 within an hour; float32 alone would round them to 128 s."""
    stamps = 1.7e9 + np.arange(0, 3600, 0.5)
    for scale, expected in (
        ("standard", (stamps - stamps.mean()) / stamps.std()),
        ("min_max", np.arange(7200) / 7199),
    ):
        result = prepared({"t": stamps}, numbers={"scale": scale})[:, 0]
        np.testing.assert_allclose(result, expected, **TOLERANCE)
        assert len(np.unique(result)) == len(stamps)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-300, 1e9 + 0.1, 1.7e308])
@pytest.mark.parametrize("impute", ["mean", "median"])
@pytest.mark.parametrize(("scale", "missing"), [("standard", 0), ("min_max", 0), ("standard", 3)])
def test_a_constant_column_gives_zeros_and_keeps_distances(value, impute, scale, missing):
    """Rounding of the mean is no spread: another value is as far away as it is, not by a factor of 1e17."""
    train = np.array([value] * 7 + [NAN] * missing)
    sections = {"numbers": {"impute": impute, "scale": scale}}
    with np.errstate(over="ignore"):
        result = prepared({"x": train}, {"x": [value, NAN, 1.5]}, **sections)[:, 0]
    assert result[:2].tolist() == [0, 0]
    if abs(value) < 1e38:
        assert result[2] == pytest.approx(1.5 - value, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-290, 1e-160, 1e160, 1e300])
def test_spreads_whose_squares_overflow_or_vanish(factor):
    unit = np.array([1.0, 2.0, 4.0, 7.0])
    expected = (unit - unit.mean()) / unit.std()
    train = {
        "x": unit * factor,
        "z": unit,
    }  # onnxruntime leaves out subtracting a lone constant that float32 holds as 0
    np.testing.assert_allclose(prepared(train), np.stack([expected, expected], axis=1), **TOLERANCE)


def test_a_column_without_values_gives_zeros():
    for scale in ("standard", "min_max", "none"):
        result = prepared({"x": [NAN, NAN], "y": [1.0, 2.0]}, numbers={"scale": scale})
        assert result[:, 0].tolist() == [0, 0]


TRAIN = ["b", "a", "b", "", "é", "\U0001f600", "a", "b", " x", "A", "b\u0301"]
TEST = ["a", "", "unseen", "B", "é", "e\u0301", "\U0001f600", "x", "\u0000", "a" * 5000]


@pytest.mark.parametrize("impute", ["most_frequent", "own_category"])
def test_categories_are_those_of_sklearn(impute):
    result = prepared({"c": TRAIN}, {"c": TEST}, categories={"impute": impute})
    fill = "b" if impute == "most_frequent" else "\x7f missing"
    train, test = ([[value or fill] for value in values] for values in (TRAIN, TEST))
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train)
    expected = encoder.transform(test)
    assert sorted(map(tuple, result.T)) == sorted(map(tuple, expected.T))
    assert result.shape == expected.shape


@PROPERTY
@given(st.lists(st.text(max_size=4), min_size=1, max_size=20), st.lists(st.text(max_size=4), min_size=1, max_size=8))
def test_any_unicode_stands_in_one_column_or_none(train, test):
    train, test = ([text.replace("\x00", "") for text in texts] for texts in (train, test))
    result = prepared_as({"c": "category"}, {"c": train}, {"c": test}, {"categories": {"impute": "own_category"}})
    known = set(train) - {""}
    assert result.shape == (len(test), len(known) + 1)
    assert result.sum(axis=1).tolist() == [1 if text in known | {""} else 0 for text in test]
    for text, row in zip(test, result, strict=True):
        for other, other_row in zip(test, result, strict=True):
            assert (row == other_row).all() == (text == other or not {text, other} & (known | {""}))


def test_only_the_most_frequent_categories_have_columns():
    train = ["a"] * 3 + ["b"] * 2 + ["d", "c", ""]
    result = prepared({"c": train}, {"c": ["a", "b", "c", "d", ""]}, categories={"max_categories": 3})
    assert result.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("impute", ["most_frequent", "own_category"])
def test_a_category_without_values_has_one_column_for_missing_ones(impute):
    result = prepared({"c": ["", ""]}, {"c": ["", "new"]}, categories={"impute": impute})
    assert result.tolist() == [[1], [0]]


def test_numbers_come_first_then_categories_in_the_order_of_columns():
    train = {"c": ["u", "v"], "x": [0.0, 2.0], "d": ["w", "w"], "y": [5.0, 9.0]}
    assert prepared(train).tolist() == [[-1, -1, 1, 0, 1], [1, 1, 0, 1, 1]]


def test_batches_join_without_a_seam(monkeypatch):
    monkeypatch.setattr("lepton_ray.features.prepare._BATCH_ROWS", 3)
    values = np.arange(10.0)
    result = prepared({"x": values, "c": list("abcabcabca")}, numbers={"scale": "none"})
    assert result[:, 0].tolist() == values.tolist()
    assert result[:, 1:].argmax(axis=1).tolist() == [0, 1, 2] * 3 + [0]


@pytest.mark.parametrize(("scale", "factor"), [("unit", 255), ("none", 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_channels_first(scale, factor, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 3, channels), np.uint8)
    columns = {"image": {"kind": "image", "height": 2, "width": 3, "channels": channels}, "label": "category"}
    data = DataSpec.model_validate(
        {"source": {"kind": "image_folder", "uri": "x"}, "columns": columns, "label": "label"}
    )
    spec = FeaturesSpec.model_validate({"images": {"scale": scale}})
    table = pa.table({"image": [p.tobytes() for p in pixels], "label": list("abbab")})
    signature = Signature.of(data, ["a", "b"])
    state, _ = fit_state(table, data, spec)
    graph = compile_graph(signature, state, spec).SerializeToString()
    result = prepare(graph, table.slice(1, 3), signature, (channels, 2, 3), 1)
    np.testing.assert_allclose(result, pixels[1:4].transpose(0, 3, 1, 2) / factor, **TOLERANCE)
    assert encode_labels(table, "label", ("b", "a")).tolist() == [1, 0, 0, 1, 0]
