"""Parquet: cut by row groups, read by column, numbers as numbers and dictionaries as dictionaries."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lepton_ray.data.connectors.files import Piece, Span
from lepton_ray.data.connectors.filesystems import SourceFile
from lepton_ray.data.connectors.tables import BATCH_ROWS, TableConnector


class ParquetConnector(TableConnector):
    """Reads Parquet files."""

    suffixes = (".parquet", ".pq")
    expansion = 4

    def schema_of(self, path: str) -> pa.Schema:
        """The schema in the footer."""
        with self.open(path) as file:
            return pq.read_schema(file)

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut between row groups; their size is that of their columns when decompressed."""
        with self.open(file.path) as stream:
            metadata = pq.ParquetFile(stream).metadata
        line = 1
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            yield Piece(Span(file.path, index, index + 1, line), group.total_byte_size)
            line += group.num_rows

    def batches(self, span: Span, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """Yield row groups in batches."""
        is_remote = not isinstance(self.location[0], pafs.LocalFileSystem)
        with self.open(span.path) as stream:
            file = pq.ParquetFile(stream, read_dictionary=self.category_names, pre_buffer=is_remote)
            end = file.metadata.num_row_groups if span.end is None else span.end
            groups = list(range(span.start, end))
            yield from file.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False)
