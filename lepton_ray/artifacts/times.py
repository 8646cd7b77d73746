"""The one parser of times: whole microseconds since 1970, UTC, within the years 1 to 9999.

A text is read by Python's ``datetime``, guarded by a grammar that does not change from release to release. Arrays take
Arrow's kernels for the forms of which both are known to make the same; what those leave is read as single texts are.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

TIMESTAMP = pa.timestamp("us", "UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PER_SECOND = 1_000_000
_EXACT = 2**53
MICROS_PER_NUMBER = {"epoch_s": _PER_SECOND, "epoch_ms": 1_000}
_MICROS_PER_UNIT = {"s": _PER_SECOND, "ms": 1_000, "us": 1}
FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND

_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ](?:[01][0-9]|2[0-3])(?::[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?)?"
    r"(?:Z|[+-][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?)?)?"
)
# What kernels read: days that every such month has, in years that an offset cannot leave.
_FAST_DATE = (
    r"(?:[1-8][0-9]{3}|9[0-8][0-9]{2})-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_FAST_CLOCK = r"[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_FAST_LOCAL = rf"\A{_FAST_DATE}(?:{_FAST_CLOCK})?\z"
_FAST_ZONED = rf"\A{_FAST_DATE}{_FAST_CLOCK}(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])\z"
_DIRECTIVE = re.compile(r"%(.)|([^%]+)", re.DOTALL)
_FAST_DIRECTIVES = {
    "Y": "[0-9]{4}",
    "m": "[0-9]{2}",
    "d": "[0-9]{2}",
    "H": "[0-9]{2}",
    "M": "[0-9]{2}",
    "S": "[0-9]{2}",
    "f": "[0-9]{1,6}",
}

Micros = NDArray[np.int64]


def micros_of(time: datetime) -> int:
    """Return the microseconds since 1970 of a time with an offset."""
    return (time - _EPOCH) // _MICROSECOND


def to_seconds(micros_N: Micros) -> NDArray[np.float64]:
    """Return microseconds as seconds; order is kept, and until the year 2242 every microsecond has its own number."""
    whole, rest = np.divmod(micros_N, _PER_SECOND)
    is_exact = np.abs(micros_N) <= _EXACT  # as float64, before it is divided
    return np.where(is_exact, micros_N / _PER_SECOND, whole + rest / _PER_SECOND)


FIRST_SECOND, LAST_SECOND = to_seconds(np.array([FIRST, LAST])).tolist()


def seconds_of(times: pa.Array) -> NDArray[np.float64]:
    """Return timestamps of any unit (UTC where they have no zone) as seconds, NaN for null."""
    micros = _to_micros(times)
    seconds_N = to_seconds(micros.fill_null(0).to_numpy(zero_copy_only=False))
    if micros.null_count:
        seconds_N[micros.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return seconds_N


def to_timestamps(times: pa.Array) -> pa.Array:
    """Return dates or timestamps of any unit as whole microseconds, what is finer cut off; null outside the years 1 to 9999."""
    micros = _to_micros(times)
    is_time = pc.and_(pc.greater_equal(micros, FIRST), pc.less_equal(micros, LAST))
    return pc.if_else(is_time, micros, pa.scalar(None, pa.int64())).cast(TIMESTAMP)


def _to_micros(times: pa.Array) -> pa.Array:
    if not pa.types.is_timestamp(times.type):
        times = times.cast(pa.timestamp("ms" if pa.types.is_date64(times.type) else "s"))
    if times.type.unit != "ns":
        return _scale(times.cast(pa.int64()), _MICROS_PER_UNIT[times.type.unit])
    nanos = times.cast(pa.int64())
    micros = nanos.fill_null(0).to_numpy(zero_copy_only=False) // 1000  # a cast would round towards 1970
    return pa.array(micros, mask=nanos.is_null().to_numpy(zero_copy_only=False))


def _scale(numbers: pa.Array, factor: int) -> pa.Array:
    """Return the product, cut to a number that is far outside of all years where it would overflow."""
    reach = 2 * LAST // factor
    return pc.multiply(
        pc.min_element_wise(pc.max_element_wise(numbers, -reach, skip_nulls=False), reach, skip_nulls=False), factor
    )


def to_micros(values_N: NDArray[np.float64], per_value: int = _PER_SECOND) -> tuple[Micros, NDArray[np.bool_]]:
    """Return numbers since 1970, each of ``per_value`` microseconds, as microseconds; and which of them are times.

    What ``to_seconds`` gave comes back as numbers that give the same seconds again.
    """
    reach = float(LAST // per_value + 1)
    is_near = np.abs(values_N) <= reach  # not of NaN
    near_N = np.where(is_near, values_N, 0.0)
    whole = np.floor(near_N)
    micros = whole.astype(np.int64) * per_value + np.rint((near_N - whole) * per_value).astype(np.int64)
    is_time = is_near & (micros >= FIRST) & (micros <= LAST)
    return np.where(is_time, micros, 0), is_time


def round_seconds(seconds_N: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return seconds as ``to_seconds`` gives them, NaN where they are no times; and which of them are times.

    What it gave comes back as it is: also the last microseconds of the year 9999, which it rounds up.
    """
    micros_N, is_time_N = to_micros(seconds_N)
    is_last_N = seconds_N == LAST_SECOND
    rounded_N = np.where(is_last_N, LAST_SECOND, np.where(is_time_N, to_seconds(micros_N), np.nan))
    return rounded_N, is_time_N | is_last_N


