"""Text files with one record a line, ended by LF or CR LF: where they can be cut, and their chunks of whole lines."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors.files import FileConnector, Piece, Span, shortened
from lepton_ray.data.connectors.filesystems import SourceFile

CHUNK_BYTES = 12 << 20  # of text in a block
MAX_LINE_BYTES = 64 << 20
_LF = ord("\n")


class Chunk(NamedTuple):
    """Whole lines."""

    data: bytes
    line: int
    """Number of the first line, from 1."""


class LinesConnector(FileConnector):
    """Cuts files at line ends. A file is read once more for that: only so are the lines of each part known."""

    is_text = True

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut at the last line end within each run of target_bytes."""
        start, line = 0, 1
        with self.open(file.path) as stream:
            while start < file.size_bytes:
                end, num_lines = _next_cut(stream, start, target_bytes, file)
                yield Piece(Span(file.path, start, end, line), end - start)
                start, line = end, line + num_lines

    def chunks(self, span: Span) -> Iterator[Chunk]:
        """Yield the span's lines; each chunk ends with a line end, but for a last line without one."""
        with self.stream(span.path) as stream:
            if span.start:
                stream.seek(span.start)
            left = None if span.end is None else span.end - span.start
            yield from _whole_lines(stream, left, span)


def _next_cut(stream: Any, start: int, target_bytes: int, file: SourceFile) -> tuple[int, int]:
    """Return the end of the run that begins at ``start``, and how many line ends it has."""
    stream.seek(start)
    data = b""
    while chunk := stream.read(target_bytes):
        data += chunk
        is_rest = start + len(data) >= file.size_bytes
        cut = len(data) if is_rest else data.rfind(b"\n") + 1
        if cut:
            return start + cut, count_lines(data[:cut])
        _check_line(len(data), file.path)
    raise shortened(file.path)


def _whole_lines(stream: Any, left: int | None, span: Span) -> Iterator[Chunk]:
    line, rest = span.line, b""
    while chunk := stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)):
        left = None if left is None else left - len(chunk)
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest += chunk
            _check_line(len(rest), span.path)
            continue
        data = rest + chunk[:cut]
        rest = chunk[cut:]
        yield Chunk(data, line)
        line += count_lines(data)
    if left:
        raise shortened(span.path)
    if rest:
        yield Chunk(rest, line)


def _check_line(length: int, path: str) -> None:
    if length > MAX_LINE_BYTES:
        raise DataError(
            f"{path} must have lines of at most {MAX_LINE_BYTES >> 20} MiB, got a longer one. Write one record a line"
        )


def count_lines(data: bytes) -> int:
    """Return the number of line ends."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LF))


def line_bounds(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and ends (without LF) of a chunk's lines."""
    feeds = np.flatnonzero(np.frombuffer(data, np.uint8) == _LF)
    is_open = not data.endswith(b"\n")
    ends = np.append(feeds, len(data)) if is_open else feeds
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    return starts, ends.astype(np.int64)
