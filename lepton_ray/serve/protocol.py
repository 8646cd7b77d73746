"""The Open Inference Protocol v2 over HTTP: requests to tensors, tensors to answers.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md, and for raw
tensors https://github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md: behind the JSON, whose length
``Inference-Header-Content-Length`` tells, stand the bytes of the tensors that have ``parameters.binary_data_size``, in their
order, little-endian and row-major; a text is its length in four bytes and its UTF-8.
Besides, ``null`` stands for a missing value, raw NaN. Times are FP64 seconds since 1970, texts BYTES.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Feeds, Signature, TensorSpec
from lepton_ray.core.text import show

EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics")
_NUMERIC = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
_ACCEPTED = {"FP64": _NUMERIC[1:], "BYTES": ("BYTES",), "UINT8": ("UINT8",)}
_DTYPES = {
    "BOOL": np.dtype("?"),
    **{
        name: np.dtype(f"<u{bits // 8}")
        for name, bits in (("UINT8", 8), ("UINT16", 16), ("UINT32", 32), ("UINT64", 64))
    },
    **{name: np.dtype(f"<i{bits // 8}") for name, bits in (("INT8", 8), ("INT16", 16), ("INT32", 32), ("INT64", 64))},
    **{name: np.dtype(f"<f{bits // 8}") for name, bits in (("FP16", 16), ("FP32", 32), ("FP64", 64))},
}
"""How the numbers of a datatype stand in raw bytes."""
_LENGTH = struct.Struct("<I")
_NOTHING = memoryview(b"")
_MAX_BYTE = 255
_VALUES: dict[str, tuple[frozenset[type], str]] = {
    "FP64": (frozenset({int, float, type(None)}), "a number"),
    "BYTES": (frozenset({str, type(None)}), "a text"),
    "UINT8": (frozenset({int}), "a whole number from 0 to 255"),
}
"""Types that JSON has for a datatype, and what a message says of them."""


class ProtocolError(ValueError):
    """A request that is not of the protocol; answered with 400."""


def refuse_rows(max_rows: int, got: str) -> ProtocolError:
    """Return what refuses a body of another number of records."""
    way_out = "Send one" if got == "0" else "Split the request"
    return ProtocolError(f"the body must have 1 to {max_rows} records, got {got}. {way_out}")


def metadata(name: str, versions: Sequence[str], signature: Signature) -> dict[str, Any]:
    """Return a model's metadata; ``parameters.columns`` says what stands at each index of the last axis."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": "onnx_onnxruntime",
        "inputs": [_describe(tensor) for tensor in signature.inputs],
        "outputs": [_describe(tensor) for tensor in signature.outputs],
    }


def config(name: str, signature: Signature, max_rows: int) -> dict[str, Any]:
    """Return a model's configuration as Triton has it, of which clients read types, sizes of a row and ``max_batch_size``."""
    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        "input": [_configure(tensor) for tensor in signature.inputs],
        "output": [_configure(tensor) for tensor in signature.outputs],
    }


def _configure(tensor: TensorSpec) -> dict[str, Any]:
    data_type = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    configured = {"name": tensor.name, "data_type": data_type, "dims": list(tensor.shape[1:])}
    return configured if configured["dims"] else {**configured, "dims": [1], "reshape": {"shape": []}}


def _describe(tensor: TensorSpec) -> dict[str, Any]:
    described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.columns:
        described["parameters"] = {"columns": list(tensor.columns)}
    return described


def split_body(body: bytes | bytearray, json_bytes: int | None) -> tuple[bytes | bytearray | memoryview, memoryview]:
    """Return the JSON and the raw tensors of a body; ``json_bytes`` is its ``Inference-Header-Content-Length``, if given.

    Raises:
        ProtocolError: If the body is shorter.
    """
    if json_bytes is None:
        return body, _NOTHING
    if not 0 <= json_bytes <= len(body):
        rule = f"must be from 0 to the length of the body ({len(body)})"
        raise ProtocolError(f"inference-header-content-length {rule}, got {show(json_bytes)}")
    view = memoryview(body)
    return view[:json_bytes], view[json_bytes:]


