"""Arrow streams as bodies: records from a stranger's bytes, whose size in memory their own size bounds.

What could make much of little is refused before anything is decoded: compressed buffers, more rows than are allowed, and types
whose values may share bytes (views, runs, nested dictionaries). What is left is checked in full before a value is read.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as types
from numpy.typing import NDArray

from lepton_ray.artifacts.numbers import to_floats
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.times import to_timestamps
from lepton_ray.serve.protocol import ProtocolError, refuse_rows
from lepton_ray.spec.data import Column, NumberColumn, TimeColumn

MEDIA_TYPE = b"application/vnd.apache.arrow.stream"
MAX_VALUES = 4 << 20
"""Rows times columns: a column of nulls takes no bytes, and a place in each record all the same."""
MAX_TEXT_BYTES = 64 << 20
"""Of words that stand in rows, which each row has for its own in the model; batches have no more words together either."""
_HEADER, _RECORD_BATCH, _DICTIONARY = 2, "record batch", "dictionary"  # fields and kinds of a message
_DICTIONARY_DATA, _IS_DELTA, _LENGTH, _COMPRESSION = 1, 2, 0, 3
_INDEX = re.compile(r"__index_level_\d+__")
"""Name that pandas gives a column for the nameless index of a table, such as a filtered one; a spec has no names with such a beginning."""
_FILE = b"ARROW1"  # begins a file, which is no stream
_NO_TIME = "a time outside the years 1 to 9999"

UNREADABLE = (pa.ArrowException, struct.error, OSError, OverflowError, MemoryError)
"""What damages lead to, by their place; also ``ValueError``."""


def read_arrow(body: bytes | bytearray, signature: Signature, max_rows: int) -> list[dict[str, Any]]:
    """Return the records of an Arrow stream; null and NaN are missing.

    Raises:
        ProtocolError: If it is none, or holds what is not read here.
    """
    try:
        rows = _check_messages(body, max_rows)
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            check_schema(stream.schema, signature)
            if rows * len(stream.schema) > MAX_VALUES:
                raise ProtocolError(f"an Arrow stream must have at most {MAX_VALUES} values. Split the request")
            table = stream.read_all()
        features = table.select([name for name in table.schema.names if name in signature.columns])
        check_words(features, is_valid=False)
        features.validate(full=True)
        check_words(features, is_valid=True)
        columns = {name: to_values(table.column(name), name in signature.columns) for name in names_of(table.schema)}
    except ProtocolError:
        raise
    except (*UNREADABLE, ValueError) as error:
        is_file = bytes(body[: len(_FILE)]) == _FILE
        reason = "it is of Arrow's file format (Feather)" if is_file else str(error).partition("\n")[0][:200]
        raise ProtocolError(f"the body must be an Arrow stream: {reason}") from error
    return [{name: values[row] for name, values in columns.items()} for row in range(table.num_rows)]


def write_arrow(columns: dict[str, NDArray[Any]]) -> bytes:
    """Return columns as an Arrow stream of one batch."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _check_messages(body: bytes | bytearray, max_rows: int) -> int:
    """Hold what the heads of all messages say against the limits, and return the number of rows; no buffer is decoded."""
    rows = 0
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type not in (_RECORD_BATCH, _DICTIONARY):
            continue
        flat = _Flat(bytes(message.metadata))
        batch = flat.follow(flat.root(), _HEADER)
        if message.type == _DICTIONARY:
            is_delta = flat.field(batch, _IS_DELTA)
            if is_delta is not None and struct.unpack_from("<?", flat.data, is_delta)[0]:
                raise ProtocolError("the dictionaries of an Arrow stream must come whole, not in deltas. Write them so")
            batch = flat.follow(batch, _DICTIONARY_DATA)
        else:
            place = flat.field(batch, _LENGTH)
            rows += 0 if place is None else struct.unpack_from("<q", flat.data, place)[0]
        if flat.field(batch, _COMPRESSION) is not None:
            raise ProtocolError("the buffers of an Arrow stream must come without compression. Write them so")
        if rows > max_rows:
            raise refuse_rows(max_rows, str(rows))
    return rows


