"""Where the records of delimited text lie: RFC 4180, and what stands in files all the same.

A line end inside quotes has an odd number of quotes before it, which NumPy counts. Where quotes do not stand as they should, a
regular expression finds the records.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_RECORD_BYTES = 1 << 20  # a quote that is not closed within this is taken for a stray one
QUOTE, LF, CR = b'"\n\r'  # as numbers, to compare with bytes
BOM = b"\xef\xbb\xbf"

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Where the records of a chunk lie: ``data[starts[i]:ends[i]]`` without the line end; ``next_start`` is unread."""

    starts: Indices
    ends: Indices
    next_start: int
    is_unclosed: NDArray[np.bool_]
    is_regular: bool

    def where(self, mask: NDArray[np.bool_]) -> "Records":
        """Return some of the records."""
        return Records(self.starts[mask], self.ends[mask], self.next_start, self.is_unclosed[mask], self.is_regular)


def find_records(data: bytes, delimiter: str, is_last: bool) -> Records:
    """Cut bytes that start at a record into records; the last one stays unread unless ``is_last``."""
    if not data:
        return Records(np.empty(0, int), np.empty(0, int), 0, np.empty(0, bool), is_regular=True)
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == QUOTE)
    line_ends = _line_ends(array, is_last)
    outside = line_ends[np.searchsorted(quotes, line_ends) % 2 == 0] if len(quotes) else line_ends
    next_start = len(data) if is_last else (int(outside[-1]) + 1 if len(outside) else 0)
    used = quotes[: np.searchsorted(quotes, next_start)]
    starts = np.concatenate([[0], outside + 1])
    ends = np.concatenate([outside, [len(data)]]) if is_last else outside
    starts = starts[: len(ends)]
    is_too_long = (ends - starts).max(initial=0) > MAX_RECORD_BYTES or (
        not is_last and len(data) - next_start > 2 * MAX_RECORD_BYTES
    )
    if len(quotes) and (is_too_long or not are_regular(array, used, delimiter)):
        return _find_irregular(data, delimiter, is_last)
    starts = _skip_marks(data, starts)
    ends = ends - ((ends > starts) & (array[np.maximum(ends - 1, 0)] == CR) & (ends < len(data)))
    is_record = ends > starts
    starts, ends = starts[is_record], ends[is_record]
    return Records(starts, ends, next_start, np.zeros(len(starts), bool), is_regular=True)


def _skip_marks(data: bytes, starts: Indices) -> Indices:
    """Starts behind the byte-order mark; files that were joined have marks inside."""
    if not has_mark(data):
        return starts
    is_marked = np.array([data.startswith(BOM, start) for start in starts.tolist()], bool)
    return np.where(is_marked, starts + len(BOM), starts)


def _line_ends(array: NDArray[np.uint8], is_last: bool) -> Indices:
    """Positions of the last byte of each line end."""
    feeds = np.flatnonzero(array == LF)
    returns = np.flatnonzero(array == CR)
    if len(returns):
        is_final = returns == len(array) - 1
        is_lone = np.where(is_final, is_last, array[np.minimum(returns + 1, len(array) - 1)] != LF)
        feeds = np.sort(np.concatenate([feeds, returns[is_lone]]))
    return feeds


def are_regular(array: NDArray[np.uint8], quotes: Indices, delimiter: str) -> bool:
    """Whether each quote opens a cell, closes one, or is one of a doubled pair within one."""
    if len(quotes) % 2:
        return False
    if not len(quotes):
        return True
    is_border = np.zeros(256, bool)
    is_border[np.frombuffer(delimiter.encode() + b"\r\n", np.uint8)] = True
    opening, closing = quotes[0::2], quotes[1::2]
    before = array[np.maximum(opening - 1, 0)]
    after = array[np.minimum(closing + 1, len(array) - 1)]
    is_reopened = np.concatenate([[False], opening[1:] == closing[:-1] + 1])
    starts_well = (opening == 0) | is_border[before] | is_reopened
    ends_well = (closing == len(array) - 1) | is_border[after] | np.concatenate([is_reopened[1:], [False]])
    has_bom = len(opening) and opening[0] == len(BOM) and array[:3].tobytes() == BOM
    return bool((starts_well[1 if has_bom else 0 :]).all() and ends_well.all())


def _find_irregular(data: bytes, delimiter: str, is_last: bool) -> Records:
    d = re.escape(delimiter.encode())
    cell = rb'(?:"(?:[^"]++|"")*+"[^%b\r\n]*+|[^"%b\r\n][^%b\r\n]*+|)' % (d, d, d)
    record = re.compile(rb"%b(?:%b%b)*+(?=\r\n|\n|\r|\Z)" % (cell, d, cell))
    line_end = re.compile(rb"\r\n|\n|\r|\Z")
    spans: list[tuple[int, int, bool]] = []
    position = 0
    while position < len(data):
        start = position + len(BOM) if data.startswith(BOM, position) else position
        match = record.match(data, start)
        end = match.end() if match else None
        if end is None or end - start > MAX_RECORD_BYTES:
            if not is_last and len(data) - position <= MAX_RECORD_BYTES:
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


def lines_before(data: bytes, positions: Indices) -> Indices:
    """Return how many lines end before each position."""
    line_ends = _line_ends(np.frombuffer(data, np.uint8), is_last=True)
    return np.searchsorted(line_ends, positions)


def text_of(data: bytes, records: Records, index: int) -> str:
    """Return a record as text; what is no UTF-8 stands as escapes."""
    return data[records.starts[index] : records.ends[index]].decode("utf-8", "backslashreplace")


def has_mark(data: bytes) -> bool:
    """Whether there is a byte-order mark anywhere."""
    return BOM[:1] in data and BOM in data  # looking for one byte takes a tenth of the time