def parse_infer(body: Any, signature: Signature, max_rows: int, raw: memoryview = _NOTHING) -> tuple[Feeds, list[str]]:
    """Return input tensors and the names of the outputs that are asked for; ``raw`` is what stands behind the JSON.

    Raw pixels are not copied: their tensor is a read-only view of ``raw``.

    Raises:
        ProtocolError: If the request breaks the protocol or does not fit the signature.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("inputs"), list):
        raise ProtocolError("the body must be an object with a list 'inputs'. See GET /v2/models/NAME for the tensors")
    given: dict[str, Mapping[str, Any]] = {}
    parts: dict[str, memoryview] = {}
    for index, item in enumerate(body["inputs"]):
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise ProtocolError(f"inputs[{index}] must be an object with a name")
        if item["name"] in given:
            raise ProtocolError(f"inputs[{index}].name must be given once, got {show(item['name'])} again")
        given[item["name"]] = item
        if (size := _raw_size(item, len(raw))) is not None:
            parts[item["name"]], raw = raw[:size], raw[size:]
    if raw:
        raise ProtocolError(f"inputs must say the whole body in binary_data_size, got {len(raw)} bytes more")
    wanted = {tensor.name: tensor for tensor in signature.inputs}
    if given.keys() != wanted.keys():
        raise ProtocolError(f"inputs must be {', '.join(wanted)}, got {show(list(given)) if given else 'none'}")
    feeds = {name: _parse_tensor(given[name], tensor, max_rows, parts.get(name)) for name, tensor in wanted.items()}
    rows = {len(values) for values in feeds.values()}
    if len(rows) != 1:
        raise ProtocolError(f"inputs must have equally many rows, got {', '.join(map(str, sorted(rows)))}")
    return feeds, _parse_outputs(body.get("outputs"), signature)


def _raw_size(item: Mapping[str, Any], left: int) -> int | None:
    """Bytes of a tensor behind the JSON, or None if its data stand in the JSON."""
    parameters = item.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
    if size is None:
        return None
    place = f"inputs.{show(item['name'])}.parameters.binary_data_size"
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= left:
        raise ProtocolError(f"{place} must be from 0 to the bytes left behind the JSON ({left}), got {show(size)}")
    if "data" in item:
        raise ProtocolError(f"{place} must not stand beside data. Remove one")
    return size


def _parse_tensor(item: Mapping[str, Any], tensor: TensorSpec, max_rows: int, raw: memoryview | None) -> NDArray[Any]:
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
    if raw is not None:
        return _from_raw(raw, str(datatype), math.prod(shape), tensor, place).reshape(shape)
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


def _from_raw(raw: memoryview, datatype: str, count: int, tensor: TensorSpec, place: str) -> NDArray[Any]:
    if datatype == "BYTES":
        return _texts_from_raw(raw, count, place)
    dtype = _DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        rule = f"must have {count * dtype.itemsize} bytes for its shape"
        raise ProtocolError(f"{place} {rule}, got {len(raw)}")
    values = np.frombuffer(raw, dtype)
    if tensor.datatype == "UINT8":
        return values
    with np.errstate(invalid="ignore"):  # a signalling NaN is missing like any other
        return values.astype(np.float64)


def _texts_from_raw(raw: memoryview, count: int, place: str) -> NDArray[np.object_]:
    texts: list[str] = []
    start = 0
    while len(texts) < count and start + _LENGTH.size <= len(raw):
        end = start + _LENGTH.size + _LENGTH.unpack_from(raw, start)[0]
        if end > len(raw):
            break
        try:
            texts.append(str(raw[start + _LENGTH.size : end], "utf-8"))
        except UnicodeDecodeError as error:
            raise ProtocolError(f"{place}[{len(texts)}] must be UTF-8, got {show(error.object)}") from error
        start = end
    if len(texts) != count or start != len(raw):
        raise ProtocolError(
            f"{place} must have {count} texts, each with its length, got {len(texts)} in {len(raw)} bytes"
        )
    return np.array(texts, object)


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


def raw_outputs(body: Mapping[str, Any], wanted: Sequence[str]) -> frozenset[str]:
    """Which outputs of a parsed request go behind the JSON of its answer."""
    parameters = body.get("parameters")
    default = isinstance(parameters, Mapping) and parameters.get("binary_data_output") is True
    chosen = dict.fromkeys(wanted, default)
    for item in body.get("outputs") or ():
        own = item.get("parameters")
        if isinstance(own, Mapping) and isinstance(own.get("binary_data"), bool):
            chosen[item["name"]] = own["binary_data"]
    return frozenset(name for name, is_raw in chosen.items() if is_raw)


def infer_answer(
    outputs: Mapping[str, NDArray[Any]], signature: Signature, wanted: Sequence[str], raw: frozenset[str]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the tensors of an answer, and the bytes of those that are named in ``raw``."""
    datatypes = {tensor.name: tensor.datatype for tensor in signature.outputs}
    tensors, blobs = [], []
    for name in wanted:
        values, datatype = outputs[name], datatypes[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if name in raw:
            blobs.append(_to_raw(values, datatype))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = values.ravel().tolist() if values.dtype == object else values.ravel()
        tensors.append(tensor)
    return tensors, blobs


def _to_raw(values: NDArray[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return values.astype(_DTYPES[datatype], copy=False).tobytes()
    texts = [text.encode() for text in values.ravel().tolist()]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
