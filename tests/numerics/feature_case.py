"""Fit features on a few rows and see what the compiled graph makes of others, in every way there is to compute them."""

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pyarrow as pa

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Signature, TensorSpec
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.features.fit import fit_features, needs_keys
from lepton_ray.features.graph import compile_graph, outputs_of
from lepton_ray.features.prepare import FOLD_KEY, Preparer, to_arrays
from lepton_ray.features.state import FeatureState
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features

NAN = float("nan")
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
"""The graph works in float64 and ends in float32: half a unit in the last place (6e-8), and what summing in another order moves."""


def data_spec(columns):
    is_image = [c for c in columns.values() if isinstance(c, dict) and c["kind"] == "image"]
    kind = "image_folder" if is_image and len(columns) == 1 else "csv"
    return DataSpec.model_validate(
        {"source": {"kind": kind, "uri": "x"}, "columns": {**columns, "label": "category"}, "label": "label"}
    )


def typed_table(columns, rows, labels=None, chunk_rows=None, as_dictionary=True):
    """The typed table of rows, a list of values by column; None and NaN are missing."""
    arrays = {name: _typed(columns[name], values, as_dictionary) for name, values in rows.items()}
    count = len(next(iter(arrays.values())))
    arrays["label"] = pa.array(labels if labels is not None else ["a"] * count, pa.string()).dictionary_encode()
    arrays[FOLD_KEY] = pa.array(np.random.default_rng(count).integers(0, 2**63, count).astype(np.uint64))
    table = pa.table(arrays)
    if not chunk_rows:
        return table
    parts = [table.slice(start, chunk_rows) for start in range(0, count, chunk_rows)]
    # encoded anew, so that each chunk has a dictionary of its own
    return pa.concat_tables([pa.concat_tables([part.cast(_plain(part.schema))]) for part in parts])


def _plain(schema):
    return pa.schema(
        [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    )


def _typed(column, values, as_dictionary):
    kind = column if isinstance(column, str) else column["kind"]
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    if kind == "number":
        return pa.array(values, pa.float64())
    if kind == "category":
        array = pa.array(values, pa.string())
        return array.dictionary_encode() if as_dictionary else array
    if kind == "text":
        return pa.array(values, pa.string())
    if kind == "time":
        return pa.array(values, pa.timestamp("us", "UTC"))
    if kind == "series":
        return pa.array(values, pa.list_(pa.float64(), column["length"]))
    return pa.array([np.asarray(value, np.uint8).tobytes() for value in values], pa.binary())


@dataclass
class Fitted:
    """A fitted state beside the columns it was fitted for."""

    columns: dict
    data: DataSpec
    state: FeatureState
    signature: Signature

    @property
    def names(self):
        """Names of the flat features."""
        return list(outputs_of(self.state)[0].columns)

    def outputs(self, rows):
        """What the whole graph makes of rows, checked to be what ``prepare`` makes of their table, to the bit."""
        table = typed_table(self.columns, rows)
        model = compile_graph(self.signature, self.state).SerializeToString()
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        names = [output.name for output in outputs_of(self.state)]
        feeds = to_feeds(table, self.signature)
        for name, array in feeds_of(table, self.signature).items():
            np.testing.assert_array_equal(feeds[name], array)
        result = dict(zip(names, session.run(names, feeds), strict=True))
        prepared = to_arrays(Preparer(self.state, self.signature, 2)(table, False), self.state)
        assert list(prepared) == names
        for name, array in result.items():
            assert array.dtype == prepared[name].dtype
            np.testing.assert_array_equal(array, prepared[name])
        return result

    def features(self, rows):
        """The flat features of rows."""
        return self.outputs(rows)["features"]

    def column(self, rows, name):
        """One feature of rows."""
        return self.features(rows)[:, self.names.index(name)]


def fit(columns, rows, /, labels=None, classes=("a", "b"), seed=0, **sections):
    """Fit on rows."""
    data = data_spec(columns)
    spec = FeaturesSpec.model_validate(sections)
    assert check_features(spec, data) == []
    assert FeaturesSpec.model_validate(spec.model_dump(mode="json")) == spec
    table = typed_table(columns, rows, labels)
    sample = table if needs_keys(data, spec) else table.drop_columns([FOLD_KEY])
    state = fit_features(sample, data, spec, list(classes), seed)
    again = FeatureState.model_validate_json(state.model_dump_json())
    assert again == state
    return Fitted(columns, data, again, signature_of(data, classes))


def signature_of(data, classes):
    return Signature.of(data, Target(task="classification", classes=tuple(classes)) if classes else None)


def feeds_of(table, signature):
    """The tensors of a typed table, made value by value."""
    feeds = {}
    for tensor in signature.inputs:
        columns = [table.column(name).to_pylist() for name in columns_of(tensor)]
        if tensor.name == "image":
            feeds["image"] = np.stack([np.frombuffer(v, np.uint8).reshape(tensor.shape[1:]) for v in columns[0]])
        elif tensor.name.startswith("series_"):
            rows = [value or [None] * tensor.shape[1] for value in columns[0]]
            feeds[tensor.name] = np.array([[NAN if v is None else v for v in row] for row in rows], np.float64)
        elif tensor.datatype == "BYTES":
            feeds[tensor.name] = np.array([[value or "" for value in column] for column in columns], object).T.copy()
        else:
            feeds[tensor.name] = np.array([[_number(value) for value in column] for column in columns]).T.copy()
    return feeds


def columns_of(tensor: TensorSpec):
    return [tensor.name.removeprefix("series_")] if tensor.name.startswith("series_") else tensor.columns


def _number(value):
    if value is None:
        return NAN
    return value.timestamp() if hasattr(value, "timestamp") else float(value)
