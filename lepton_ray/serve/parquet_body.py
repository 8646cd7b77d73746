"""Parquet files as bodies: records from a stranger's bytes, whose size in memory is known before anything is decoded.

A file's footer and the heads of its pages say how large they become; a head is what the decoder believes, so all of them are
read first, and a file beyond the bounds is refused. Two ways to make much of little are in no head: a word of a dictionary that
stands in each row, so texts and files are read as dictionaries; and a text that repeats the one before, an encoding that is refused.
"""

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve.arrow_body import MAX_VALUES, UNREADABLE, check_schema, to_values
from lepton_ray.serve.protocol import ProtocolError, refuse_rows

MEDIA_TYPE = b"application/vnd.apache.parquet"
_MAX_DECODED_BYTES = 64 << 20  # of all pages
_MAX_PAGES = 20_000  # and columns of row groups, together
_MAX_FOOTER_ITEMS, _MAX_FOOTER_TEXT_BYTES = 100_000, 1 << 20  # of one list, of one text
_MAX_DEPTH = 8
_BOOLS, _BYTE, _I32, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = (1, 2), 3, 5, (4, 5, 6), 7, 8, 12
"""Kinds of a field in Thrift's compact protocol."""
_DECODED, _ENCODED, _DATA, _WORDS, _DATA_OF_2 = (
    2,
    3,
    5,
    7,
    8,
)  # fields of a page's head: sizes, and heads of kinds of pages
_NUM_VALUES, _ENCODING = 1, {_DATA: 2, _DATA_OF_2: 4}  # fields of those
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
        check_schema(table.schema, signature)
        if table.num_rows > max_rows:
            raise refuse_rows(max_rows, str(table.num_rows))
        columns = {name: to_values(table.column(name), True) for name in wanted}
    except ProtocolError:
        raise
    except (*UNREADABLE, ValueError, LookupError, AttributeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ProtocolError(f"the body must be a Parquet file: {reason}") from error
    missing = [None] * table.num_rows
    return [{name: columns.get(name, missing)[row] for name in schema.names} for row in range(table.num_rows)]


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
    if footer.num_row_groups * footer.num_columns > _MAX_PAGES:
        raise ProtocolError(f"a Parquet file must have at most {_MAX_PAGES} columns of row groups. Write larger groups")
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            for page in _pages(body, footer.row_group(group).column(index)):
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


def _num_values(page: dict[int, Any], kind: int) -> int:
    count = int(page[kind].get(_NUM_VALUES, 0)) if kind in page else 0
    if count < 0:
        raise ValueError("a page must have a number of values")
    return count


def _pages(body: bytes | bytearray, column: pq.ColumnChunkMetaData) -> Iterator[dict[int, Any]]:
    """Yield the heads of a column's pages, of which numbers and structs are kept by the numbers of their fields."""
    place = column.data_page_offset
    if column.dictionary_page_offset is not None and 0 < column.dictionary_page_offset < place:
        place = column.dictionary_page_offset
    end = place + column.total_compressed_size
    if not 0 <= place <= end <= len(body):
        raise ValueError("a column must stand within the file")
    while place < end:
        head = _Head(body, place)
        page = head.read_struct(_MAX_DEPTH)
        if min(page[_DECODED], page[_ENCODED]) < 0:
            raise ValueError("a page must have a size")
        yield page
        place = head.place + page[_ENCODED]


class _Head:
    """Reads Thrift's compact protocol, as far as heads of pages need it.

    Source: https://github.com/apache/thrift, doc/specs/thrift-compact-protocol.md, and parquet.thrift of
    https://github.com/apache/parquet-format.
    """

    def __init__(self, data: bytes | bytearray, place: int) -> None:
        self._data = data
        self.place = place

    def read_struct(self, depth: int) -> dict[int, Any]:
        """Return the 32-bit numbers and the structs of a struct; of what is there twice the last, as decoders do."""
        if depth == 0:
            raise ValueError("the head of a page must not be nested so deep")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            kind = head & 0xF
            number = number + (head >> 4) if head >> 4 else _signed(self._varint())
            if kind == _STRUCT:
                fields[number] = self.read_struct(depth - 1)
            elif kind == _I32:
                fields[number] = _signed(self._varint() & 0xFFFFFFFF)
            elif kind not in _BOOLS:  # whose value is in the kind
                self._skip(kind)
        return fields

    def _skip(self, kind: int) -> None:
        if kind == _BYTE:
            self.place += 1
        elif kind in _INTEGERS:
            self._varint()
        elif kind == _DOUBLE:
            self.place += 8
        elif kind == _BINARY:
            size = self._varint()
            self.place += size
        else:  # nothing that the format has
            raise ValueError(f"the head of a page must have no field of the kind {kind}")

    def _byte(self) -> int:
        self.place += 1
        return self._data[self.place - 1]

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
