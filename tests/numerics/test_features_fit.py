"""Fitting learns from the values of the rows: not from their order, their chunks, or how texts are stored."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts import statistics
from lepton_ray.data.parts import Folder, read_parquet
from lepton_ray.features.fit import fit_features, needs_keys
from lepton_ray.features.prepare import FOLD_KEY, Preparer, to_arrays
from lepton_ray.features.reference import reference_sketches
from lepton_ray.features.state import FeatureState
from lepton_ray.spec.features import FeaturesSpec

from .feature_case import NAN, Fitted, data_spec, signature_of, typed_table

COLUMNS = {
    "x": "number",
    "y": "number",
    "z": "number",
    "c": "category",
    "d": "category",
    "e": "category",
    "when": "time",
    "note": "text",
    "load": {"kind": "series", "length": 3},
    "image": {"kind": "image", "height": 2, "width": 2, "channels": 1},
}
SECTIONS = {
    "numbers": {"clip": "quantile"},
    "images": {"normalise": "dataset"},
    "texts": {"encode": {"kind": "tf_idf", "min_count": 1}},
    "times": {"parts": ["age", "year"], "missing_indicator": True},
    "columns": {
        "y": {"kind": "number", "transform": "yeo_johnson", "impute": {"kind": "by_group", "column": "c"}},
        "z": {"kind": "number", "scale": {"kind": "quantile_bins", "num_bins": 3}, "clip": "mad"},
        "d": {"kind": "category", "encode": "target"},
        "e": {"kind": "category", "encode": "frequency"},
    },
    "crosses": [{"columns": ["c", "d"]}],
    "polynomial": {"columns": ["x", "y"]},
    "pca": {"columns": ["x", "y"], "keep_columns": True},
}
SELECT = {"select": {"min_variance": 0.0, "max_correlation": 0.999, "best": {"by": "extra_trees", "num_features": 6}}}


def table_of(rows=120, seed=0):
    rng = np.random.default_rng(seed)
    numbers = {
        name: np.where(rng.random(rows) < 0.1, NAN, rng.normal(size=rows) * 10**i) for i, name in enumerate("xyz")
    }
    texts = {name: rng.choice(["u", "v", "w", "é", ""], rows).tolist() for name in "cde"}
    start = datetime(2020, 1, 1, tzinfo=UTC)
    values = {
        **{name: column.tolist() for name, column in numbers.items()},
        **texts,
        "when": [start + timedelta(hours=int(h)) if h % 7 else None for h in rng.integers(0, 10_000, rows)],
        "note": [" ".join(rng.choice(["red", "green", "blue", "東京"], rng.integers(0, 5))) for _ in range(rows)],
        "load": [None if i % 9 == 0 else rng.normal(size=3).tolist() for i in range(rows)],
        "image": list(rng.integers(0, 256, (rows, 2, 2, 1), np.uint8)),
    }
    return typed_table(COLUMNS, values, rng.choice(["a", "b"], rows).tolist())


def spec_of(*sections):
    return FeaturesSpec.model_validate({key: value for section in sections for key, value in section.items()})


def fitted(table, spec, seed=0):
    data = data_spec(COLUMNS)
    sample = table if needs_keys(data, spec) else table.drop_columns([FOLD_KEY])
    return fit_features(sample, data, spec, ["a", "b"], seed)


def rearranged(table, order, chunk_rows, as_plain_text):
    """The same rows in another order, in chunks whose dictionaries are their own."""
    table = table.take(pa.array(order))
    if as_plain_text:
        plain = [f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in table.schema]
        table = table.cast(pa.schema(plain))
    chunks = []
    for start in range(0, table.num_rows, chunk_rows):
        chunk = table.slice(start, chunk_rows).to_pydict()
        chunks.append(pa.table(chunk, schema=table.schema))
    return pa.Table.from_batches([batch for chunk in chunks for batch in chunk.to_batches()], table.schema)


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(120)), st.integers(7, 130), st.booleans(), st.booleans())
def test_neither_order_nor_chunks_change_the_state(order, chunk_rows, as_plain_text, is_selecting):
    spec = spec_of(SECTIONS, SELECT if is_selecting else {})
    table = table_of()
    expected = fitted(table, spec)
    assert fitted(rearranged(table, order, chunk_rows, as_plain_text), spec) == expected
    assert FeatureState.model_validate_json(expected.model_dump_json()) == expected


def test_prepared_rows_do_not_depend_on_their_neighbours():
    spec = spec_of(SECTIONS)
    table = table_of()
    state = fitted(table, spec)
    preparer = Preparer(state, signature_of(data_spec(COLUMNS), "ab"), 2)
    whole = to_arrays(preparer(table, is_training=True), state)
    parts = [to_arrays(preparer(table.slice(start, 7), is_training=True), state) for start in range(0, 120, 7)]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))


def test_everything_at_once_is_what_the_graph_gives():
    table = table_of()
    state = fitted(table, spec_of(SECTIONS))
    case = Fitted(COLUMNS, data_spec(COLUMNS), state, signature_of(data_spec(COLUMNS), "ab"))
    rows = {name: table.column(name).to_pylist() for name in COLUMNS if name != "image"}
    rows["image"] = [np.frombuffer(v, np.uint8) for v in table.column("image").to_pylist()]
    outputs = case.outputs(rows)
    assert {name: array.shape[1:] for name, array in outputs.items()} == {
        "features": (len(case.names),),
        "pixels": (1, 2, 2),
    }
    assert all(np.isfinite(array).all() for array in outputs.values())


def test_a_table_without_rows_has_the_same_columns():
    table = table_of()
    state = fitted(table, spec_of(SECTIONS))
    signature = signature_of(data_spec(COLUMNS), "ab")
    empty = Preparer(state, signature)(table.slice(0, 0), True)
    assert empty.schema == Preparer(state, signature)(table, True).schema
    assert {name: len(array) for name, array in to_arrays(empty, state).items()} == {"features": 0, "pixels": 0}


def test_one_hot_columns_are_bits_and_others_float32():
    table = table_of()
    spec = spec_of({"columns": {"d": {"kind": "category", "encode": "hash"}}})
    prepared = Preparer(fitted(table, spec), signature_of(data_spec(COLUMNS), "ab"))(table, False)
    kinds = {name: str(field.type) for name, field in zip(prepared.column_names, prepared.schema, strict=True)}
    assert kinds["c=u"] == kinds["d#0"] == "bool"
    assert kinds["x"] == kinds["when:age"] == "float"
    assert kinds["_note:vector"] == "fixed_size_list<item: float>[4]"
    assert kinds["_pixels"] == "fixed_size_list<item: float>[4]"


def test_a_prepared_table_comes_back_from_parquet(tmp_path):
    table = table_of()
    state = fitted(table, spec_of(SECTIONS))
    prepared = Preparer(state, signature_of(data_spec(COLUMNS), "ab"))(table, False)
    expected = to_arrays(prepared, state)
    folder = Folder(pafs.LocalFileSystem(), str(tmp_path))
    read = read_parquet(folder, folder.write_parquet("p.parquet", prepared, group_rows=50))
    for name, array in to_arrays(read.slice(3, 100), state).items():
        np.testing.assert_array_equal(array, expected[name][3:103])


def test_the_seed_decides_random_selections():
    table = table_of()
    spec = spec_of(SECTIONS, SELECT)
    assert fitted(table, spec, seed=1) == fitted(table, spec, seed=1)
    assert any(fitted(table, spec, seed=seed) != fitted(table, spec, seed=1) for seed in range(2, 6))


VALUES = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.randoms())
def test_means_are_exact_in_any_order(values, random):
    """Against fractions, which do not round."""
    from fractions import Fraction

    exact = sum(map(Fraction, values)) / len(values)
    result = statistics.mean(np.array(values))
    assert abs(Fraction(result) - exact) <= abs(exact) * Fraction(1, 2**52) + Fraction(max(map(abs, values))) / 2**75
    random.shuffle(values)
    assert statistics.mean(np.array(values)) == result
    assert min(values) <= result <= max(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_quantiles_are_those_of_numpy(values, fractions):
    expected = np.quantile(values, fractions)
    np.testing.assert_allclose(statistics.quantiles(np.array(values), fractions), expected, rtol=1e-12, atol=1e-9)


def test_reference_sketches_of_each_kind():
    table = table_of()
    reference = reference_sketches(table, data_spec(COLUMNS))
    kinds = {name: sketch["kind"] for name, sketch in reference["features"].items()}
    assert kinds == dict.fromkeys("xyz", "number") | dict.fromkeys("cde", "category") | {
        "when": "time",
        "note": "text",
        "load": "series",
        "image": "image",
    }
    assert reference["rows"] == 120
    assert reference["label"]["fractions"].keys() == {"a", "b"}
    x = table.column("x").to_numpy()
    sketch = reference["features"]["x"]
    assert sketch["missing_fraction"] == np.isnan(x).mean()
    assert sketch["mean"] == pytest.approx(np.nanmean(x))
    assert sketch["std"] == pytest.approx(np.nanstd(x))
    present = x[~np.isnan(x)]
    np.testing.assert_allclose(sketch["bin_edges"], np.quantile(present, np.linspace(0.1, 0.9, 9)))
    counts = np.histogram(present, [-np.inf, *sketch["bin_edges"], np.inf])[0]
    np.testing.assert_allclose(sketch["bin_fractions"], counts / len(present))
    lengths = [len(text) for text in table.column("note").to_pylist() if text]
    assert reference["features"]["note"]["mean"] == pytest.approx(np.mean(lengths))
    assert reference["features"]["note"]["missing_fraction"] == 1 - len(lengths) / 120
    assert reference["features"]["load"]["missing_fraction"] == pytest.approx(14 / 120)
    categories = table.column("c").to_pylist()
    assert reference["features"]["c"]["fractions"]["é"] == categories.count("é") / 120
    assert reference["features"]["c"]["missing_fraction"] == categories.count("") / 120


def test_reference_sketches_of_nothing():
    columns = {"x": "number", "t": "text"}
    table = typed_table(columns, {"x": [NAN, NAN], "t": ["", None]})
    reference = reference_sketches(table, data_spec(columns))
    assert reference["features"] == {
        "x": {"kind": "number", "missing_fraction": 1.0},
        "t": {"kind": "text", "missing_fraction": 1.0},
    }
