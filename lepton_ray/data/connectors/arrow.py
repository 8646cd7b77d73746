"""Arrow IPC: files (Feather version 2), cut by record batches, and streams, read whole."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lepton_ray.data.connectors.files import Piece, Span, even_ranges
from lepton_ray.data.connectors.filesystems import SourceFile
from lepton_ray.data.connectors.tables import TableConnector, in_slices

_MAGIC = b"ARROW1"


class ArrowConnector(TableConnector):
    """Reads Arrow IPC files and streams."""

    suffixes = (".arrow", ".feather", ".ipc", ".arrows")

    def schema_of(self, path: str) -> pa.Schema:
        """The schema at the start of a stream or the end of a file."""
        with self.open(path) as stream:
            return _open(stream).schema

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut a file between record batches, into even runs of them."""
        with self.open(file.path) as stream:
            reader = _open(stream, pa.ipc.IpcReadOptions(included_fields=[0]))
            if not isinstance(reader, pa.ipc.RecordBatchFileReader):
                yield Piece(Span(file.path), file.size_bytes)
                return
            count, line = reader.num_record_batches, 1
            for start, end in even_ranges(count, -(-file.size_bytes // target_bytes)):
                yield Piece(Span(file.path, start, end, line), (end - start) * file.size_bytes // max(count, 1))
                line += sum(reader.get_batch(index).num_rows for index in range(start, end))

    def batches(self, span: Span, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """Yield record batches."""
        with self.open(span.path) as stream:
            reader = _open(stream)
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                end = reader.num_record_batches if span.end is None else span.end
                batches = (reader.get_batch(index) for index in range(span.start, end))
            else:
                batches = iter(reader)
            for batch in batches:
                chosen = batch if names is None else batch.select(list(names))
                _validate(chosen)
                yield from in_slices(chosen)


def _validate(batch: pa.RecordBatch) -> None:
    """See that bytes of a damaged file are not read as lengths; texts that are no UTF-8 are left to ``finish``."""
    as_bytes = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    for column in batch.columns:
        (column.view(as_bytes[column.type]) if column.type in as_bytes else column).validate(full=True)


def _open(stream: Any, options: Any = None) -> Any:
    is_file = stream.read(len(_MAGIC)) == _MAGIC
    stream.seek(0)
    return pa.ipc.open_file(stream, options=options) if is_file else pa.ipc.open_stream(stream)
