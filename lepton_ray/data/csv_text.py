"""CSV to raw blocks, with no record lost: each one is a row, or is told apart with its line and original text.

A chunk of bytes is cut into records with NumPy (a line end inside quotes has an odd number of quotes before it) and
its cells are parsed by pyarrow. Where quotes do not stand as RFC 4180 has them, that chunk takes a slower way: a regular
expression finds the records and Python's csv module their cells.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from lepton_ray.data.block import LINE, SOURCE, TEXT, bad_block, raw_block
from lepton_ray.spec.data import Column

_CHUNK_BYTES = 32 << 20
_MAX_RECORD_BYTES = 1 << 20  # a quote that is not closed within this is taken for a stray one
_QUOTE, _LF, _CR = b'"\n\r'  # as numbers, to compare with bytes
_BOM = b"\xef\xbb\xbf"

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Where the records of a chunk lie: ``data[starts[i]:ends[i]]`` without the line end; ``next_start`` is unread."""

    starts: Indices
    ends: Indices
    next_start: int
    is_unclosed: NDArray[np.bool_]
    is_regular: bool


@dataclass(frozen=True)
class _File:
    """What stays the same for all chunks of a file."""

    source: str
    delimiter: str
    columns: Mapping[str, Column]
    header: tuple[str, ...] = ()
    fault: str | None = None


def read_csv(stream: BinaryIO, source: str, delimiter: str, columns: Mapping[str, Column]) -> Iterator[pa.Table]:
    """Yield raw blocks of a CSV file.

    Args:
        stream: Bytes of the file, UTF-8 with or without a byte-order mark; line ends LF, CR LF or CR, also mixed.
        source: Name of the file, for the ledger.
        delimiter: One character.
        columns: The columns to read; the header may have others.

    Blank lines are no records.
    """
    file = _File(source, delimiter, columns)
    line, rest, is_last = 1, b"", False
    while not is_last:
        chunk = stream.read(_CHUNK_BYTES)
        is_last = not chunk
        data = rest + chunk
        records = find_records(data, delimiter, is_last)
        texts = (data, records, line + _lines_before(data, records.starts))
        if not file.header and file.fault is None and len(records.starts):
            file, texts = _take_header(file, *texts)
        if len(texts[1].starts):
            yield _to_block(file, *texts)
        rest = data[records.next_start :]
        line += int(_lines_before(data, np.array([records.next_start]))[0])


def read_header(stream: BinaryIO, delimiter: str) -> list[str]:
    """Return the column names of a CSV file."""
    data = stream.read(_MAX_RECORD_BYTES)
    records = find_records(data, delimiter, is_last=True)
    if not len(records.starts):
        return []
    return _names(data, records, delimiter)


