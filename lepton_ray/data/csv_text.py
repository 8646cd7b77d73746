"""CSV to raw blocks, with no record lost: each one is a row, or is told apart with its line and original text.

A file is cut into chunks at record boundaries. pyarrow parses a chunk whose records are all rows straight to the types of
the columns. Otherwise it is cut into records (``csv_records``), what is no row is taken out, and pyarrow parses the rest.
Where quotes do not stand as RFC 4180 has them, Python's csv module finds the cells.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from lepton_ray.core.errors import DataError
from lepton_ray.data.block import NO_TEXT, BadRecord, Positions, RawBlock
from lepton_ray.data.csv_records import (
    BOM,
    LF,
    MAX_RECORD_BYTES,
    QUOTE,
    Indices,
    Records,
    are_regular,
    find_records,
    has_mark,
    lines_before,
    text_of,
)
from lepton_ray.spec.data import CategoryColumn, Column, NumberColumn

_HEAD_BYTES = _MIN_READ_BYTES = 4 * MAX_RECORD_BYTES
_MAX_LINE_BYTES = 64 << 20  # a file without line ends would be held whole
csv.field_size_limit(2 * _MAX_LINE_BYTES)  # of all threads: set for one record, it would be taken from another's
DELIMITERS = (",", ";", "\t", "|")
"""The usual ones; of those that fit alike, the first."""
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Chunk:
    """Whole records of a file: its bytes from ``start``, and the line that they begin on."""

    data: bytes
    start: int
    line: int
    num_lines: int | None = None
    """Where cutting has seen that its quotes are plain, so that parsing need not look again."""


@dataclass(frozen=True)
class CsvFile:
    """What stays the same for all chunks of a file."""

    source: str
    """Name of the file, for the ledger."""
    delimiter: str
    columns: Mapping[str, Column]
    """The columns to read; the header may have others."""
    missing_words: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    fault: str | None = None
    """Why no record of the file can be a row."""


def cut_csv(stream: BinaryIO, source: str, delimiter: str, target_bytes: int) -> Iterator[Chunk]:
    """Yield a file's records behind the header, in chunks of about ``target_bytes``.

    Args:
        stream: Bytes of the file, UTF-8 with or without a byte-order mark; line ends LF, CR LF or CR, also mixed.
        source: Name of the file, for errors.
        delimiter: One character.
        target_bytes: How much a chunk should hold; where it is cut changes no record.

    Raises:
        DataError: If a record is longer than 64 MiB.
    """
    for data, end, start, line, num_lines in _cut(stream, source, delimiter, target_bytes):
        yield Chunk(data[:end], start, line, num_lines)


def find_cuts(
    stream: BinaryIO, source: str, delimiter: str, target_bytes: int
) -> Iterator[tuple[int, int, int, int | None]]:
    """Yield start, end, first line and ``num_lines`` of each chunk of ``cut_csv``, without copying what is in it."""
    for _, end, start, line, num_lines in _cut(stream, source, delimiter, target_bytes):
        yield start, start + end, line, num_lines


def _cut(
    stream: BinaryIO, source: str, delimiter: str, target_bytes: int
) -> Iterator[tuple[bytes, int, int, int, int | None]]:
    """Yield data that begin with a chunk, the chunk's length, its offset and line in the file, and its ``num_lines``."""
    head = head_of(stream)
    start, line = _skip_header(head, delimiter)
    read = _read_on(stream, head[start:])
    rest, is_last = b"", False
    while not is_last:
        more = read(max(target_bytes - len(rest), _MIN_READ_BYTES))
        is_last = not more
        data = rest + more
        end, is_plain = _last_boundary(data, delimiter, is_last)
        if end:
            num_lines = _count_line_ends(data, end)
            yield data, end, start, line, num_lines if is_plain else None
            line += num_lines
        start, rest = start + end, data[end:]
        if len(rest) > _MAX_LINE_BYTES:
            raise DataError(
                f"{source} must have records of at most {_MAX_LINE_BYTES >> 20} MiB, got a longer one. Write one record a line"
            )


