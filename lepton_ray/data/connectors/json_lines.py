"""JSON lines. A chunk is parsed at once by pyarrow where that surely gives what parsing each line gives; else line by line."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from lepton_ray.data.block import Positions, RawBlock
from lepton_ray.data.connectors.files import Span
from lepton_ray.data.connectors.lines import Chunk, LinesConnector, line_bounds
from lepton_ray.data.connectors.records import SERIES, TAGS, gather, parse, strip
from lepton_ray.spec.data import Column, NumberColumn, SeriesColumn, TagsColumn

_SAMPLE_BYTES = 1 << 20
_SAMPLE_LINES = 1000
_PEEK_ROWS = 20
_MAX_DEPTH = 1000  # orjson refuses 1024 brackets within each other, pyarrow does not
_NOT_JSON = re.compile(rb"[:,\[]\s*-?(?:NaN|Inf)")  # pyarrow takes them, JSON has no such numbers


class JsonLinesConnector(LinesConnector):
    """Reads files with one JSON object a line; blank lines are no records."""

    suffixes = (".jsonl", ".json", ".ndjson")

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield a block for each chunk of lines."""
        for chunk in self.chunks(span):
            block = read_fast(chunk, span.path, self.data.columns)
            yield block if block is not None else read_carefully(chunk, span.path, self.data.columns)

    def first_records(self) -> list[dict[str, Any]]:
        """Return the first records of the first file that are JSON objects."""
        path = self.files[0].path
        with self.faults(path), self.stream(path) as stream:
            parsed = [parse(line)[0] for line in stream.read(_SAMPLE_BYTES).split(b"\n")[:_SAMPLE_LINES]]
        return [record for record in parsed if isinstance(record, dict)]


def read_carefully(chunk: Chunk, source: str, columns: Mapping[str, Column]) -> RawBlock:
    """Parse each line by itself; one that is no row is told apart."""
    lines = enumerate(chunk.data.split(b"\n"), chunk.line)
    return gather(((line, content) for line, content in lines if strip(content)), source, columns)


def read_fast(chunk: Chunk, source: str, columns: Mapping[str, Column]) -> RawBlock | None:
    """Parse all lines at once; None where that could differ from parsing each line.

    pyarrow's parser knows nothing of lines, takes NaN, and does not check UTF-8. Where each line starts with ``{`` and ends
    with ``}`` no value can reach over a line end (between ``}`` and ``{`` there would have to be a comma), so as many rows
    as lines means a row a line.
    """
    data = chunk.data.removeprefix(b"\xef\xbb\xbf")
    if not data:
        return None
    starts, ends = _record_bounds(data)
    schema = _schema(data, starts, ends, columns)
    if schema is None or not _is_plain(data, starts, ends):
        return None
    try:
        table = _parse(data, schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != len(starts) or not all(map(_is_finite, table.columns)):
        return None

    def texts(positions: Positions) -> list[str]:
        return [strip(data[starts[i] : ends[i]]).decode() for i in positions.tolist()]

    lines = chunk.line + np.searchsorted(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")), starts)
    return RawBlock(source, _spelled(table.select(list(columns))), lines, texts)


def _record_bounds(data: bytes) -> tuple[Positions, Positions]:
    starts, ends = line_bounds(data)
    array = np.frombuffer(data, np.uint8)
    ends = ends - ((ends > starts) & (array[np.maximum(ends - 1, 0)] == ord("\r")))
    is_record = ends > starts
    return starts[is_record], ends[is_record]


def _is_plain(data: bytes, starts: Positions, ends: Positions) -> bool:
    array = np.frombuffer(data, np.uint8)
    if not ((array[starts] == ord("{")).all() and (array[ends - 1] == ord("}")).all()):
        return False
    if (b"NaN" in data or b"Inf" in data) and _NOT_JSON.search(data):
        return False
    for i in np.flatnonzero(ends - starts > _MAX_DEPTH).tolist():
        line = data[starts[i] : ends[i]]
        if line.count(b"[") + line.count(b"{") > _MAX_DEPTH:
            return False
    try:
        pa.array([data], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def _parse(data: bytes, schema: pa.Schema) -> pa.Table:
    return pajson.read_json(
        pa.BufferReader(data),
        read_options=pajson.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )


def _is_finite(column: pa.ChunkedArray) -> bool:
    """Whether all numbers are: pyarrow takes some that are too large for infinite ones, which JSON has not."""
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    return not pa.types.is_floating(values.type) or pc.all(pc.is_finite(values)).as_py() is not False


def _spelled(table: pa.Table) -> pa.Table:
    """Return whole numbers and truth values as the texts that the careful way gives."""
    is_text = (pa.types.is_int64, pa.types.is_boolean)
    types = [pa.string() if any(test(kind) for test in is_text) else kind for kind in table.schema.types]
    return table.cast(pa.schema(list(zip(table.column_names, types, strict=True))))


def _schema(data: bytes, starts: Positions, ends: Positions, columns: Mapping[str, Column]) -> pa.Schema | None:
    """Return the columns' types as the first records have them, or None where no type says it all."""
    try:
        rows = [orjson.loads(data[starts[i] : ends[i]]) for i in range(min(_PEEK_ROWS, len(starts)))]
        types = {name: _type([row.get(name) for row in rows], column) for name, column in columns.items()}
    except (orjson.JSONDecodeError, AttributeError):
        return None
    return None if not rows or None in types.values() else pa.schema(types)


def _type(values: list[Any], column: Column) -> pa.DataType | None:
    kinds = {type(value) for value in values if value is not None}
    if isinstance(column, SeriesColumn):
        return SERIES if kinds <= {list} else None
    if isinstance(column, TagsColumn) and kinds == {list}:
        return TAGS
    if isinstance(column, NumberColumn) and kinds <= {int, float}:
        return pa.float64()
    if kinds == {int}:
        return pa.int64()
    if kinds == {bool}:
        return pa.bool_()
    return pa.string() if kinds <= {str} else None
