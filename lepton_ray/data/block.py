"""The raw block: what reading a source gives and ``check`` types.

A record is either a row, with its cells as the source has them, or bad: no row of the table at all. Both keep the place
they came from and their original text.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SOURCE, LINE, REASON, DETAIL, TEXT, CELLS = "_source", "_line", "_reason", "_detail", "_text", "_cells"

FATE_SCHEMA = pa.schema(
    {
        SOURCE: pa.string(),
        LINE: pa.int64(),
        REASON: pa.string(),
        DETAIL: pa.string(),
        TEXT: pa.large_string(),
        CELLS: pa.large_string(),
    }
)
"""What quarantine says of each removed record: its place, why it was removed, its original text, its raw cells as JSON."""

Positions = NDArray[np.int64]
T = TypeVar("T")

NO_TEXT = ("invalid_utf8", "the record must be text in UTF-8, or in the encoding that data.source.encoding says")
"""Reason and detail of a record of a text file whose bytes are none."""


class BadRecord(NamedTuple):
    """A record that is no row."""

    line: int
    text: str
    reason: str
    """A word of ``spec.clean.REASONS``."""
    detail: str
    """The rule and the value, for people."""


@dataclass(frozen=True)
class RawBlock:
    """Records of a source, in its order; at most some tens of MB."""

    source: str | pa.Array
    """Name of the file, table or address, as the ledger has it; an array where each record has its own (image files)."""
    cells: pa.Table
    """A column for each declared column that the source has, in any Arrow type, null where a cell is missing; what the
    source lacks is absent. Text need not be trimmed, nor words for 'missing' replaced: ``check`` does that."""
    lines: Positions
    """Place of each row in the source, from 1: a line of text, a row of a table."""
    texts: Callable[[Positions], list[str]] | None = None
    """Original texts of the rows at these positions of the block; None where a source has none: see ``texts_of``."""
    bad: tuple[BadRecord, ...] = ()
    """Records that are no rows; all of ``source``, which is then one text, or named by ``bad_sources``."""
    bad_sources: tuple[str, ...] = ()
    """Source of each bad record where ``source`` is an array."""

    def texts_of(self, positions: Positions) -> list[str]:
        """Return original texts of rows, or their cells as JSON where the source has no texts."""
        if not len(positions):
            return []  # not even looked for where a source has to look for them
        return self.texts(positions) if self.texts is not None else self.cells_of(positions)

    def cells_of(self, positions: Positions) -> list[str]:
        """Return raw cells of rows as JSON."""
        if not len(positions):
            return []
        return [to_json(row) for row in to_rows(self.cells.take(pa.array(positions)))]


def decode(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with categories as plain texts."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table's rows, each by column."""
    columns = {name: to_python(table.column(index)) for index, name in enumerate(table.column_names)}
    return [{name: values[row] for name, values in columns.items()} for row in range(table.num_rows)]


def to_python(cells: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Return cells as Python has them: bytes for a text that is not UTF-8, a text for a time beyond Python's years."""
    try:
        return list(cells.to_pylist())
    except (ValueError, OverflowError):
        return [value_of(value) for value in cells]


def value_of(value: pa.Scalar) -> Any:
    """Return one cell as ``to_python`` does."""
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        if hasattr(value, "as_buffer"):
            return bytes(value.as_buffer())
        return pa.array([value], value.type).to_string(skip_new_lines=True).removeprefix("[").removesuffix("]")


def to_json(value: object) -> str:
    """Return a cell or a row as JSON for people; what JSON does not know is written as Python writes it."""
    return json.dumps(value, ensure_ascii=False, default=str)


def in_batches(items: Iterable[T], size_of: Callable[[T], int], most_bytes: int, most: int) -> Iterator[list[T]]:
    """Yield items in runs that end where one has ``most_bytes`` bytes or ``most`` items."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= most_bytes or len(batch) >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
