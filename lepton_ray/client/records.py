"""Records as the JSON of requests: which values of Python stand for which of JSON.

``orjson`` writes what is plain, and most arrays of NumPy, by itself; the rest comes to ``_plain``. It writes infinity as ``null``, which
says that a value is missing, so where a body has one the records are searched.
"""

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import orjson

_OF_PANDAS = ("NAType", "NaTType")  # what is missing; not imported for that
_FINITE = (str, int, type(None))
_NUMBERS = "biuf"  # kinds of arrays
_NULL = re.compile(b"null")  # found in a third of the time that ``in`` takes


def as_list(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records.

    Raises:
        ValueError: If they are one record, a text, or a table, which as a list is the names of its columns.
    """
    if isinstance(records, list):
        return records.copy()
    is_table = hasattr(records, "columns")
    if is_table or isinstance(records, Mapping | str | bytes):
        hint = 'its rows: to_dict("records") of pandas, to_dicts() of Polars' if is_table else "[record] for one"
        raise ValueError(f"records must be a list of mappings, got a {type(records).__name__}. Give {hint}")
    return list(records)


def encode_records(records: list[Mapping[str, Any]], before: int = 0) -> bytes:
    """Return the body of a request for records, of which ``before`` came in other ones.

    Raises:
        ValueError: If no JSON stands for a value, or it is infinite; names the record and the field.
    """
    for row, record in enumerate(records, before):
        if not isinstance(record, Mapping):
            raise ValueError(f"records[{row}] must be a mapping from names to values, got {record!r:.200}")
    try:
        body = _dump(records)
    except TypeError as error:
        rule = "must be a number, text, truth value, time, list, array, bytes of an image file, or None"
        why = error.__cause__ or error
        if found := _find(_fails, records, before):
            place, got = found
            raise ValueError(f"records{place} {rule}, got {got!r:.200} ({why}). Convert it") from error
        row = next(row for row, record in enumerate(records, before) if _fails(record))
        raise ValueError(
            f"records[{row}] must have names that are texts, got {records[row - before]!r:.200}"
        ) from error
    if _NULL.search(body) and (found := _find(_is_infinite, records, before)):
        place, got = found
        raise ValueError(f"records{place} must be finite, got {got!r:.200}. Give None for what is missing")
    return body


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, or pandas' NA or NaT."""
    return (
        value is None
        or (isinstance(value, float | np.floating) and math.isnan(value))
        or (isinstance(value, np.datetime64) and bool(np.isnat(value)))
        or type(value).__name__ in _OF_PANDAS
    )


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any) -> Any:
    """Return what stands for a value that ``orjson`` does not know.

    Raises:
        TypeError: If nothing does.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, Decimal | Fraction | np.longdouble):
        return float(value)
    if isinstance(value, np.ndarray) and value.dtype == np.longdouble:
        return value.astype(float).tolist()
    if is_missing(value):
        return None
    if isinstance(value, date):  # of a subclass, as pandas' Timestamp is
        return value.isoformat()
    if hasattr(value, "tolist"):  # arrays that are not contiguous, or of texts or objects; pandas' Series
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is none of them")


def _find(is_wrong: Callable[[Any], bool], records: list[Mapping[str, Any]], before: int) -> tuple[str, Any] | None:
    """Return the place of the first value that is wrong, and the value."""
    for row, record in enumerate(records, before):
        if any(map(is_wrong, record.values())):
            return next((f"[{row}].{name}", value) for name, value in record.items() if is_wrong(value))
    return None


def _fails(value: Any) -> bool:
    try:
        _dump(value)
    except TypeError:
        return True
    return False


def _is_infinite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isinf(value)
    if isinstance(value, _FINITE):
        return False
    if isinstance(value, Decimal | np.floating):
        return math.isinf(value)
    if isinstance(value, Mapping):
        return any(map(_is_infinite, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_infinite, value))
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS:
        return bool(np.isinf(value).any())
    return hasattr(value, "tolist") and _is_infinite(value.tolist())
