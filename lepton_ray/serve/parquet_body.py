"""Parquet files as bodies: records from a stranger's bytes, whose size in memory is known before anything is decoded.

A file's footer and the heads of its pages say how large they become; a head is what the decoder believes, so all of them are
read first, and a file beyond the bounds is refused. Two ways to make much of little are in no head: a word of a dictionary that
stands in each row, so texts and files are read as dictionaries and counted; and a text that repeats the one before, an encoding that is refused.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve.arrow_body import MAX_VALUES, UNREADABLE, check_schema, check_words, names_of, to_values
from lepton_ray.serve.protocol import ProtocolError, refuse_rows

MEDIA_TYPE = b"application/vnd.apache.parquet"
_MAX_DECODED_BYTES = 64 << 20  # of all pages
_MAX_PAGES = 20_000  # and columns of row groups, together
_MAX_FOOTER_ITEMS, _MAX_FOOTER_TEXT_BYTES = 100_000, 1 << 20  # of one list, of one text
_MAX_DEPTH = 12
_MAX_ITEMS = 2_000_000  # fields, structs and members of lists: seconds
_Field = tuple[int, int]
"""Number and kind."""
_BOOLS, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _STRUCT = (1, 2), 3, 4, 5, 6, 7, 8, 9, 12
"""Kinds of a field in Thrift's compact protocol. A field of another kind than its own is none, so both are looked at."""
_GROUPS, _COLUMNS, _ABOUT = (4, _LIST), (1, _LIST), (3, _STRUCT)  # of the footer, a row group, a column
_STORED, _DATA_AT, _WORDS_AT = (7, _I64), (9, _I64), (11, _I64)  # of what is said about a column: bytes, and places
_DECODED, _ENCODED, _DATA, _WORDS, _DATA_OF_2 = (2, _I32), (3, _I32), (5, _STRUCT), (7, _STRUCT), (8, _STRUCT)
"""Of a page's head: sizes, and heads of kinds of pages."""
_NUM_VALUES, _ENCODING = (1, _I32), {_DATA: (2, _I32), _DATA_OF_2: (4, _I32)}  # of those
_TAIL = struct.Struct("<I4s")  # the footer's length, and the mark
_DELTA_BYTE_ARRAY = 7
_SOUND_MR = re.compile(r"parquet-mr version 1\.([3-9]|\d\d)\.")
"""Of older ones, and unknown ones, the decoder reads on behind a column's end."""