def _read_on(stream: BinaryIO, head: bytes) -> Callable[[int], bytes]:
    """Return what reads ``head``, then the rest of the stream."""
    left = head

    def read(num_bytes: int) -> bytes:
        nonlocal left
        data, left = left[:num_bytes], left[num_bytes:]
        return data + stream.read(num_bytes - len(data)) if len(data) < num_bytes else data

    return read


def open_file(file: CsvFile, head: bytes) -> CsvFile:
    """Return ``file`` with the header that stands in ``head``, the first bytes of the file."""
    header_end, _ = _skip_header(head, file.delimiter)
    text = head[:header_end].rstrip(b"\r\n").rpartition(BOM)[2].lstrip(b"\r\n")
    names = read_header(head, file.delimiter)
    fault = "the header is not UTF-8. Set data.source.encoding" if not _is_utf8(text) else _header_fault(names, file)
    return CsvFile(file.source, file.delimiter, file.columns, file.missing_words, tuple(names), fault)


def head_of(stream: BinaryIO) -> bytes:
    """Return as much of a file as a header may take."""
    return stream.read(_HEAD_BYTES)


def read_header(head: bytes, delimiter: str) -> list[str]:
    """Return the column names in the first record of ``head``, without spaces around them."""
    records = find_records(head, delimiter, is_last=True)
    if not len(records.starts):
        return []
    return [name.strip() for name in _cells(text_of(head, records, 0), delimiter)]


def parse_chunk(file: CsvFile, chunk: Chunk) -> RawBlock | None:
    """Return the records of a chunk, or None if it has only blank lines."""
    if file.fault is None and (table := _parse_quickly(file, chunk)) is not None:
        lines = np.arange(chunk.line, chunk.line + table.num_rows)
        return RawBlock(file.source, table, lines, _LineTexts(chunk.data))
    return _parse_records(file, chunk)


def _skip_header(data: bytes, delimiter: str) -> tuple[int, int]:
    """Where the records behind the header begin: offset and line."""
    records = find_records(data, delimiter, is_last=True)
    if not len(records.starts):
        return len(data), 1
    end = int(records.ends[0])
    end += 2 if data.startswith(b"\r\n", end) else min(1, len(data) - end)
    return end, 1 + _count_line_ends(data, end)


def _last_boundary(data: bytes, delimiter: str, is_last: bool) -> tuple[int, bool]:
    """Offset behind the last record of ``data`` that is whole, and whether its quotes and line ends are known to be plain."""
    if is_last:
        return len(data), False
    if b"\r" not in data and (end := _last_feed_outside(data, delimiter)) is not None:
        return end, True
    return find_records(data, delimiter, is_last).next_start, False


def _last_feed_outside(data: bytes, delimiter: str) -> int | None:
    """Offset behind the last line end that is outside of quotes; None where quotes are not plain enough to tell at once."""
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == QUOTE) if b'"' in data else np.empty(0, int)
    end = data.rfind(b"\n")
    while end >= 0 and np.searchsorted(quotes, end) % 2:
        end = data.rfind(b"\n", 0, end)
    used = quotes[: np.searchsorted(quotes, end)]
    is_open = len(data) - end > 2 * MAX_RECORD_BYTES  # a quote that is not closed within reach
    if is_open or not are_regular(array, used, delimiter) or _longest_quote(used) > MAX_RECORD_BYTES:
        return None
    return end + 1


def _longest_quote(quotes: Indices) -> int:
    """Length of the longest quoted cell, doubled quotes included."""
    if not len(quotes):
        return 0
    opening, closing = quotes[0::2], quotes[1::2]
    is_first = np.append(True, opening[1:] != closing[:-1] + 1)
    firsts = np.flatnonzero(is_first)
    lasts = np.append(firsts[1:] - 1, len(closing) - 1)
    return int((closing[lasts] - opening[firsts]).max())


def _count_line_ends(data: bytes, end: int) -> int:
    lone = data.count(b"\r", 0, end) - data.count(b"\r\n", 0, end) if b"\r" in data else 0
    return _count_feeds(data, end) + lone


def _count_feeds(data: bytes, end: int) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8, end) == LF))  # six times as fast as bytes.count


