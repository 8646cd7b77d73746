"""What a spec says of a source's columns, held against the source before any row is read."""

import difflib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from lepton_ray.core.errors import SpecError
from lepton_ray.data.connectors.base import Connector
from lepton_ray.spec.base import Section
from lepton_ray.spec.data import DataSpec, ImageColumn

T = TypeVar("T", bound=Section)

_SHOWN_NAMES, _SHOWN_LENGTH = 20, 80
_NESTED = ("struct<", "map<", "list<", "large_list<", "fixed_size_list<", "list_view<", "sparse_union<", "dense_union<")
BYTES = ("binary", "large_binary", "fixed_size_binary[", "extension<")
_CLOCKS = ("time32[", "time64[", "duration[", "month_day_nano_interval")
DATES = ("timestamp[", "date32[", "date64[")
_NUMBERS = ("int", "uint", "float", "halffloat", "double", "decimal", "bool")
_TEXT_KINDS = ("csv", "jsonl", "text", "http", "kafka")

# Arrow's types, by their first letters, that no value of a column can come from.
_IMPOSSIBLE = {
    "number": (*_NESTED, *BYTES, *_CLOCKS, *DATES, "bool"),
    "category": _NESTED,
    "text": _NESTED,
    "tags": ("struct<", "map<", *_CLOCKS, *DATES),
    "time": (*_NESTED, *BYTES, *_CLOCKS, "bool"),
    "series": ("struct<", "map<", *BYTES, *_CLOCKS, *DATES, *_NUMBERS),
    "image": ("map<", "string", "large_string", *_CLOCKS, *DATES, *_NUMBERS),
    "ignored": (),
}


def source_as(data: DataSpec, kind: type[T]) -> T:
    """Return ``data.source``, which is of this kind: ``open_connector`` chose by it."""
    if not isinstance(data.source, kind):
        raise TypeError(f"the connector reads a {kind.__name__}, got a {type(data.source).__name__}")
    return data.source


def check_source(data: DataSpec, connector: Connector) -> None:
    """Hold ``data.columns`` against the source.

    Raises:
        SpecError: With all problems: columns that the source does not have in any of its files, kinds that cannot come from
            the source's types.
        DataError: If there is no source.
    """
    problems = list(_image_problems(data))
    if columns := connector.columns():
        for name, column in data.columns.items():
            if name not in columns:
                problems.append(missing_column(name, list(columns), data))
            elif not can_give(columns[name], column.kind):
                problems.append(
                    f"data.columns.{name} must be of a kind that the source's type {columns[name]!r} can give, "
                    f"got {column.kind!r}. Choose {_fitting(columns[name])}"
                )
    if problems:
        raise SpecError(problems)


def can_give(source_type: str, kind: str) -> bool:
    """Whether values of a source's type can be those of a column of this kind."""
    return not source_type.startswith(_IMPOSSIBLE[kind])


def _image_problems(data: DataSpec) -> Iterator[str]:
    images = [name for name, column in data.columns.items() if isinstance(column, ImageColumn)]
    if images and data.source.kind in _TEXT_KINDS:
        yield (
            f"data.columns.{images[0]} must come from a source that holds bytes, got data.source.kind "
            f"{data.source.kind!r}. Use image_folder, webdataset, tfrecord, numpy, parquet or arrow"
        )


def missing_column(name: str, names: Sequence[str], data: DataSpec) -> str:
    """Return the problem of a declared column that is none of the source's ``names``."""
    shown = ", ".join(map(_cut_short, names[:_SHOWN_NAMES])) + (
        f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    )
    free = [other for other in names if other not in data.columns]
    close = difflib.get_close_matches(name, free, 1) or _same_but_for_case(name, free)
    action = f"Did you mean {close[0]!r}?" if close else "Name one of them"
    return f"data.columns.{name} must name a column of the source {data.source.place!r}, which has {shown}. {action}"


def _cut_short(name: str) -> str:
    return name if len(name) <= _SHOWN_LENGTH else f"{name[:_SHOWN_LENGTH]}..."


def _same_but_for_case(name: str, names: Sequence[str]) -> list[str]:
    return [other for other in names if other.strip().casefold() == name.strip().casefold()]


def _fitting(kind: str) -> str:
    fitting = [name for name in _IMPOSSIBLE if can_give(kind, name)]
    return ", ".join(fitting[:-1]) + (" or " if len(fitting) > 1 else "") + fitting[-1]
