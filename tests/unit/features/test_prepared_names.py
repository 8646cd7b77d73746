"""Columns of prepared tables: their names, which the data may take too, and that none of a flat feature is ever null."""

import numpy as np
import pyarrow as pa
import pytest

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.fit import fit_features
from lepton_ray.features.prepare import Preparer, to_arrays
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec

NUMBERS = [1.0, 2.0, 6.0]
PLAIN = {"impute": "zero", "scale": "none"}
PICTURE = {"kind": "image", "height": 1, "width": 1, "channels": 1}


def arrays_of(columns, features, table):
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x.csv"}, "columns": columns})
    state = fit_features(table, data, FeaturesSpec.model_validate({"numbers": PLAIN, **features}), (), 0)
    return to_arrays(Preparer(state, Signature.of(data, None))(table, False), state)


@pytest.mark.parametrize(
    ("name", "other", "features", "values"),
    [
        ("tokens", "text", {"texts": {"encode": "ids"}}, ["a b", "a", ""]),
        ("pixels", PICTURE, {}, [b"\x01", b"\x02", b"\x03"]),
        ("other:vector", "text", {"texts": {"encode": {"kind": "bag", "min_count": 1}}}, ["a b", "a", ""]),
    ],
)
def test_a_number_may_be_called_as_an_output_is(name, other, features, values):
    table = pa.table({"number": NUMBERS, "other": values})
    expected = arrays_of({"number": "number", "other": other}, features, table)
    found = arrays_of({name: "number", "other": other}, features, table.rename_columns([name, "other"]))
    assert found.keys() == expected.keys()
    for output, array in expected.items():
        np.testing.assert_array_equal(found[output], array)
    np.testing.assert_array_equal(found["features"][:, 0], NUMBERS)


def test_flat_features_are_never_null():
    data = DataSpec.model_validate(
        {"source": {"kind": "csv", "uri": "x.csv"}, "columns": {"n": "number", "c": "category", "t": "text"}}
    )
    table = pa.table({"n": [1.0, None, 2.0], "c": ["a", "b", None], "t": ["a b", None, "a"]})
    features = FeaturesSpec.model_validate({"texts": {"encode": {"kind": "bag", "min_count": 1}}})
    prepared = Preparer(fit_features(table, data, features, (), 0), Signature.of(data, None))(table, False)
    prepared.validate(full=True)
    assert {name: prepared.schema.field(name).nullable for name in prepared.column_names} == {
        "n": False,
        "c=a": False,
        "c=b": False,
        "_t:vector": True,
    }
