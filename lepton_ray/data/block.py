"""The raw block: what reading gives and cleaning takes.

An Arrow table with a row per record: its raw cells (text or null; an image's pixels as binary) and five columns on its
fate, whose names start with ``_``. A record that is no row of the table has null cells and a reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from lepton_ray.spec.data import Column, ImageColumn

SOURCE, LINE, TEXT, REASON, DETAIL = "_source", "_line", "_text", "_reason", "_detail"

_FATE = {SOURCE: pa.string(), LINE: pa.int64(), TEXT: pa.large_string(), REASON: pa.string(), DETAIL: pa.string()}

QUARANTINE_SCHEMA = pa.schema(_FATE)


def raw_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """Schema of a raw block."""
    cells = {
        name: pa.large_binary() if isinstance(column, ImageColumn) else pa.string() for name, column in columns.items()
    }
    return pa.schema({**cells, **_FATE})


def raw_block(columns: Mapping[str, Column], cells: Mapping[str, Any], fate: Mapping[str, Any], rows: int) -> pa.Table:
    """Build a raw block; cells and fates that are not given are null, a single text stands for all rows."""
    schema = raw_schema(columns)
    arrays = [_array({**cells, **fate}.get(field.name), field.type, rows) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def bad_block(columns: Mapping[str, Column], source: str, bad: Sequence[tuple[int, str, str, str]]) -> pa.Table:
    """Build a block of records that are no rows, from (line, text, reason, detail)."""
    lines, texts, reasons, details = zip(*bad, strict=True) if bad else ((), (), (), ())
    fate = {SOURCE: source, LINE: list(lines), TEXT: list(texts), REASON: list(reasons), DETAIL: list(details)}
    return raw_block(columns, {}, fate, len(bad))


def _array(value: Any, kind: pa.DataType, rows: int) -> pa.Array | pa.ChunkedArray:
    if value is None:
        return pa.nulls(rows, kind)
    if isinstance(value, str):
        return pa.repeat(pa.scalar(value, kind), rows)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value.cast(kind)
    return pa.array(value, kind)
