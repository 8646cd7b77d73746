"""One table in several formats."""

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

COLUMNS = {"n": "number", "town": "category", "note": "text", "at": "time"}
_START = datetime(2024, 1, 31, 12, tzinfo=UTC)


def rows(count: int) -> list[dict[str, Any]]:
    """Rows as typed values; some cells are missing."""
    return [
        {
            "n": None if index % 7 == 3 else index / 8,
            "town": ["rome", "oslo", None][index % 3],
            "note": f'a "note", {index} žluť',
            "at": _START + timedelta(minutes=index),
        }
        for index in range(count)
    ]


def table(values: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        list(values),
        pa.schema({"n": pa.float64(), "town": pa.string(), "note": pa.string(), "at": pa.timestamp("us", "UTC")}),
    )


def json_lines(values: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps({**value, "at": value["at"].isoformat()}).encode() + b"\n" for value in values)


def csv_lines(values: Sequence[dict[str, Any]]) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**value, "at": value["at"].isoformat()} for value in values)
    return sink.getvalue().encode()
