"""Parquet: cut by row groups, read by column, numbers as numbers and dictionaries as dictionaries."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lepton_ray.data.connectors.files import Piece, Span
from lepton_ray.data.connectors.filesystems import SourceFile
from lepton_ray.data.connectors.tables import BATCH_ROWS, TableConnector, in_slices, rows_at_once

_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_DICTIONARY_BYTES = 1 << 20  # as the format's libraries write it
_INDEX_BYTES = 4


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
            metadata = pq.read_metadata(stream)
            end = metadata.num_row_groups if span.end is None else span.end
            groups = list(range(span.start, end))
            leaves = {metadata.schema.column(index).path for index in range(metadata.num_columns)}
            categories = [name for name in self.category_names if name in leaves]  # pyarrow fails for others
            repeated = [name for name in _repeated(metadata, groups) if name not in categories]
            file = pq.ParquetFile(
                stream,
                metadata=metadata,
                read_dictionary=[*categories, *repeated],
                pre_buffer=is_remote,
                buffer_size=0 if is_remote else 1 << 20,
            )
            step = min((_rows_at_once(metadata.row_group(group), names) for group in groups), default=1)
            for batch in file.iter_batches(step, row_groups=groups, columns=names, use_threads=False):
                for rows in in_slices(batch):
                    yield _decoded(rows, repeated)


def _repeated(metadata: pq.FileMetaData, groups: Sequence[int]) -> set[str]:
    """Return columns of texts that may be repeated so often that they take much more than they do in the file.

    Those that are not have another size: writers give a dictionary up when it is larger than a page.
    """
    kinds = {field.name: field.type for field in metadata.schema.to_arrow_schema()}
    found = set()
    for number in groups:
        group = metadata.row_group(number)
        for column in (group.column(index) for index in range(group.num_columns)):
            most_bytes = _DICTIONARY_BYTES + column.num_values * _INDEX_BYTES
            is_small = column.has_dictionary_page and column.total_uncompressed_size <= most_bytes
            if is_small and kinds.get(column.path_in_schema) in _TEXTS:
                found.add(column.path_in_schema)
    return found


def _decoded(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    for name in names:
        if (index := batch.schema.get_field_index(name)) >= 0:
            batch = batch.set_column(index, name, batch.column(index).dictionary_decode())
    return batch


def _rows_at_once(group: pq.RowGroupMetaData, names: Sequence[str] | None) -> int:
    """Return how many rows of a group a block may hold, by their size before they were compressed."""
    step = rows_at_once(group.num_rows, group.total_byte_size)
    if names is None or step == BATCH_ROWS:
        return step
    columns = (group.column(index) for index in range(group.num_columns))
    sizes = {column.path_in_schema: column.total_uncompressed_size for column in columns}
    read = sum(size for path, size in sizes.items() if path in names or path.partition(".")[0] in names)
    return rows_at_once(group.num_rows, read)
