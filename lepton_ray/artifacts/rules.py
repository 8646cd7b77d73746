"""The rules a value has to keep, vectorised: one home for what cleaning quarantines and serving refuses, and its wording.

Missing values are NaN among numbers, times and series (float64), and "" (str objects) or null (Arrow) among texts. Times are
seconds since 1970 as float64, the form that the model gets: what is in order to the microsecond stays in order, so that a
time which cleaning lets pass is never refused when it comes as a tensor.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts.numbers import missing_numbers, parse_numbers, to_floats
from lepton_ray.artifacts.series import read_series_array, to_matrix
from lepton_ray.artifacts.times import (
    FIRST,
    FIRST_SECOND,
    LAST,
    LAST_SECOND,
    MICROS_PER_NUMBER,
    TIMESTAMP,
    micros_of,
    read_times,
    seconds_of,
    to_micros,
    to_seconds,
    to_timestamps,
)
from lepton_ray.core.patterns import whole
from lepton_ray.spec.data import (
    CategoryColumn,
    Column,
    NumberColumn,
    SeriesColumn,
    TagsColumn,
    TextColumn,
    TimeColumn,
    parse_iso,
)

Mask = NDArray[np.bool_]
Texts: TypeAlias = Any
"""Texts as objects in a NumPy array, or as an Arrow array, plain or dictionary."""

_EXACT = 2.0**53  # floats below it hold every whole number
PLAIN = NumberColumn(kind="number")
_GREATEST = float(np.finfo(np.float64).max)
_GIVEN = "must be given"


@dataclass(frozen=True)
class Breach:
    """A rule that some rows break; ``reason`` is the ledger's word, ``rows`` a mask."""

    reason: str
    rule: str
    rows: Mask


def type_rule(column: Column) -> str:
    """Return what a value of a column has to be, whatever its other rules."""
    if isinstance(column, NumberColumn):
        return "must be a number"
    if isinstance(column, SeriesColumn):
        return f"must be a list of {column.length} numbers"
    if isinstance(column, TagsColumn):
        return "must be a list of texts, or a text"
    if not isinstance(column, TimeColumn):
        return "must be a text"
    if column.format == "iso":
        return "must be an ISO 8601 time such as 2024-01-31T12:00:00Z"
    if column.format in MICROS_PER_NUMBER:
        unit = "seconds" if column.format == "epoch_s" else "milliseconds"
        return f"must be a number of {unit} since 1970 within the years 1 to 9999"
    return f"must be a time of the form {column.format!r}"


def number_breaches(column: NumberColumn, values_N: NDArray[np.float64]) -> Iterator[Breach]:
    """Yield the rules that numbers break, each with the rows that break it."""
    if column.required:
        yield from _any("missing_required", _GIVEN, np.isnan(values_N))
    yield from _any("type_error", "must be a finite number", np.isinf(values_N))
    if column.min is not None:
        yield from _any("out_of_range", f"must be at least {column.min:.15g}", values_N < column.min)
    if column.max is not None:
        yield from _any("out_of_range", f"must be at most {column.max:.15g}", values_N > column.max)
    if column.whole:
        is_part = ~np.isnan(values_N) & (np.floor(values_N) != values_N)
        yield from _any("type_error", "must be a whole number", is_part)


def time_breaches(column: TimeColumn, times_N: NDArray[np.float64] | pa.Array) -> Iterator[Breach]:
    """Yield the rules that times (seconds, or timestamps) break, each with the rows that break it."""
    seconds_N = times_N if isinstance(times_N, np.ndarray) else seconds_of(times_N)
    if column.required:
        yield from _any("missing_required", _GIVEN, np.isnan(seconds_N))
    is_far = (seconds_N < FIRST_SECOND) | (seconds_N > LAST_SECOND)
    yield from _any("type_error", "must be a time within the years 1 to 9999", is_far)
    low, high = time_bounds(column)
    if column.min is not None:
        yield from _any("out_of_range", f"must be at least {column.min}", seconds_N < low)
    if column.max is not None:
        yield from _any("out_of_range", f"must be at most {column.max}", seconds_N > high)