def read_parquet(body: bytes | bytearray, signature: Signature, max_rows: int) -> list[dict[str, Any]]:
    """Return the records of a Parquet file; null and NaN are missing.

    Raises:
        ProtocolError: If it is none, is too large when it is decoded, or holds what is not read here.
    """
    try:
        source = pa.py_buffer(body)
        with _open(source) as file:
            _check_sizes(body, file.metadata, max_rows)
            schema = file.schema_arrow
            check_schema(schema, signature)
            wanted = [name for name in schema.names if name in signature.columns]
            words = [name for name in wanted if _is_of_words(schema.field(name).type)]
        with _open(source, words) as file:
            table = file.read(wanted, use_threads=False)
        table.validate(full=True)
        check_words(table, is_valid=True)
        check_schema(table.schema, signature)
        if table.num_rows > max_rows:
            raise refuse_rows(max_rows, str(table.num_rows))
        columns = {name: to_values(table.column(name), True) for name in wanted}
    except ProtocolError:
        raise
    except (*UNREADABLE, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ProtocolError(f"the body must be a Parquet file: {reason}") from error
    missing, names = [None] * table.num_rows, names_of(schema)
    return [{name: columns.get(name, missing)[row] for name in names} for row in range(table.num_rows)]


def write_parquet(columns: dict[str, NDArray[Any]]) -> bytes:
    """Return columns as a Parquet file."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def _open(source: pa.Buffer, words: list[str] | None = None) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.BufferReader(source),
        read_dictionary=words,
        pre_buffer=False,
        thrift_string_size_limit=_MAX_FOOTER_TEXT_BYTES,
        thrift_container_size_limit=_MAX_FOOTER_ITEMS,
    )


def _is_of_words(kind: pa.DataType) -> bool:
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def _check_sizes(body: bytes | bytearray, footer: pq.FileMetaData, max_rows: int) -> None:
    """Hold what the footer and the heads of all pages say against the limits."""
    if not 1 <= footer.num_rows <= max_rows:
        raise refuse_rows(max_rows, str(footer.num_rows))
    if "parquet-mr" in (footer.created_by or "").lower() and not _SOUND_MR.match(footer.created_by):
        raise ProtocolError("a Parquet file of parquet-mr must be written by version 1.3 or later")
    decoded = values = pages = 0
    head = _Head(body)
    for column in _columns(head):
        for page in _pages(head, column):
            pages += 1
            decoded += page[_DECODED]
            values += sum(_num_values(page, kind) for kind in (_DATA, _WORDS, _DATA_OF_2))
            # a run of equal numbers takes a few bytes, however many they are
            if decoded > _MAX_DECODED_BYTES or values > MAX_VALUES:
                most = f"at most {_MAX_DECODED_BYTES} bytes and {MAX_VALUES} values"
                raise ProtocolError(f"the pages of a Parquet file must decode to {most}. Split the request")
            if pages > _MAX_PAGES:
                raise ProtocolError(f"a Parquet file must have at most {_MAX_PAGES} pages. Write larger ones")
            if any(page[kind].get(at) == _DELTA_BYTE_ARRAY for kind, at in _ENCODING.items() if kind in page):
                raise ProtocolError(
                    "a Parquet file must come without the encoding DELTA_BYTE_ARRAY. Write it otherwise"
                )


def _num_values(page: dict[_Field, Any], kind: _Field) -> int:
    count = int(page[kind].get(_NUM_VALUES, 0)) if kind in page else 0
    if count < 0:
        raise ValueError("a page must have a number of values")
    return count


def _columns(head: "_Head") -> Iterator[dict[_Field, Any]]:
    """Yield what the footer says about the columns of row groups; Arrow 25 ends the process when it is asked for a broken one."""
    body = head.data
    size, _ = _TAIL.unpack_from(body, len(body) - _TAIL.size)
    head.place = len(body) - _TAIL.size - size
    if head.place < 0:
        raise ValueError("the footer must stand within the file")
    footer = head.read_struct(_MAX_DEPTH)
    columns = [column for group in footer[_GROUPS] for column in group[_COLUMNS]]
    if len(columns) > _MAX_PAGES:
        raise ProtocolError(f"a Parquet file must have at most {_MAX_PAGES} columns of row groups. Write larger groups")
    for column in columns:
        yield column[_ABOUT]


def _pages(head: "_Head", column: dict[_Field, Any]) -> Iterator[dict[_Field, Any]]:
    """Yield the heads of a column's pages."""
    place = column[_DATA_AT]
    if 0 < column.get(_WORDS_AT, 0) < place:
        place = column[_WORDS_AT]
    end = place + column[_STORED]
    if not 0 <= place <= end <= len(head.data):
        raise ValueError("a column must stand within the file")
    while place < end:
        head.place = place
        page = head.read_struct(_MAX_DEPTH)
        if min(page[_DECODED], page[_ENCODED]) < 0:
            raise ValueError("a page must have a size")
        place = head.place + page[_ENCODED]
        yield page


class _Head:
    """Reads Thrift's compact protocol, as far as footers and heads of pages need it, and no more of it than a file may have.

    Source: https://github.com/apache/thrift, doc/specs/thrift-compact-protocol.md, and parquet.thrift of
    https://github.com/apache/parquet-format.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.place = 0
        self._num_items = 0

    def read_struct(self, depth: int) -> dict[_Field, Any]:
        """Return the numbers, structs and lists of structs; of what is there twice the last, as decoders do."""
        if depth == 0:
            raise ValueError("a struct must not be nested so deep")
        self._count()
        fields: dict[_Field, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            self._count()
            kind = head & 0xF
            number = number + (head >> 4) if head >> 4 else _signed(self._varint())
            if kind not in _BOOLS:  # whose value is in the kind
                fields[number, kind] = self._read(kind, depth - 1)
        return fields

    def _read(self, kind: int, depth: int) -> Any:
        if kind == _STRUCT:
            return self.read_struct(depth)
        if kind == _LIST:
            return self._read_list(depth)
        if kind in (_I16, _I32, _I64):
            return _signed(self._varint() & (0xFFFFFFFF if kind == _I32 else 0xFFFFFFFFFFFFFFFF))
        size = {_BYTE: 1, _DOUBLE: 8}.get(kind)
        if kind == _BINARY:
            size = self._varint()
        if size is None:  # nothing that the format has
            raise ValueError(f"there must be no field of the kind {kind}")
        self.place += size
        return None

    def _read_list(self, depth: int) -> list[Any] | None:
        """Return structs, None for others: decoders read those that should be structs as such."""
        head = self._byte()
        kind = head & 0xF
        size = head >> 4 if head >> 4 != 0xF else self._varint()  # noqa: PLR2004  more than fit into four bits
        items = []
        for _ in range(size):
            self._count()
            items.append(self._read(_BYTE if kind in _BOOLS else kind, depth))
        return items if kind == _STRUCT else None

    def _count(self) -> None:
        self._num_items += 1
        if self._num_items > _MAX_ITEMS:
            raise ProtocolError(f"footer and heads of pages of a Parquet file must have at most {_MAX_ITEMS} items")

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte == byte & 0x7F:
                return value
        raise ValueError("a number must have at most 64 bits")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
