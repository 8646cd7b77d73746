"""The Open Inference Protocol v2, JSON over HTTP: requests to tensors, tensors to answers.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md.
Besides, ``null`` stands for a missing value. Times are FP64 seconds since 1970, texts BYTES.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Feeds, Signature, TensorSpec
from lepton_ray.core.text import show

_NUMERIC = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
_ACCEPTED = {"FP64": _NUMERIC[1:], "BYTES": ("BYTES",), "UINT8": ("UINT8",)}
_MAX_BYTE = 255
_VALUES: dict[str, tuple[frozenset[type], str]] = {
    "FP64": (frozenset({int, float, type(None)}), "a number"),
    "BYTES": (frozenset({str, type(None)}), "a text"),
    "UINT8": (frozenset({int}), "a whole number from 0 to 255"),
}
"""Types that JSON has for a datatype, and what a message says of them."""


class ProtocolError(ValueError):
    """A request that is not of the protocol; answered with 400."""


def metadata(name: str, versions: Sequence[str], signature: Signature) -> dict[str, Any]:
    """Return a model's metadata; ``parameters.columns`` says what stands at each index of the last axis."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": "onnx_onnxruntime",
        "inputs": [_describe(tensor) for tensor in signature.inputs],
        "outputs": [_describe(tensor) for tensor in signature.outputs],
    }


def _describe(tensor: TensorSpec) -> dict[str, Any]:
    described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.columns:
        described["parameters"] = {"columns": list(tensor.columns)}
    return described


def parse_infer(body: Any, signature: Signature, max_rows: int) -> tuple[Feeds, list[str]]:
    """Return input tensors and the names of the outputs that are asked for.

    Raises:
        ProtocolError: If the request breaks the protocol or does not fit the signature.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("inputs"), list):
        raise ProtocolError("the body must be an object with a list 'inputs'. See GET /v2/models/NAME for the tensors")
    given: dict[str, Mapping[str, Any]] = {}
    for index, item in enumerate(body["inputs"]):
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise ProtocolError(f"inputs[{index}] must be an object with a name")
        if item["name"] in given:
            raise ProtocolError(f"inputs[{index}].name must be given once, got {show(item['name'])} again")
        given[item["name"]] = item
    wanted = {tensor.name: tensor for tensor in signature.inputs}
    if given.keys() != wanted.keys():
        raise ProtocolError(f"inputs must be {', '.join(wanted)}, got {show(list(given)) if given else 'none'}")
    feeds = {name: _parse_tensor(given[name], tensor, max_rows) for name, tensor in wanted.items()}
    rows = {len(values) for values in feeds.values()}
    if len(rows) != 1:
        raise ProtocolError(f"inputs must have equally many rows, got {', '.join(map(str, sorted(rows)))}")
    return feeds, _parse_outputs(body.get("outputs"), signature)


def _parse_tensor(item: Mapping[str, Any], tensor: TensorSpec, max_rows: int) -> NDArray[Any]:
    place = f"inputs.{tensor.name}"
    datatype, shape, data = item.get("datatype"), item.get("shape"), item.get("data")
    accepted = _ACCEPTED[tensor.datatype]
    if datatype not in accepted:
        raise ProtocolError(f"{place}.datatype must be {tensor.datatype}, got {show(datatype)}")
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise ProtocolError(f"{place}.shape must be a list of whole numbers, got {show(shape)}")
    if len(shape) != len(tensor.shape) or any(
        want not in (-1, got) for want, got in zip(tensor.shape, shape, strict=True)
    ):
        raise ProtocolError(f"{place}.shape must be {list(tensor.shape)} with any first number, got {show(shape)}")
    if not 1 <= shape[0] <= max_rows:
        raise ProtocolError(f"{place}.shape must have 1 to {max_rows} rows, got {shape[0]}. Split the request")
    if not isinstance(data, list):
        raise ProtocolError(f"{place}.data must be a list, got {show(data)}")
    values: list[Any] = []
    _flatten(data, shape, values, place)
    return _to_array(values, tensor, place).reshape(shape)


def _flatten(data: list[Any], shape: Sequence[int], values: list[Any], place: str) -> None:
    """Append the values of ``data`` in row-major order; the inner axes may be nested, or flat, each as a whole."""
    is_nested = len(shape) > 1 and bool(data) and isinstance(data[0], list)
    expected = shape[0] if is_nested else math.prod(shape)
    if len(data) != expected:
        what = "lists" if is_nested else "values"
        raise ProtocolError(f"{place}.data must have {expected} {what} for the shape {list(shape)}, got {len(data)}")
    if not is_nested:
        values += data
        return
    for item in data:
        if not isinstance(item, list):
            raise ProtocolError(f"{place}.data must be nested evenly, got {show(item)} beside a list")
        _flatten(item, shape[1:], values, place)


def _to_array(values: list[Any], tensor: TensorSpec, place: str) -> NDArray[Any]:
    allowed, rule = _VALUES[tensor.datatype]
    if not allowed.issuperset(map(type, values)):
        index, value = next((index, value) for index, value in enumerate(values) if type(value) not in allowed)
        raise ProtocolError(f"{place}.data[{index}] must be {rule}, got {show(value)}")
    if tensor.datatype == "BYTES":
        return np.array(["" if value is None else value for value in values], object)
    if tensor.datatype == "FP64":
        return np.array(values, np.float64)  # None becomes NaN
    if not 0 <= min(values) <= max(values) <= _MAX_BYTE:
        index, value = next((index, value) for index, value in enumerate(values) if not 0 <= value <= _MAX_BYTE)
        raise ProtocolError(f"{place}.data[{index}] must be {rule}, got {show(value)}")
    return np.array(values, np.uint8)


def _parse_outputs(outputs: Any, signature: Signature) -> list[str]:
    known = [tensor.name for tensor in signature.outputs]
    if outputs is None or outputs == []:
        return known
    names = (
        [item.get("name") if isinstance(item, Mapping) else None for item in outputs]
        if isinstance(outputs, list)
        else [None]
    )
    if unknown := [name for name in names if name not in known]:
        raise ProtocolError(f"outputs must be of {', '.join(known)}, got {show(unknown[0])}")
    return [name for name in known if name in names]


def infer_answer(
    name: str,
    version: str,
    request_id: Any,
    outputs: Mapping[str, NDArray[Any]],
    signature: Signature,
    wanted: Sequence[str],
) -> dict[str, Any]:
    """Return the answer to an inference request."""
    datatypes = {tensor.name: tensor.datatype for tensor in signature.outputs}
    tensors = [
        {
            "name": key,
            "datatype": datatypes[key],
            "shape": list(outputs[key].shape),
            "data": outputs[key].ravel().tolist(),
        }
        for key in wanted
    ]
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": tensors}
    return {"id": request_id, **answer} if isinstance(request_id, str) else answer