def find_records(data: bytes, delimiter: str, is_last: bool) -> Records:
    """Cut bytes that start at a record into records; the last one stays unread unless ``is_last``."""
    if not data:
        return Records(np.empty(0, int), np.empty(0, int), 0, np.empty(0, bool), is_regular=True)
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == _QUOTE)
    line_ends = _line_ends(array, is_last)
    outside = line_ends[np.searchsorted(quotes, line_ends) % 2 == 0] if len(quotes) else line_ends
    next_start = len(data) if is_last else (int(outside[-1]) + 1 if len(outside) else 0)
    used = quotes[: np.searchsorted(quotes, next_start)]
    starts = np.concatenate([[0], outside + 1])
    ends = np.concatenate([outside, [len(data)]]) if is_last else outside
    starts = starts[: len(ends)]
    is_too_long = (ends - starts).max(initial=0) > _MAX_RECORD_BYTES or (
        not is_last and len(data) - next_start > max(_MAX_RECORD_BYTES, _CHUNK_BYTES // 2)
    )
    if len(quotes) and (is_too_long or not _are_regular(array, used, delimiter)):
        return _find_irregular(data, delimiter, is_last)
    starts = _skip_marks(data, starts)
    ends = ends - ((ends > starts) & (array[np.maximum(ends - 1, 0)] == _CR) & (ends < len(data)))
    is_record = ends > starts
    starts, ends = starts[is_record], ends[is_record]
    return Records(starts, ends, next_start, np.zeros(len(starts), bool), is_regular=True)


def _skip_marks(data: bytes, starts: Indices) -> Indices:
    """Starts behind the byte-order mark; files that were joined have marks inside."""
    if _BOM not in data:
        return starts
    is_marked = np.array([data.startswith(_BOM, start) for start in starts.tolist()], bool)
    return np.where(is_marked, starts + len(_BOM), starts)


def _line_ends(array: NDArray[np.uint8], is_last: bool) -> Indices:
    """Positions of the last byte of each line end."""
    feeds = np.flatnonzero(array == _LF)
    returns = np.flatnonzero(array == _CR)
    if len(returns):
        is_final = returns == len(array) - 1
        is_lone = np.where(is_final, is_last, array[np.minimum(returns + 1, len(array) - 1)] != _LF)
        feeds = np.sort(np.concatenate([feeds, returns[is_lone]]))
    return feeds


def _are_regular(array: NDArray[np.uint8], quotes: Indices, delimiter: str) -> bool:
    """Whether each quote opens a cell, closes one, or is one of a doubled pair within one."""
    if len(quotes) % 2:
        return False
    if not len(quotes):
        return True
    borders = np.frombuffer(delimiter.encode() + b"\r\n", np.uint8)
    opening, closing = quotes[0::2], quotes[1::2]
    before = array[np.maximum(opening - 1, 0)]
    after = array[np.minimum(closing + 1, len(array) - 1)]
    is_reopened = np.concatenate([[False], opening[1:] == closing[:-1] + 1])
    starts_well = (opening == 0) | np.isin(before, borders) | is_reopened
    ends_well = (closing == len(array) - 1) | np.isin(after, borders) | np.concatenate([is_reopened[1:], [False]])
    has_bom = len(opening) and opening[0] == len(_BOM) and array[:3].tobytes() == _BOM
    return bool((starts_well[1 if has_bom else 0 :]).all() and ends_well.all())


def _find_irregular(data: bytes, delimiter: str, is_last: bool) -> Records:
    d = re.escape(delimiter.encode())
    cell = rb'(?:"(?:[^"]++|"")*+"[^%b\r\n]*+|[^"%b\r\n][^%b\r\n]*+|)' % (d, d, d)
    record = re.compile(rb"%b(?:%b%b)*+(?=\r\n|\n|\r|\Z)" % (cell, d, cell))
    line_end = re.compile(rb"\r\n|\n|\r|\Z")
    spans: list[tuple[int, int, bool]] = []
    position = 0
    while position < len(data):
        start = position + len(_BOM) if data.startswith(_BOM, position) else position
        match = record.match(data, start)
        end = match.end() if match else None
        if end is None or end - start > _MAX_RECORD_BYTES:
            if not is_last and len(data) - position <= _MAX_RECORD_BYTES:
                break
            end = _search(line_end, data, position).start()
        after = _search(line_end, data, end).end()
        if not is_last and after >= len(data) - 1:
            break
        if end > start:
            spans.append((start, end, match is None or end != match.end()))
        position = max(after, position + 1)
    starts, ends, is_unclosed = (
        (np.array(values) for values in zip(*spans, strict=True)) if spans else (np.empty(0, int),) * 3
    )
    return Records(starts, ends, position, is_unclosed.astype(bool), is_regular=False)


def _search(pattern: re.Pattern[bytes], data: bytes, position: int) -> re.Match[bytes]:
    """Search for a pattern that matches at the latest at the end of the data."""
    return next(pattern.finditer(data, position))


def _lines_before(data: bytes, positions: Indices) -> Indices:
    line_ends = _line_ends(np.frombuffer(data, np.uint8), is_last=True)
    return np.searchsorted(line_ends, positions)


def _take_header(
    file: _File, data: bytes, records: Records, lines: Indices
) -> tuple[_File, tuple[bytes, Records, Indices]]:
    names = _names(data, records, file.delimiter)
    fault = _header_fault(names, file, is_utf8=_is_utf8(data[records.starts[0] : records.ends[0]]))
    rest = Records(
        records.starts[1:], records.ends[1:], records.next_start, records.is_unclosed[1:], records.is_regular
    )
    return _File(file.source, file.delimiter, file.columns, tuple(names), fault), (data, rest, lines[1:])


def _names(data: bytes, records: Records, delimiter: str) -> list[str]:
    """Column names in the first record, without spaces around them."""
    return [name.strip() for name in _cells(_text_of(data, records, 0), delimiter)]


def _header_fault(names: Sequence[str], file: _File, is_utf8: bool) -> str | None:
    if not is_utf8:
        return "the header is not UTF-8"
    if missing := [name for name in file.columns if name not in names]:
        return f"the header lacks {', '.join(missing)}"
    if repeated := [name for name in file.columns if names.count(name) > 1]:
        return f"the header repeats {', '.join(repeated)}"
    return None


def _to_block(file: _File, data: bytes, records: Records, lines: Indices) -> pa.Table:
    """Tell rows from bad records and parse the rows."""
    reasons = _faults(file, data, records)
    good = np.array([reason is None for reason in reasons], bool) if reasons else np.ones(len(records.starts), bool)
    kept = Records(
        records.starts[good], records.ends[good], records.next_start, records.is_unclosed[good], records.is_regular
    )
    blocks = []
    if len(kept.starts):
        cells = _parse_regular(file, data, kept) if records.is_regular else _parse_irregular(file, data, kept)
        fate = {SOURCE: file.source, LINE: lines[good], TEXT: _texts(data, kept)}
        blocks.append(raw_block(file.columns, {name: cells[name] for name in file.columns}, fate, len(kept.starts)))
    if reasons:
        bad = [
            (int(lines[index]), _text_of(data, records, index), *reason)
            for index, reason in enumerate(reasons)
            if reason is not None
        ]
        blocks.append(bad_block(file.columns, file.source, bad))
    return pa.concat_tables(blocks)


def _faults(file: _File, data: bytes, records: Records) -> list[tuple[str, str] | None]:
    """Reason and detail of each record that is no row; empty when all are rows."""
    rows = len(records.starts)
    if file.fault is not None:
        return [("wrong_header", file.fault)] * rows
    faults: list[tuple[str, str] | None] = [None] * rows
    is_faulty = False
    if not _is_utf8(data):
        for index in range(rows):
            if not _is_utf8(data[records.starts[index] : records.ends[index]]):
                faults[index] = ("invalid_utf8", "the record must be UTF-8")
                is_faulty = True
    for index in np.flatnonzero(records.is_unclosed).tolist():
        faults[index] = ("malformed_quotes", "a quote must be closed within the record")
        is_faulty = True
    num_cells = _count_cells(file, data, records)
    for index in np.flatnonzero(num_cells != len(file.header)).tolist():
        if faults[index] is None:
            faults[index] = ("ragged_row", f"the row must have {len(file.header)} cells, got {num_cells[index]}")
            is_faulty = True
    return faults if is_faulty else []


def _count_cells(file: _File, data: bytes, records: Records) -> Indices:
    if not records.is_regular:
        return np.array(
            [len(_cells(_text_of(data, records, index), file.delimiter)) for index in range(len(records.starts))]
        )
    array = np.frombuffer(data, np.uint8)
    delimiters = np.flatnonzero(array == ord(file.delimiter))
    quotes = np.flatnonzero(array == _QUOTE)
    if len(quotes):
        delimiters = delimiters[np.searchsorted(quotes, delimiters) % 2 == 0]
    return np.searchsorted(delimiters, records.ends) - np.searchsorted(delimiters, records.starts) + 1


def _parse_regular(file: _File, data: bytes, records: Records) -> Any:
    rows = b"\n".join(
        data[start:end] for start, end in zip(records.starts.tolist(), records.ends.tolist(), strict=True)
    )
    names = list(file.header)
    unique = [name if name in file.columns else f"_{index}" for index, name in enumerate(names)]
    table = pacsv.read_csv(
        pa.BufferReader(rows + b"\n"),
        read_options=pacsv.ReadOptions(column_names=unique, block_size=len(rows) + 2, use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=file.delimiter, newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            include_columns=list(file.columns),
            column_types=dict.fromkeys(file.columns, pa.string()),
            strings_can_be_null=False,
        ),
    )
    if table.num_rows == len(records.starts):
        return table
    return _parse_irregular(file, data, records)


def _parse_irregular(file: _File, data: bytes, records: Records) -> dict[str, list[str]]:
    rows = [_cells(_text_of(data, records, index), file.delimiter) for index in range(len(records.starts))]
    return {name: [row[file.header.index(name)] for row in rows] for name in file.columns}


def _cells(text: str, delimiter: str) -> list[str]:
    """Cells of one record by Python's csv module."""
    limit = csv.field_size_limit(max(len(text) + 1, 131072))
    try:
        return next(csv.reader([text], delimiter=delimiter), [])
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(limit)


def _texts(data: bytes, records: Records) -> pa.Array:
    texts = [data[start:end] for start, end in zip(records.starts.tolist(), records.ends.tolist(), strict=True)]
    return pc.cast(pa.array(texts, pa.large_binary()), pa.large_string())


def _text_of(data: bytes, records: Records, index: int) -> str:
    return data[records.starts[index] : records.ends[index]].decode("utf-8", "backslashreplace")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