class _Flat:
    """A FlatBuffer, as far as it is needed: tables and their fields. Arrow has checked its offsets.

    Source: https://flatbuffers.dev/internals, and Message.fbs of https://github.com/apache/arrow.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data

    def root(self) -> int:
        return self._uint32(0)

    def field(self, table: int, index: int) -> int | None:
        """Return where a field of a table stands, None if it is absent."""
        vtable = table - struct.unpack_from("<i", self.data, table)[0]
        (size,) = struct.unpack_from("<H", self.data, vtable)
        entry = 2 * (index + 2)  # two bytes each, behind the sizes of the vtable and the table
        offset = struct.unpack_from("<H", self.data, vtable + entry)[0] if entry < size else 0
        return table + offset if offset else None

    def follow(self, table: int, index: int) -> int:
        """Return the table that a field refers to."""
        place = self.field(table, index)
        if place is None:
            raise struct.error(f"a message must have its field {index}")
        return place + self._uint32(place)

    def _uint32(self, place: int) -> int:
        return int(struct.unpack_from("<I", self.data, place)[0])


def names_of(schema: pa.Schema) -> list[str]:
    """Return the columns that are fields of records."""
    return [name for name in schema.names if not _INDEX.fullmatch(name)]


def check_schema(schema: pa.Schema, signature: Signature) -> None:
    """Refuse columns of types that are not read here.

    Raises:
        ProtocolError: If there is one, or a name stands twice.
    """
    if len(set(schema.names)) < len(schema.names):
        raise ProtocolError("the schema must name each column once")
    for field in schema:
        column = signature.columns.get(field.name)
        if column is not None and not _is_read(field.type, column):
            raise ProtocolError(
                f"{field.name} must be of a type that its kind {column.kind!r} is read from, got {str(field.type)[:80]}"
            )


def check_words(table: pa.Table, is_valid: bool) -> None:
    """Refuse dictionaries of which much would be made: by batches that have one each, and, once they are valid, by rows.

    Raises:
        ProtocolError: If one of the two is too much.
    """
    chunks = [chunk for column in table.columns if types.is_dictionary(column.type) for chunk in column.chunks]
    if sum(_text_bytes(chunk) if is_valid else len(chunk.dictionary) for chunk in chunks) > MAX_TEXT_BYTES:
        rule = f"must give its rows at most {MAX_TEXT_BYTES} bytes of text, and its batches as many words"
        raise ProtocolError(f"a dictionary {rule}. Split the request")


def _text_bytes(chunk: pa.DictionaryArray) -> int:
    """Bytes of the words of all rows, each counted as often as it stands there."""
    words, indices = chunk.dictionary, chunk.indices.drop_null().to_numpy().astype(np.int64)
    if not len(indices) or not (_is_text(words.type) or _is_file(words.type)):
        return 0
    width = np.int64 if types.is_large_string(words.type) or types.is_large_binary(words.type) else np.int32
    starts = np.frombuffer(words.buffers()[1], width)[words.offset :]
    return int((starts[indices + 1] - starts[indices]).sum(dtype=np.int64))


def _is_read(kind: pa.DataType, column: Column) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
        return _is_text(kind) or (column.kind == "image" and _is_file(kind))
    if column.kind == "image" and _is_file(kind):
        return True
    if column.kind in ("series", "image"):
        return _is_text(kind) or _is_numbers(kind)
    if types.is_timestamp(kind) or types.is_date(kind):
        return isinstance(column, TimeColumn)
    if types.is_decimal(kind):
        return isinstance(column, NumberColumn)
    return _is_text(kind) or _is_number(kind) or bool(types.is_boolean(kind) or types.is_null(kind))


def _is_file(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _is_numbers(kind: pa.DataType) -> bool:
    """Whether values are lists of numbers, or lists of such lists."""
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and (_is_number(kind.value_type) or _is_numbers(kind.value_type))


def to_values(cells: pa.ChunkedArray, is_feature: bool) -> list[Any]:
    """Return the values of a column; of one that the model does not read nothing but its name matters."""
    return [value for chunk in cells.chunks for value in _chunk_values(chunk)] if is_feature else [None] * len(cells)


def _chunk_values(chunk: pa.Array) -> Iterator[Any]:
    """Yield the values as JSON would have them; of times ``datetime``."""
    kind = chunk.type
    if types.is_dictionary(kind) and len(chunk.dictionary) > len(chunk):  # perhaps one for many batches
        yield from chunk.dictionary_decode().to_pylist()
    elif types.is_dictionary(kind):
        words = chunk.dictionary.to_pylist()  # each is there once, however often it stands in a row
        yield from (None if index is None else words[index] for index in chunk.indices.to_pylist())
    elif types.is_timestamp(kind) or types.is_date(kind):
        times = to_timestamps(chunk).to_pylist()
        is_given = chunk.is_valid().to_pylist()
        yield from (_NO_TIME if given and time is None else time for time, given in zip(times, is_given, strict=True))
    elif types.is_floating(kind) or types.is_decimal(kind):
        yield from (None if value != value else value for value in to_floats(chunk).tolist())
    else:
        yield from chunk.to_pylist()