@dataclass
class _LineTexts:
    """Original texts of a chunk without quotes over several lines, found when they are asked for."""

    data: bytes
    _ends: Indices | None = field(default=None, init=False)

    def __call__(self, positions: Positions) -> list[str]:
        if self._ends is None:
            ends = np.flatnonzero(np.frombuffer(self.data, np.uint8) == LF)
            self._ends = ends if self.data.endswith(b"\n") else np.append(ends, len(self.data))
        starts = np.append(0, self._ends[:-1] + 1)
        return [
            self.data[starts[i] : self._ends[i]].removesuffix(b"\r").decode("utf-8", "backslashreplace")
            for i in positions.tolist()
        ]


def _parse_quickly(file: CsvFile, chunk: Chunk) -> pa.Table | None:
    """Parse a chunk each of whose lines is a row; None where that cannot be taken for granted."""
    num_lines = _count_plain_lines(chunk.data, file.delimiter) if chunk.num_lines is None else chunk.num_lines
    # pyarrow does not decode the columns that are not read
    if num_lines is None or has_mark(chunk.data) or not _is_utf8(chunk.data):
        return None
    table = _parse_cells(file, chunk.data)
    return table if table is not None and table.num_rows == num_lines else None


def _count_plain_lines(data: bytes, delimiter: str) -> int | None:
    """Number of lines; None where quotes or line ends are not plain."""
    if b'"' in data:
        array = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(array == QUOTE)
        if not are_regular(array, quotes, delimiter) or _longest_quote(quotes) > MAX_RECORD_BYTES:
            return None
    if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
        return None
    return _count_feeds(data, len(data)) + (not data.endswith(b"\n"))


def _parse_cells(file: CsvFile, data: bytes) -> pa.Table | None:
    """Parse rows to the columns' types; numbers as text where a cell is no number, None where a row has other cells."""
    for numbers, missing_words in ((pa.float64(), ()), (pa.float64(), file.missing_words), (pa.string(), ())):
        types = {name: _cell_type(column, numbers) for name, column in file.columns.items()}
        try:
            table = _read(file, data, types, missing_words)  # each word costs time, and most files need none
            if all(_is_finite(column) for column in table.columns):
                return table
        except pa.ArrowInvalid as error:
            if "conversion error" not in str(error):
                return None
        except pa.ArrowKeyError:
            return None
    return None


def _is_finite(column: pa.ChunkedArray) -> bool:
    """Whether all numbers are: pyarrow takes texts such as ``NAN`` for numbers, which are none here."""
    return not pa.types.is_floating(column.type) or pc.all(pc.is_finite(column)).as_py() is not False


def _cell_type(column: Column, numbers: pa.DataType) -> pa.DataType:
    if isinstance(column, NumberColumn):
        is_plain = column.decimal == "." and not column.thousands and not column.units
        return numbers if is_plain else pa.string()
    return _DICTIONARY if isinstance(column, CategoryColumn) else pa.string()


def _read(file: CsvFile, data: bytes, types: Mapping[str, pa.DataType], missing_words: Sequence[str]) -> pa.Table:
    unique = [name if name in file.columns else f"_{index}" for index, name in enumerate(file.header)]
    return pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(column_names=unique, block_size=len(data) + 2, use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=file.delimiter, newlines_in_values=b'"' in data),
        convert_options=pacsv.ConvertOptions(
            include_columns=list(file.columns),
            column_types=dict(types),
            null_values=["", *missing_words],
            strings_can_be_null=not missing_words,  # they are for numbers: of texts an ignored one keeps them, and tags may
        ),
    )


def _parse_records(file: CsvFile, chunk: Chunk) -> RawBlock | None:
    """Tell rows from bad records and parse the rows."""
    data = chunk.data
    records = find_records(data, file.delimiter, is_last=True)
    if not len(records.starts):
        return None
    lines = chunk.line + lines_before(data, records.starts)
    faults = _faults(file, data, records)
    is_row = np.ones(len(records.starts), bool)
    is_row[list(faults)] = False
    rows = records.where(is_row)
    bad = tuple(
        BadRecord(int(lines[index]), text_of(data, records, index), *fault) for index, fault in sorted(faults.items())
    )
    return RawBlock(file.source, _parse_rows(file, data, rows), lines[is_row], _texts(data, rows), bad)