def read_time(text: str, pattern: str) -> int | None:
    """Return the microseconds of a text without spaces around it, by ``iso`` or a strptime pattern; None if it is no time."""
    if pattern == "iso" and not _ISO.fullmatch(text):
        return None
    try:
        time = datetime.fromisoformat(text) if pattern == "iso" else datetime.strptime(text, pattern)
        micros = micros_of(time.replace(tzinfo=UTC) if time.tzinfo is None else time)
    except (ValueError, OverflowError):
        return None
    return micros if FIRST <= micros <= LAST else None


def read_times(texts: pa.Array, pattern: str) -> pa.Array:
    """Return the timestamps of texts as ``read_time`` reads them; null where it reads none."""
    fast = _read_iso(texts if pattern == "iso" else _rewrite(texts, pattern))
    is_left = pc.and_(pc.is_valid(texts), pc.is_null(fast))
    if not pc.any(is_left, min_count=0).as_py():
        return fast
    distinct = texts.filter(is_left).dictionary_encode()
    read = pa.array([read_time(text, pattern) for text in distinct.dictionary.to_pylist()], pa.int64())
    return pc.replace_with_mask(fast, is_left, read.take(distinct.indices).cast(TIMESTAMP))


def _read_iso(texts: pa.Array) -> pa.Array:
    """Return the timestamps of plain ISO 8601 texts; null also for others that ``read_time`` reads."""
    local = pc.if_else(pc.match_substring_regex(texts, _FAST_LOCAL), texts, None).cast(pa.timestamp("us"))
    local = local.cast(TIMESTAMP)
    if local.null_count == texts.null_count:
        return local
    zoned = pc.if_else(pc.match_substring_regex(texts, _FAST_ZONED), texts, None).cast(TIMESTAMP)
    return pc.coalesce(local, zoned)


def _rewrite(texts: pa.Array, pattern: str) -> pa.Array:
    """Return texts of a pattern made of numbers as ISO 8601, null where they do not have its full width."""
    groups: dict[str, int] = {}
    expression = ""
    for name, literal in _DIRECTIVE.findall(pattern):
        if literal:
            expression += re.escape(literal)
        elif name not in _FAST_DIRECTIVES or name in groups:
            return pa.nulls(len(texts), pa.string())
        else:
            groups[name] = len(groups) + 1
            expression += f"({_FAST_DIRECTIVES[name]})"
    if not groups.keys() >= {"Y", "m", "d"}:
        return pa.nulls(len(texts), pa.string())

    def number(name: str) -> str:
        return rf"\{groups[name]}" if name in groups else "00"

    iso = f"{number('Y')}-{number('m')}-{number('d')}T{number('H')}:{number('M')}:{number('S')}.{number('f')}"
    matching = pc.if_else(pc.match_substring_regex(texts, rf"\A{expression}\z"), texts, None)
    return pc.replace_substring_regex(matching, rf"\A{expression}\z", iso)


def spell_seconds(seconds: float) -> str:
    """Return seconds as ISO 8601, "" for NaN."""
    micros, is_time = to_micros(np.array([seconds]))
    return _spell(int(micros[0]) if is_time[0] else LAST, "iso") if seconds == seconds else ""


def spell_times(times: pa.ChunkedArray, pattern: str) -> list[Any]:
    """Return timestamps as ``pattern`` has them, texts or numbers; None for null."""
    micros = times.cast(TIMESTAMP).cast(pa.int64()).to_pylist()
    return [None if value is None else _spell(value, pattern) for value in micros]


def _spell(micros: int, pattern: str) -> Any:
    if pattern in MICROS_PER_NUMBER:
        number = micros / MICROS_PER_NUMBER[pattern]
        return int(number) if number.is_integer() else number
    time = _EPOCH + timedelta(microseconds=micros)
    return time.isoformat().replace("+00:00", "Z") if pattern == "iso" else time.strftime(pattern)
