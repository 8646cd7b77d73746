"""Crosses that keep no combination, and those of columns with many categories."""

from collections import Counter

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest

from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import DataError
from lepton_ray.features.columns import codes_of, combine_codes
from lepton_ray.features.combine import fit_cross
from lepton_ray.features.fit import fit_features
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.prepare import Preparer, to_arrays
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import CrossFeatures, FeaturesSpec


def features_of(table, cross):
    """The features of a cross, by the whole graph and as prepared."""
    columns = dict.fromkeys(table.column_names, "category")
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x.csv"}, "columns": columns})
    encode = {"kind": "hash", "num_buckets": 2}
    spec = FeaturesSpec.model_validate({"categories": {"encode": encode}, "crosses": [cross]})
    state = fit_features(table, data, spec, (), 0)
    signature = Signature.of(data, None)
    session = ort.InferenceSession(compile_graph(signature, state).SerializeToString())
    feeds = {"categories": np.array([column.to_pylist() for column in table.columns], object).T.copy()}
    (served,) = session.run(None, feeds)
    prepared = to_arrays(Preparer(state, signature)(table, False), state)["features"]
    np.testing.assert_array_equal(served, prepared)
    return prepared[:, 2 * len(columns) :]


def test_a_cross_without_a_frequent_combination_has_other_only():
    table = pa.table({"a": ["x", "y", "x"], "b": ["u", "v", "u"]})
    cross = {"columns": ["a", "b"], "min_count": 50, "encode": {"kind": "one_hot", "other": True}}
    assert features_of(table, cross).tolist() == [[1.0]] * 3


NAMES = "abcd"
MANY = 60_000  # 60,000**4 is more than an int64 can hold


def codes_of_many(rows=MANY):
    rng = np.random.default_rng(0)
    columns = []
    for name in NAMES:
        texts = [None, *(f"{name}{i}" for i in range(rows))]
        places = np.where(rng.random(rows) < 0.5, rng.integers(0, 3, rows), np.arange(1, rows + 1))
        columns.append(codes_of(pa.chunked_array([pa.DictionaryArray.from_arrays(places.astype(np.int32), texts)])))
    return columns


def test_combinations_of_wide_columns_are_those_of_their_rows():
    columns = codes_of_many()
    texts_DC, positions_N = combine_codes(columns)
    texts = [np.array([*codes.values, ""], object)[codes.positions] for codes in columns]
    rows = list(zip(*texts, strict=True))
    assert list(map(tuple, texts_DC[positions_N].tolist())) == rows
    assert len(set(map(tuple, texts_DC.tolist()))) == len(texts_DC) == len(set(rows))
    state = fit_cross(columns, CrossFeatures(columns=tuple(NAMES), max_categories=3))
    kept = sorted(Counter(rows).items(), key=lambda item: (-item[1], item[0]))[:3]
    padded = [(*vocabulary, "") for vocabulary in state.vocabularies]
    found = [tuple(texts[i] for texts, i in zip(padded, places, strict=True)) for places in state.combinations]
    assert found == [texts for texts, _ in kept]


def test_a_cross_of_wide_columns_is_prepared_as_it_is_served():
    rare = {name: [f"{name}{i}" for i in range(MANY)] for name in NAMES}
    table = pa.table({name: [*texts, "often", "often"] for name, texts in rare.items()})
    result = features_of(table, {"columns": list(NAMES), "min_count": 2})
    assert result[:, 0].tolist() == [0.0] * MANY + [1.0] * 2


def test_more_combinations_than_the_graph_can_number_are_refused():
    codes = codes_of(pa.chunked_array([pa.array([f"v{i}" for i in range(MANY)])]))
    spec = CrossFeatures(columns=tuple(NAMES), max_categories=MANY)
    with pytest.raises(
        DataError,
        match=r"cross of a, b, c, d must have fewer than 2\*\*63 possible combinations .*, got 1\.3e\+19\. Lower its max",
    ):
        fit_cross([codes] * 4, spec)
