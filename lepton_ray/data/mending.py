"""The file that a person mends: quarantined records as JSON lines or CSV, and what comes back of it."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lepton_ray.core.errors import DataError
from lepton_ray.core.text import show
from lepton_ray.data.mended import LIMIT, Place, Value, to_plain
from lepton_ray.data.quarantine import QuarantinedRecord

_CSV_FATE = ("_source", "_line", "_stage", "_reason", "_detail", "_text")
_MAX_PROBLEMS = 20
_MAX_DIGITS = 19


class Given(NamedTuple):
    """A record of a mended file."""

    place: Place
    values: dict[str, Value]
    line: int
    """In the mended file."""


def export_json_lines(records: Iterable[QuarantinedRecord]) -> Iterator[str]:
    """Yield the lines of a file whose ``values`` a person mends."""
    return (json.dumps(record.model_dump(), ensure_ascii=False) + "\n" for record in records)


def export_csv(records: Iterable[QuarantinedRecord], columns: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a file whose columns without ``_`` a person mends; an empty cell is missing."""
    yield _csv_line([*_CSV_FATE, *columns])
    for record in records:
        fate = [record.source, record.line, record.stage, record.reason, record.detail, record.text or ""]
        yield _csv_line([*fate, *(csv_cell(record.values.get(name)) for name in columns)])


def _csv_line(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)  # its usual line end has it quote what any reader takes for one
    return buffer.getvalue()


def csv_cell(value: Value) -> str:
    """A value as a cell; an empty one is missing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def is_csv(path: Path) -> bool:
    """Whether a file is CSV; else it is JSON lines."""
    return path.suffix.lower() == ".csv"


def read_mended_file(path: Path, columns: Sequence[str]) -> list[Given]:
    """Return what a file holds.

    Raises:
        DataError: If it is no such file, or names another column than ``columns``; all problems at once.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # as text its line ends would be changed
    except OSError as error:
        raise DataError(
            f"the mended file must be a readable file, got {str(path)!r} ({error.strerror}). Check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the mended file must be UTF-8 text, got {str(path)!r} ({error}). Check it") from error
    given: list[Given] = []
    problems: list[str] = []
    for line, row in _csv_rows(text) if is_csv(path) else _json_rows(text):
        try:
            given.append(Given(*_parse(row, columns), line))
        except ValueError as error:
            problems.append(f"line {line} {error}")
    stop_for(problems, path)
    return given


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except (ValueError, RecursionError):
                yield line, content


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    head = next(reader, [])
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:  # a field of more than 128 KiB, say
            yield reader.line_num, f"{error}; use JSON lines"
            return
        if cells is None:
            return
        if len(cells) != len(head):
            yield reader.line_num, cells
        elif cells:
            row = dict(zip(head, cells, strict=True))
            values = {name: value or None for name, value in row.items() if name not in _CSV_FATE}
            yield reader.line_num, {"source": row.get("_source"), "line": _to_int(row.get("_line")), "values": values}


def _to_int(text: str | None) -> int | str | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS else text


def _parse(row: Any, columns: Sequence[str]) -> tuple[Place, dict[str, Value]]:
    """Return place and values of one mended record.

    Raises:
        ValueError: What is wrong with it.
    """
    if not isinstance(row, dict) or not isinstance(row.get("values"), dict):
        raise ValueError(f"must be a record with source, line and values, got {show(row)}")
    source, line, values = row.get("source"), row.get("line"), row["values"]
    if not isinstance(source, str) or type(line) is not int or not 0 < line < LIMIT:
        raise ValueError(f"must have the source and line that quarantine shows, got {show(source)}, {show(line)}")
    if unknown := [name for name in values if name not in columns]:
        raise ValueError(f"must hold columns of the data ({', '.join(columns)}), got {show(unknown[0])}")
    if wrong := [name for name, value in values.items() if not _is_value(value)]:
        raise ValueError(
            f"must hold texts, finite numbers or lists of numbers, got {show(values[wrong[0]])} for {show(wrong[0])}"
        )
    return (source, line), values


def _is_value(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)  # half characters
    if isinstance(value, int):
        return abs(value) < LIMIT
    return not isinstance(value, dict) and to_plain(value) is value


def stop_for(problems: Sequence[str], path: Path) -> None:
    """Raise an error if there are problems.

    Raises:
        DataError: With the first of them.
    """
    if problems:
        more = f"\n  and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        shown = "\n  ".join(problems[:_MAX_PROBLEMS])
        raise DataError(f"{path} has {len(problems)} problem(s), nothing was replayed:\n  {shown}{more}")
