"""Sums over the values of a series, as training prepares them (in columns) and as the package computes them (in rows)."""

import numpy as np
import onnxruntime as ort
import pyarrow as pa

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.fit import fit_features
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.prepare import Preparer, to_arrays
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec

LENGTH = 9


def test_means_are_the_same_to_the_bit_whichever_way_values_lie():
    rng = np.random.default_rng(0)
    values = rng.permuted(np.tile(rng.normal(size=LENGTH), (50, 1)), axis=1)  # what is left of their mean is rounding
    table = pa.table({"load": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), LENGTH)})
    columns = {"load": {"kind": "series", "length": LENGTH}}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x.csv"}, "columns": columns})
    spec = FeaturesSpec.model_validate({"series": {"lags": [], "windows": [LENGTH], "statistics": ["mean", "std"]}})
    state = fit_features(table.slice(0, 1), data, spec, (), 0)
    signature = Signature.of(data, None)
    session = ort.InferenceSession(compile_graph(signature, state).SerializeToString())
    (served,) = session.run(None, {"series_load": values})
    np.testing.assert_array_equal(to_arrays(Preparer(state, signature)(table, False), state)["features"], served)