def category_breaches(column: CategoryColumn | TagsColumn, values_N: Texts) -> Iterator[Breach]:
    """Yield the rules that categories, or single tags, break, each with the rows that break it."""
    yield from _textual_breaches(column, values_N)
    if column.allowed is not None:
        is_wrong = ~_is_in(values_N, column.allowed) & ~_is_missing(values_N)
        yield from _any("not_allowed", f"must be one of {', '.join(column.allowed)}", is_wrong)


def text_breaches(column: TextColumn, values_N: Texts) -> Iterator[Breach]:
    """Yield the rules that free texts break, each with the rows that break it."""
    yield from _textual_breaches(column, values_N)
    if column.min_length is None and column.max_length is None:
        return
    lengths_N = _lengths(values_N)  # 0 where missing
    if column.min_length is not None:
        is_short = (lengths_N < column.min_length) & (lengths_N > 0)
        yield from _any("wrong_length", f"must have at least {column.min_length} characters", is_short)
    if column.max_length is not None:
        is_long = lengths_N > column.max_length
        yield from _any("wrong_length", f"must have at most {column.max_length} characters", is_long)


def series_breaches(values_NL: NDArray[np.float64]) -> Iterator[Breach]:
    """Yield the rule that a series with an infinite value breaks."""
    yield from _any("type_error", "must hold finite numbers", np.asarray(np.isinf(values_NL).any(axis=1)))


@lru_cache(maxsize=1024)
def time_bounds(column: TimeColumn) -> tuple[float, float]:
    """Return the least and the greatest allowed time in seconds."""
    low, high = (parse_iso(text) if text else None for text in (column.min, column.max))
    ends = np.array([micros_of(low) if low else FIRST, micros_of(high) if high else LAST])
    first, last = to_seconds(ends).tolist()
    return first, last


def parse_times(column: TimeColumn, cells: pa.Array, missing_words: Sequence[str] = ()) -> tuple[pa.Array, Mask]:
    """Return cells as timestamps (microseconds, UTC; null where there is none), and which cells are no times.

    Args:
        column: Says how times are written. Timestamps and dates are times whatever it says.
        cells: Timestamps, dates, numbers, or texts without spaces around them; null and NaN are missing.
        missing_words: Texts that mean 'missing', of which some may be numbers, such as -999.
    """
    if pa.types.is_floating(cells.type):
        cells = pc.if_else(pc.is_nan(cells), pa.scalar(None, cells.type), cells)
    is_given_N = cells.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        times = to_timestamps(cells)
    elif column.format in MICROS_PER_NUMBER:
        numbers_N = parse_numbers(cells, PLAIN)[0] if pa.types.is_string(cells.type) else to_floats(cells)
        is_given_N &= ~np.isin(numbers_N, missing_numbers(PLAIN, missing_words))
        micros_N, is_time_N = to_micros(numbers_N, MICROS_PER_NUMBER[column.format])
        times = pa.array(micros_N, mask=~(is_time_N & is_given_N)).cast(TIMESTAMP)
    else:
        texts = cells if pa.types.is_string(cells.type) else _spell(cells)
        is_given_N &= ~pc.is_in(texts, value_set=pa.array(list(missing_words), pa.string())).to_numpy(
            zero_copy_only=False
        )
        times = read_times(texts, column.format)
    return times, is_given_N & times.is_null().to_numpy(zero_copy_only=False)


def parse_series(column: SeriesColumn, cells: pa.Array) -> tuple[pa.Array, list[Breach]]:
    """Return cells as fixed-size lists, and the rules that they break; cells of no such list hold nulls.

    Args:
        column: Says how long the lists are.
        cells: Lists of numbers, or texts that hold one as JSON; null is a series of missing values.
    """
    values, is_wrong_length, is_wrong_type = read_series_array(cells, column.length)
    infinite = series_breaches(to_matrix(values, column.length))
    wrong = _any("type_error", type_rule(column), is_wrong_type)
    return values, [*wrong, *_any("wrong_length", f"must have {column.length} values", is_wrong_length), *infinite]


