"""Files that hold typed tables: Parquet, Arrow IPC, ORC. What they share: columns by name, rows by number."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.connectors.cells import finish, lines_from, row_texts
from lepton_ray.data.connectors.files import FileConnector, Span
from lepton_ray.spec.data import CategoryColumn

BATCH_ROWS = 1 << 17
BATCH_BYTES = 32 << 20
_BAD_ROWS = 4096  # of a file none of whose records is a row: they are written down as texts


class TableConnector(FileConnector):
    """Reads tables whose schema stands in the file."""

    @abstractmethod
    def schema_of(self, path: str) -> pa.Schema:
        """Return a file's schema."""

    @abstractmethod
    def batches(self, span: Span, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a span, of some columns or all, in order."""

    def columns_of(self, path: str) -> dict[str, str]:
        """Columns with their Arrow types."""
        return {field.name: str(field.type) for field in self.schema_of(path)}

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield a block for each batch of rows."""
        if fault := header_fault(self.schema_of(span.path).names, self.data.columns):
            yield from self._condemn(span, fault)
            return
        line = span.line
        for batch in self.batches(span, list(self.data.columns)):
            table = pa.Table.from_batches([batch])
            block = RawBlock(span.path, table.select(list(self.data.columns)), lines_from(line, batch.num_rows))
            yield finish(block, self.data.columns)
            line += batch.num_rows

    def _condemn(self, span: Span, fault: str) -> Iterator[RawBlock]:
        """Yield the rows of a file that lacks a column, as bad records."""
        line = span.line
        for batch in self.batches(span, None):
            for start in range(0, batch.num_rows, _BAD_ROWS):
                texts = row_texts(pa.Table.from_batches([batch.slice(start, _BAD_ROWS)]))
                bad = tuple(BadRecord(n, text, "wrong_header", fault) for n, text in enumerate(texts, line))
                yield RawBlock(span.path, pa.table({}), np.empty(0, np.int64), None, bad)
                line += len(bad)

    @property
    def category_names(self) -> list[str]:
        """Columns that are best read as dictionaries."""
        return [name for name, column in self.data.columns.items() if isinstance(column, CategoryColumn)]


def rows_at_once(rows: int, num_bytes: int) -> int:
    """Return how many of rows that take so many bytes a block may hold."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(num_bytes, 1)))


def in_slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield a batch in slices that a block may hold, also when the texts of its dictionaries are written out."""
    if not batch.num_rows:
        return
    packed = [column for column in batch.columns if pa.types.is_dictionary(column.type) and _has_texts(column.type)]
    longest = sum(pc.max(pc.binary_length(column.dictionary)).as_py() or 0 for column in packed)
    if batch.num_rows <= BATCH_ROWS and batch.nbytes + batch.num_rows * longest <= BATCH_BYTES:
        yield batch
        return
    ends = np.cumsum(_row_bytes(batch, packed))
    start = 0
    while start < batch.num_rows:
        reached = ends[start - 1] if start else 0
        end = int(np.searchsorted(ends, reached + BATCH_BYTES, "right"))
        end = max(start + 1, min(end, start + BATCH_ROWS))
        yield batch.slice(start, end - start)
        start = end


def _row_bytes(batch: pa.RecordBatch, packed: Sequence[pa.DictionaryArray]) -> NDArray[np.float64]:
    """Return about how many bytes each row is: of plain columns an even share, of ``packed`` ones the text."""
    plain = batch.nbytes - sum(column.nbytes for column in packed)
    sizes = np.full(batch.num_rows, plain / batch.num_rows)
    for column in packed:
        lengths = pc.binary_length(column.dictionary).take(column.indices)
        sizes += lengths.fill_null(0).to_numpy(zero_copy_only=False)
    return sizes


def _has_texts(kind: pa.DictionaryType) -> bool:
    value = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(value) for test in tests)


def header_fault(names: Sequence[str], declared: Iterable[str]) -> str | None:
    """Return why a table without or with repeated declared columns has no rows, or None."""
    wanted = list(declared)
    if missing := [name for name in wanted if name not in names]:
        return f"the file lacks {', '.join(missing)}"
    if repeated := [name for name in wanted if names.count(name) > 1]:
        return f"the file repeats {', '.join(repeated)}"
    return None
