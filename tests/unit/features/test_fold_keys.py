"""Which features need keys of the rows: to be fitted, and to be prepared for training."""

import pyarrow as pa
import pytest

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.fit import fit_features, needs_keys
from lepton_ray.features.prepare import FOLD_KEY, Preparer
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec

DATA = DataSpec.model_validate(
    {
        "source": {"kind": "csv", "uri": "x.csv"},
        "label": "y",
        "columns": {"a": "number", "b": "number", "c": "category", "y": "category"},
    }
)
TABLE = pa.table({"a": [1.0, 2.0, 4.0, 3.0], "b": [1.0, 3.0, 2.0, 9.0], "c": list("uvuv"), "y": list("nnyy")})
KEYS = pa.array([5, 3, 9, 4], pa.uint64())


@pytest.mark.parametrize(
    ("features", "to_fit", "to_prepare"),
    [
        ({}, False, False),
        ({"categories": {"encode": "ordinal"}}, False, False),
        ({"pca": {}}, True, False),
        ({"select": {"min_variance": 0.0}}, True, False),
        ({"categories": {"encode": {"kind": "target", "num_folds": 2}}}, True, True),
        ({"categories": {"encode": {"kind": "frequency", "num_folds": 2}}}, True, True),
        # the categories' table does not stay
        (
            {"categories": {"encode": {"kind": "frequency", "num_folds": 2}}, "select": {"min_variance": 0.5}},
            True,
            False,
        ),
    ],
)
def test_who_needs_keys(features, to_fit, to_prepare):
    spec = FeaturesSpec.model_validate(features)
    assert needs_keys(DATA, spec) == to_fit
    sample = TABLE.append_column(FOLD_KEY, KEYS) if to_fit else TABLE
    state = fit_features(sample, DATA, spec, ["n", "y"], 0)
    preparer = Preparer(state, Signature.of(DATA, None))
    assert preparer.is_folded == to_prepare
    table = sample if to_prepare else TABLE
    assert preparer(table, is_training=True).num_rows == TABLE.num_rows
