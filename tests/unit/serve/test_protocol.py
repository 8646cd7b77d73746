"""Tensors of the Open Inference Protocol for every kind of column: what is taken, what is refused, what metadata says."""

from typing import Any

import numpy as np
import pytest

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve.protocol import ProtocolError, metadata, parse_infer
from lepton_ray.spec.data import DataSpec

_COLUMNS = {
    "at": "time",
    "note": "text",
    "load": {"kind": "series", "length": 3},
    "photo": {"kind": "image", "height": 1, "width": 2, "channels": 1},
    "y": "category",
}
_SIGNATURE = Signature.of(
    DataSpec.model_validate({"source": {"kind": "csv", "uri": "a"}, "label": "y", "columns": _COLUMNS}),
    Target(task="classification", classes=("a", "b")),
)


def _body(**changes: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        "times": {"datatype": "FP64", "shape": [2, 1], "data": [1.5, None]},
        "texts": {"datatype": "BYTES", "shape": [2, 1], "data": [["a"], [None]]},
        "series_load": {"datatype": "FP64", "shape": [2, 3], "data": [1, 2.5, None, 4, 5, 6]},
        "image": {"datatype": "UINT8", "shape": [2, 1, 2, 1], "data": [0, 255, 7, 8]},
    }
    return {"inputs": [{"name": name, **tensor, **changes.get(name, {})} for name, tensor in tensors.items()]}


def test_tensors_of_every_kind_are_taken() -> None:
    feeds, outputs = parse_infer(_body(), _SIGNATURE, 10)
    assert outputs == ["label", "probabilities"]
    assert np.array_equal(feeds["times"], [[1.5], [np.nan]], equal_nan=True)
    assert feeds["texts"].tolist() == [["a"], [""]]
    assert np.array_equal(feeds["series_load"], [[1, 2.5, np.nan], [4, 5, 6]], equal_nan=True)
    assert feeds["image"].tolist() == [[[[0], [255]]], [[[7], [8]]]]
    assert [feeds[name].dtype for name in ("times", "texts", "series_load", "image")] == [
        float,
        object,
        float,
        np.uint8,
    ]
    whole = {"datatype": "INT64", "data": [1, 2]}
    assert parse_infer(_body(times=whole), _SIGNATURE, 10)[0]["times"].dtype == float
    _SIGNATURE.check(feeds)


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("times", {"data": ["2024-01-01", None]}, "inputs.times.data[0] must be a number, got '2024-01-01'"),
        ("times", {"data": [1, True]}, "inputs.times.data[1] must be a number, got True"),
        ("times", {"datatype": "BYTES"}, "inputs.times.datatype must be FP64, got 'BYTES'"),
        ("texts", {"data": ["a", 1]}, "inputs.texts.data[1] must be a text, got 1"),
        (
            "series_load",
            {"shape": [2, 2]},
            "inputs.series_load.shape must be [-1, 3] with any first number, got [2, 2]",
        ),
        (
            "series_load",
            {"data": [[1, 2, 3], [1, 2]]},
            "inputs.series_load.data must have 3 values for the shape [3], got 2",
        ),
        ("image", {"data": [0, 256, 1, 2]}, "inputs.image.data[1] must be a whole number from 0 to 255, got 256"),
        ("image", {"data": [0, None, 1, 2]}, "inputs.image.data[1] must be a whole number from 0 to 255, got None"),
        ("image", {"data": [0, 1.0, 1, 2]}, "inputs.image.data[1] must be a whole number from 0 to 255, got 1.0"),
    ],
)
def test_other_tensors_are_refused(tensor: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_infer(_body(**{tensor: change}), _SIGNATURE, 10)
    assert str(caught.value) == message


def test_metadata_names_columns() -> None:
    described = metadata("m", ["1"], _SIGNATURE)["inputs"]
    assert described == [
        {"name": "times", "datatype": "FP64", "shape": [-1, 1], "parameters": {"columns": ["at"]}},
        {"name": "texts", "datatype": "BYTES", "shape": [-1, 1], "parameters": {"columns": ["note"]}},
        {"name": "series_load", "datatype": "FP64", "shape": [-1, 3], "parameters": {"columns": ["load"]}},
        {"name": "image", "datatype": "UINT8", "shape": [-1, 1, 2, 1], "parameters": {"columns": ["photo"]}},
    ]
