"""From typed Arrow tables, as cleaning writes them, to the tensors of a signature, and to records for people."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.series import to_matrix
from lepton_ray.artifacts.signature import Datatype, Feeds, Signature, TensorSpec
from lepton_ray.artifacts.text_form import form
from lepton_ray.artifacts.times import seconds_of, spell_times
from lepton_ray.core.errors import RecordError
from lepton_ray.spec.data import CategoryColumn, Column, ImageColumn, SeriesColumn, TextColumn, TimeColumn

_FILLS: dict[Datatype, tuple[type, Any]] = {"FP64": (np.float64, np.nan), "BYTES": (object, ""), "UINT8": (np.uint8, 0)}


def to_feeds(table: pa.Table, signature: Signature) -> Feeds:
    """Return the input tensors of a typed table; null is missing. Categories may be dictionaries or plain text."""
    return {tensor.name: _to_tensor(table, tensor, signature) for tensor in signature.inputs}


def to_records(table: pa.Table, signature: Signature) -> list[dict[str, Any]]:
    """Return raw JSON records of a typed table: missing values null, times as their column has them, images nested lists.

    A text that ``normalise`` or ``replace`` would change again is given as one of which they make it, where there is one
    (``find_reproduced`` tells).
    """
    records: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]
    for name, column in signature.columns.items():
        for record, value in zip(records, _to_json(table.column(name), column), strict=True):
            record[name] = value
    return records


def find_reproduced(table: pa.Table, signature: Signature) -> NDArray[np.bool_]:
    """Return for which rows the record of ``to_records`` gives the row's own tensors again."""
    feeds, records = to_feeds(table, signature), to_records(table, signature)
    return np.array([_is_reproduced(feeds, row, record, signature) for row, record in enumerate(records)], bool)


def empty_feeds(signature: Signature, rows: int) -> Feeds:
    """Return input tensors of missing values and black pixels."""
    feeds: Feeds = {}
    for tensor in signature.inputs:
        dtype, value = _FILLS[tensor.datatype]
        feeds[tensor.name] = np.full((rows, *tensor.shape[1:]), value, dtype)
    return feeds


def _is_reproduced(feeds: Feeds, row: int, record: dict[str, Any], signature: Signature) -> bool:
    try:
        again = signature.encode([record])
    except RecordError:
        return False
    return all(
        np.array_equal(values[row : row + 1], again[name], equal_nan=values.dtype == np.float64)
        for name, values in feeds.items()
    )


def _to_tensor(table: pa.Table, tensor: TensorSpec, signature: Signature) -> NDArray[Any]:
    dtype, _ = _FILLS[tensor.datatype]
    values: NDArray[Any] = np.empty((table.num_rows, *tensor.shape[1:]), dtype)
    for position, name in enumerate(tensor.columns):
        kind = signature.columns[name].kind
        target = values if kind in ("series", "image") else values[:, position]
        start = 0
        for chunk in table.column(name).chunks:
            target[start : start + len(chunk)] = _TO_ARRAY[kind](chunk, tensor)
            start += len(chunk)
    return values


def _to_numbers(chunk: pa.Array, tensor: TensorSpec) -> NDArray[np.float64]:
    return np.asarray(chunk.to_numpy(zero_copy_only=False), np.float64) + 0.0  # no negative zero, as in serving


def _to_times(chunk: pa.Array, tensor: TensorSpec) -> NDArray[np.float64]:
    return seconds_of(chunk)


def _to_texts(chunk: pa.Array, tensor: TensorSpec) -> NDArray[np.object_]:
    if isinstance(chunk, pa.DictionaryArray):
        if len(chunk.dictionary) > len(chunk):  # a slice of a large table
            return _to_texts(chunk.dictionary_decode(), tensor)
        texts = np.append(_to_texts(chunk.dictionary, tensor), "")
        return np.asarray(texts[chunk.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)])
    return np.asarray(chunk.fill_null("").to_numpy(zero_copy_only=False), object)


def _to_series(chunk: pa.Array, tensor: TensorSpec) -> NDArray[np.float64]:
    return to_matrix(chunk, tensor.shape[1]) + 0.0


def _to_pixels(chunk: pa.Array, tensor: TensorSpec) -> NDArray[np.uint8]:
    pixels = np.frombuffer(b"".join(chunk.to_pylist()), np.uint8)
    return pixels.reshape(len(chunk), *tensor.shape[1:])


_TO_ARRAY: dict[str, Callable[[pa.Array, TensorSpec], NDArray[Any]]] = {
    "number": _to_numbers,
    "time": _to_times,
    "category": _to_texts,
    "text": _to_texts,
    "series": _to_series,
    "image": _to_pixels,
}


def _to_json(values: pa.ChunkedArray, column: Column) -> list[Any]:
    """Return the values of a column as a record has them."""
    if isinstance(column, TimeColumn):
        return spell_times(values, column.format)
    listed: list[Any] = values.to_pylist()
    if isinstance(column, ImageColumn):
        shape = (column.height, column.width, column.channels)
        return [np.frombuffer(value, np.uint8).reshape(shape).tolist() for value in listed]
    if isinstance(column, SeriesColumn):
        return [[None] * column.length if value is None else value for value in listed]
    if isinstance(column, CategoryColumn | TextColumn):
        made = form(column)
        known = {value: made.invert(value) for value in set(listed) if value}
        return [known.get(value) for value in listed]
    return listed