def category_text(value: float | bool | Decimal) -> str:
    """Return the text of a number or truth value that stands where a text should; 2.0 and 2 are one category.

    A decimal has the text of the number that JSON has for it: a database's 2.50 comes as 2.5 when the package serves.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        if not value.is_finite():
            return str(value)
        if value == value.to_integral_value():
            return str(int(value))
        text = repr(float(value))
        return text if Decimal(text) == value else f"{value.normalize():f}"
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return repr(value)


class NumberRules:
    """The rules of all numbers of a record at once: whether any is broken, which is all that most requests ask."""

    def __init__(self, columns: Iterable[NumberColumn]) -> None:
        chosen = tuple(columns)
        self._low_K = np.array([-_GREATEST if column.min is None else column.min for column in chosen])
        self._high_K = np.array([_GREATEST if column.max is None else column.max for column in chosen])
        self._is_required_K = np.array([column.required for column in chosen], bool)
        self._is_whole_K = np.array([column.whole for column in chosen], bool)
        self._has_whole = bool(self._is_whole_K.any())

    def are_kept(self, values_NK: NDArray[np.float64]) -> bool:
        """Whether no row breaks a rule of ``number_breaches``."""
        is_kept = (values_NK >= self._low_K) & (values_NK <= self._high_K)
        if not is_kept.all() and not (is_kept | (np.isnan(values_NK) & ~self._is_required_K)).all():
            return False
        if not self._has_whole:
            return True
        return bool((np.isnan(values_NK) | ~self._is_whole_K | (np.floor(values_NK) == values_NK)).all())


def _textual_breaches(column: CategoryColumn | TagsColumn | TextColumn, values_N: Texts) -> Iterator[Breach]:
    if column.required:
        yield from _any("missing_required", _GIVEN, _is_missing(values_N))
    if column.pattern is not None:
        is_wrong = ~_matches(values_N, column.pattern) & ~_is_missing(values_N)
        yield from _any("pattern_mismatch", f"must match {column.pattern!r}", is_wrong)


def _any(reason: str, rule: str, rows: Mask) -> Iterator[Breach]:
    if rows.any():
        yield Breach(reason, rule, rows)


def _is_missing(values_N: Texts) -> Mask:
    if isinstance(values_N, np.ndarray):
        return np.asarray(values_N == "", bool)
    return _per_value(values_N, lambda values: pc.equal(values, ""), null=True)


def _is_in(values_N: Texts, allowed: tuple[str, ...]) -> Mask:
    if isinstance(values_N, np.ndarray):
        known = frozenset(allowed)
        return np.fromiter((value in known for value in values_N), bool, len(values_N))
    return _per_value(values_N, lambda values: pc.is_in(values, value_set=pa.array(allowed, values.type)), null=False)


def _matches(values_N: Texts, pattern: str) -> Mask:
    if isinstance(values_N, np.ndarray):
        values_N = pa.array(values_N.tolist(), pa.string())
    return _per_value(values_N, lambda values: pc.match_substring_regex(values, whole(pattern)), null=False)


def _lengths(values_N: Texts) -> NDArray[np.int64]:
    if isinstance(values_N, np.ndarray):
        return np.fromiter((len(value) for value in values_N), np.int64, len(values_N))
    lengths: NDArray[np.int64] = _per_value(values_N, pc.utf8_length, null=0)
    return lengths


def _per_value(texts_N: pa.Array, ask: Callable[[pa.Array], pa.Array], *, null: bool | int) -> NDArray[Any]:
    """Return what a kernel answers for each text; of a dictionary each value is asked for once."""
    if isinstance(texts_N, pa.DictionaryArray):
        answers = np.append(_per_value(texts_N.dictionary, ask, null=null), null)
        codes_N = pc.fill_null(texts_N.indices, len(texts_N.dictionary)).to_numpy(zero_copy_only=False)
        return np.asarray(answers[codes_N])
    return np.asarray(pc.fill_null(ask(texts_N), null).to_numpy(zero_copy_only=False))


def spell_decimals(cells: pa.Array) -> pa.Array:
    """Return decimals as texts."""
    distinct = cells.cast(pa.string()).dictionary_encode()
    texts = [category_text(Decimal(text)) for text in distinct.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(distinct.indices)


def _spell(cells: pa.Array) -> pa.Array:
    """Return numbers as the texts that a CSV file has of them."""
    if pa.types.is_decimal(cells.type):
        return spell_decimals(cells)
    if not pa.types.is_floating(cells.type):
        return cells.cast(pa.string())
    distinct = cells.cast(pa.float64()).dictionary_encode()
    texts = [None if value is None else category_text(value) for value in distinct.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(distinct.indices)
