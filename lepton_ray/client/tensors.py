"""Arrays as the Open Inference Protocol v2 carries them in raw bytes: a JSON head, then the tensors, little-endian.

A text is its length in four bytes and its UTF-8; what is missing (None, NaN, pandas' NA) is "" among texts, NaN among numbers.
"""

import struct
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from lepton_ray.client.records import is_missing

LENGTH_HEADER = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")
_DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_TEXTS = "OUT"  # kinds of arrays that hold texts


def encode(tensors: Mapping[str, Any], outputs: Sequence[str] | None) -> tuple[bytes, int]:
    """Return the body of an inference request and how many bytes of it are JSON; answers come raw.

    Raises:
        ValueError: If an array's type is none of the protocol, or ``outputs`` is one text.
    """
    if isinstance(outputs, str):
        raise ValueError(f"outputs must be a list of names, got {outputs!r}. Give [{outputs!r}]")
    heads, blobs = [], []
    for name, values in tensors.items():
        array = np.asarray(values)
        datatype, blob = _to_raw(name, array)
        parameters = {"binary_data_size": len(blob)}
        heads.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": parameters})
        blobs.append(blob)
    body: dict[str, Any] = {"inputs": heads, "parameters": {"binary_data_output": True}}
    if outputs is not None:
        body["outputs"] = [{"name": name} for name in outputs]
    head = orjson.dumps(body)
    return b"".join([head, *blobs]), len(head)


def decode(body: bytes, json_bytes: int | None) -> dict[str, NDArray[Any]]:
    """Return the outputs of an answer, raw or in JSON.

    Raises:
        ValueError, LookupError, TypeError: If it is none of the protocol.
    """
    length = len(body) if json_bytes is None else json_bytes
    raw = memoryview(body)[length:]
    outputs: dict[str, NDArray[Any]] = {}
    for tensor in orjson.loads(body[:length])["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        dtype = _DTYPES.get(tensor["datatype"], np.dtype(object))
        if size is None:
            values = np.array(tensor["data"], dtype)
        else:
            own, raw = raw[:size], raw[size:]
            values = np.array(_texts(own), object) if dtype.hasobject else np.frombuffer(own, dtype)
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
    return outputs


def _to_raw(name: str, array: NDArray[Any]) -> tuple[str, bytes]:
    if array.dtype.kind == "O":
        try:
            array = _without_missing(array)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"tensors[{name!r}] must hold texts, or numbers that float64 holds ({error})") from error
    if array.dtype.kind in _TEXTS:
        values = array.ravel().tolist()
        if wrong := [value for value in values if not isinstance(value, str)]:
            raise ValueError(f"tensors[{name!r}] must hold texts or numbers of one type, got {wrong[0]!r}")
        texts = [value.encode() for value in values]
        return "BYTES", b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _DATATYPES:
        raise ValueError(f"tensors[{name!r}] must be numbers or texts, got an array of {array.dtype}. Convert it")
    return _DATATYPES[dtype], array.astype(dtype, copy=False).tobytes()


def _without_missing(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of objects with what the protocol has for those that are missing; of numbers as one of numbers."""
    values = array.ravel().tolist()
    given = [value for value in values if not is_missing(value)]
    has_numbers = bool(given) and all(isinstance(value, Number) for value in given)
    filler = np.nan if has_numbers else ""
    filled = [filler if is_missing(value) else value for value in values]
    return np.array(filled, float if has_numbers else object).reshape(array.shape)


def _texts(raw: memoryview) -> list[str]:
    texts: list[str] = []
    start = 0
    while start < len(raw):
        end = start + _LENGTH.size + int.from_bytes(raw[start : start + _LENGTH.size], "little")
        if end > len(raw):
            raise ValueError(f"texts[{len(texts)}] must be whole")
        texts.append(str(raw[start + _LENGTH.size : end], "utf-8"))
        start = end
    return texts