def _parse_rows(file: CsvFile, data: bytes, rows: Records) -> pa.Table:
    if file.fault is None and rows.is_regular and len(rows.starts):
        table = _parse_cells(file, _joined(data, rows))
        if table is not None and table.num_rows == len(rows.starts):
            return table
    cells = [_cells(text_of(data, rows, index), file.delimiter) for index in range(len(rows.starts))]
    places = {name: file.header.index(name) for name in file.columns if name in file.header}
    arrays = {name: pa.array([row[place] for row in cells], pa.string()) for name, place in places.items()}
    return pa.table({name: arrays.get(name, pa.nulls(len(cells), pa.string())) for name in file.columns})


def _joined(data: bytes, rows: Records) -> bytes:
    """The rows' bytes, a line each; rows that follow each other are copied as one."""
    gaps = np.flatnonzero(rows.starts[1:] - rows.ends[:-1] > len(b"\r\n"))
    firsts = rows.starts[np.append(0, gaps + 1)].tolist()
    lasts = rows.ends[np.append(gaps, len(rows.ends) - 1)].tolist()
    return b"\n".join(data[first:last] for first, last in zip(firsts, lasts, strict=True)) + b"\n"


def _faults(file: CsvFile, data: bytes, records: Records) -> dict[int, tuple[str, str]]:
    """Reason and detail of each record that is no row, by its index."""
    if file.fault is not None:
        return dict.fromkeys(range(len(records.starts)), ("wrong_header", file.fault))
    faults: dict[int, tuple[str, str]] = {}
    num_cells = _count_cells(file, data, records)
    for index in np.flatnonzero(num_cells != len(file.header)).tolist():
        faults[index] = ("ragged_row", f"the row must have {len(file.header)} cells, got {num_cells[index]}")
    for index in np.flatnonzero(records.is_unclosed).tolist():
        faults[index] = ("malformed_quotes", "a quote must be closed within the record")
    if not _is_utf8(data):
        for index in range(len(records.starts)):
            if not _is_utf8(data[records.starts[index] : records.ends[index]]):
                faults[index] = NO_TEXT
    return faults


def _texts(data: bytes, records: Records) -> Callable[[Positions], list[str]]:
    return lambda positions: [text_of(data, records, index) for index in positions.tolist()]


def _header_fault(names: Sequence[str], file: CsvFile) -> str | None:
    if missing := [name for name in file.columns if name not in names]:
        if len(names) == 1 and (other := _find_delimiter(names[0], missing, file.delimiter)):
            return f"the header must have {file.delimiter!r} between names, got {other!r}"
        return f"the header lacks {', '.join(missing)}"
    if repeated := [name for name in file.columns if names.count(name) > 1]:
        return f"the header repeats {', '.join(repeated)}"
    return None


def _find_delimiter(header: str, names: Sequence[str], wrong: str) -> str | None:
    """Return what stands between the names in a header, if it is another of the usual delimiters than the wrong one."""
    for delimiter in DELIMITERS:
        if delimiter != wrong and set(names) <= {cell.strip() for cell in _cells(header, delimiter)}:
            return delimiter
    return None


def _count_cells(file: CsvFile, data: bytes, records: Records) -> Indices:
    if not records.is_regular:
        return np.array(
            [len(_cells(text_of(data, records, index), file.delimiter)) for index in range(len(records.starts))]
        )
    array = np.frombuffer(data, np.uint8)
    delimiters = np.flatnonzero(array == ord(file.delimiter))
    quotes = np.flatnonzero(array == QUOTE)
    if len(quotes):
        delimiters = delimiters[np.searchsorted(quotes, delimiters) % 2 == 0]
    return np.searchsorted(delimiters, records.ends) - np.searchsorted(delimiters, records.starts) + 1


def _cells(text: str, delimiter: str) -> list[str]:
    """Cells of one record by Python's csv module."""
    try:
        return next(csv.reader([text], delimiter=delimiter), [])
    except csv.Error:
        return []


def _is_utf8(data: bytes) -> bool:
    ends = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(data)]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
