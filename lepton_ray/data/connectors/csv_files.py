"""CSV files: cut between records; ``data/csv_text`` knows the format."""

from collections.abc import Iterator
from typing import Any

from lepton_ray.data import csv_records, csv_text
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.files import PART_BYTES, FileConnector, Piece, Span, shortened
from lepton_ray.data.connectors.filesystems import SourceFile
from lepton_ray.spec.sources import CsvSource

_HEAD_BYTES = 1 << 16


class CsvConnector(FileConnector):
    """Reads CSV files. One that is cut is read once more for that: only so are its records and their lines known."""

    suffixes = (".csv", ".tsv", ".txt")
    is_text = True

    def columns_of(self, path: str) -> dict[str, str]:
        """The names in the header; none where it is no text: then reading says what is wrong."""
        with self.stream(path) as stream:
            file = csv_text.open_file(self._file(path), self._head(stream))
        is_text = file.fault is None or "UTF-8" not in file.fault
        return dict.fromkeys(file.header, "text") if is_text else {}

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut between records."""
        with self.stream(file.path) as stream:
            for start, end, line, num_lines in csv_text.find_cuts(stream, file.path, self._delimiter, target_bytes):
                yield Piece(Span(file.path, start, end, line, num_lines), end - start)

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield blocks of a file, or the one block of a piece of it."""
        with self.stream(span.path) as stream:
            file = csv_text.open_file(self._file(span.path), self._head(stream))
        for chunk in self._chunks(span):
            if (block := csv_text.parse_chunk(file, chunk)) is not None:
                yield block

    def _chunks(self, span: Span) -> Iterator[csv_text.Chunk]:
        with self.stream(span.path) as stream:
            if span.end is None:
                yield from csv_text.cut_csv(stream, span.path, self._delimiter, PART_BYTES)
                return
            stream.seek(span.start)
            data = stream.read(span.end - span.start)
            if len(data) < span.end - span.start:
                raise shortened(span.path)
            yield csv_text.Chunk(data, span.start, span.line, span.num_lines)

    def _head(self, stream: Any) -> bytes:
        """Return the first bytes of a file, with the whole header in them."""
        head: bytes = stream.read(_HEAD_BYTES)
        if len(csv_records.find_records(head, self._delimiter, is_last=False).starts):
            return head
        return head + csv_text.head_of(stream)

    def _file(self, path: str) -> csv_text.CsvFile:
        return csv_text.CsvFile(path, self._delimiter, self.data.columns, self.data.missing_words)

    @property
    def _delimiter(self) -> str:
        return source_as(self.data, CsvSource).delimiter
