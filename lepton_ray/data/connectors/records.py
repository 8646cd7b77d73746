"""JSON objects to cells: what JSON lines, HTTP answers, Kafka messages and samples share.

A value keeps its meaning: text stays text, a number of a number column stays a number, any other single value becomes the
text that it is in a CSV file. A list is a series, or tags, where the column says so; else a nested value makes the record bad.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from lepton_ray.artifacts.rules import category_text
from lepton_ray.core.text import show
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.spec.data import Column, NumberColumn, SeriesColumn, TagsColumn

_BOM = b"\xef\xbb\xbf"
_EXACT = 2.0**63
_NO_JSON = ("NaN", "Infinity")  # that Python's json writes all the same

Fault = tuple[str, str]
"""Reason and detail."""


@dataclass
class Gathered:
    """Rows and bad records of one source, in order."""

    columns: Mapping[str, Column]
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)

    def add_text(self, line: int, content: bytes) -> None:
        """Add a record that is JSON text."""
        text = strip(content).decode("utf-8", "backslashreplace")
        value, fault = parse(content)
        if fault:
            self.bad.append(BadRecord(line, text, *fault))
        else:
            self.add(line, exact(value, content, self.columns), text)

    def add(self, line: int, value: Any, text: str) -> None:
        """Add a record that was parsed."""
        if fault := fault_of(value, self.columns):
            self.bad.append(BadRecord(line, text, *fault))
            return
        self.rows.append(value)
        self.lines.append(line)
        self.texts.append(text)

    def block(self, source: str) -> RawBlock:
        """Return what was gathered."""
        texts = self.texts
        return RawBlock(
            source=source,
            cells=to_cells(self.rows, self.columns),
            lines=np.array(self.lines, np.int64),
            texts=lambda positions: [texts[i] for i in positions.tolist()],
            bad=tuple(self.bad),
        )


def gather(records: Iterable[tuple[int, bytes]], source: str, columns: Mapping[str, Column]) -> RawBlock:
    """Return a block of records that are JSON texts, each with its line."""
    gathered = Gathered(columns)
    for line, content in records:
        gathered.add_text(line, content)
    return gathered.block(source)


def strip(content: bytes) -> bytes:
    """Take spaces and a byte-order mark away: files that were joined have marks inside."""
    return content.strip().removeprefix(_BOM).strip()


def parse(content: bytes) -> tuple[Any, Fault | None]:
    """Return the value of a JSON text, or why it is none."""
    try:
        return orjson.loads(strip(content)), None
    except orjson.JSONDecodeError as error:
        try:
            content.decode()
        except UnicodeDecodeError:
            return None, ("invalid_utf8", "the record must be UTF-8")
        word = next((word for word in _NO_JSON if error.doc.startswith(word, error.pos)), None)
        what = f", got {word}, which JSON has no number for. Write null" if word else f": {error.args[0]}"
        return None, ("invalid_json", f"the line must be a JSON object{what}")


def exact(record: Any, content: bytes, columns: Mapping[str, Column]) -> Any:
    """Return a record as parsed, or parsed anew from its text where a whole number that becomes a text has lost digits."""
    return parse_anew(record, content) if is_rounded(record, columns) else record


def parse_anew(value: Any, content: bytes) -> Any:
    """Return the value of a JSON text with all digits; as it is where it goes too deep for Python's parser."""
    with contextlib.suppress(RecursionError):
        return json.loads(strip(content))
    return value


def is_rounded(record: Any, columns: Mapping[str, Column]) -> bool:
    """Whether orjson, which has floats for whole numbers beyond 64 bits, may have rounded one that becomes a text."""
    if not isinstance(record, dict):
        return False
    values = (
        record.get(name) for name, column in columns.items() if not isinstance(column, NumberColumn | SeriesColumn)
    )
    return any(_is_large(item) for value in values for item in (value if isinstance(value, list) else (value,)))


def _is_large(value: Any) -> bool:
    return isinstance(value, float) and abs(value) >= _EXACT


def fault_of(record: Any, columns: Mapping[str, Column]) -> Fault | None:
    """Return why a JSON value is no row, or None."""
    if not isinstance(record, dict):
        return "invalid_json", f"the line must be a JSON object, got {type(record).__name__}"
    for name, column in columns.items():
        value = record.get(name)
        if isinstance(value, dict | list) and not _is_list(value, column):
            rule = _LISTS.get(type(column), "a single value")
            return "type_error", f"{name} must be {rule}, got {show(value)}"
    return None


_LISTS: dict[type[Column], str] = {SeriesColumn: "a list of numbers", TagsColumn: "a list of texts"}


def _is_list(value: Any, column: Column) -> bool:
    """Whether a value is the list that a column of series or tags asks for."""
    if not isinstance(value, list):
        return False
    if isinstance(column, TagsColumn):
        return all(item is None or isinstance(item, str | int | float) for item in value)
    return isinstance(column, SeriesColumn) and all(item is None or _is_number(item) for item in value)


def to_cells(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> pa.Table:
    """Return the columns of rows that ``fault_of`` found good."""
    if not columns:
        return pa.table({})
    return pa.table({name: to_array([row.get(name) for row in rows], column) for name, column in columns.items()})


def to_array(values: list[Any], column: Column) -> pa.Array:
    """Return values of JSON, or such as JSON has, as a column's array."""
    if isinstance(column, SeriesColumn) and all(value is None or isinstance(value, list) for value in values):
        return pa.array([value and [None if v is None else float(v) for v in value] for value in values], SERIES)
    if isinstance(column, TagsColumn) and all(value is None or isinstance(value, list) for value in values):
        return pa.array([value and [cell_text(v) for v in value] for value in values], TAGS)
    if isinstance(column, NumberColumn) and all(value is None or _is_number(value) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([spelled(value, column) for value in values], pa.string())


def to_bytes(values: list[Any], column: Column) -> pa.Array:
    """Return bytes as they are, and values beside them as the texts that these are."""
    encoded = (v if v is None or isinstance(v, bytes) else str(spelled(v, column)).encode() for v in values)
    return pa.array(list(encoded), pa.binary())


def spelled(value: Any, column: Column) -> str | None:
    """Return a value as text; a number beside texts has the decimal sign that these have."""
    text = cell_text(value)
    if text is None or not isinstance(column, NumberColumn) or not isinstance(value, float | Decimal):
        return text
    return text.replace(".", column.decimal)


SERIES = pa.list_(pa.float64())
TAGS = pa.list_(pa.string())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell_text(value: Any) -> str | None:
    """Return a JSON value as the text that it is in a CSV file."""
    if value is None or isinstance(value, str):
        return value
    return to_json(value) if isinstance(value, list | dict) else category_text(value)


def to_json(value: Any) -> str:
    """Return a JSON value as text, whole numbers with all digits."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
