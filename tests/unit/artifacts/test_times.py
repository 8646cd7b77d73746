"""Times: Arrow arrays and single texts give the same, and what Python's datetime says."""

import contextlib
import json
import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts import rules
from lepton_ray.artifacts.times import (
    TIMESTAMP,
    read_time,
    read_times,
    round_seconds,
    seconds_of,
    spell_times,
    to_micros,
    to_seconds,
)
from lepton_ray.spec.data import TimeColumn

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
_PATTERNS = (
    "iso",
    "%d.%m.%Y",
    "%Y%m%d",
    "%Y-%m-%d %H:%M:%S.%f",
    "%d/%b/%Y:%H:%M:%S %z",
    "%y-%j",
    "%H:%M %Y\n%m[%d]",
    "%Y",
    "%%%d%m%Y",
)
_offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
_zones = st.none() | st.just(UTC) | _offsets.map(timezone)
_datetimes = st.datetimes(timezones=st.none() | st.sampled_from([UTC])) | st.builds(
    lambda time, zone: time.replace(tzinfo=zone), st.datetimes(), _zones
)


def _time(format_: str, **rest: Any) -> TimeColumn:
    return TimeColumn(kind="time", format=format_, **rest)


def _micros(time: datetime) -> int | None:
    """Whole microseconds by integer arithmetic, None outside the years 1 to 9999 of UTC."""
    zoned = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    delta = zoned - _EPOCH
    micros = (delta.days * 86_400 + delta.seconds) * 10**6 + delta.microseconds
    return micros if _FIRST <= micros <= _LAST else None


def _read_array(column: TimeColumn, cells: pa.Array) -> list[int | None]:
    times, is_wrong = rules.parse_times(column, cells)
    assert times.type == TIMESTAMP
    assert [
        wrong or cell is None or cell != cell for wrong, cell in zip(is_wrong, cells.to_pylist(), strict=True)
    ] == times.is_null().to_pylist()
    listed: list[int | None] = times.cast(pa.int64()).to_pylist()
    return listed


@settings(max_examples=150, deadline=None)
@given(
    _datetimes, st.sampled_from(["T", " "]), st.sampled_from(["auto", "seconds", "minutes", "hours", "milliseconds"])
)
@example(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "T", "auto")
@example(datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(-timedelta(seconds=1))), "T", "auto")
@example(datetime(2000, 2, 29, 23, 59, 59, 1), " ", "auto")
def test_iso_times_are_what_datetime_says(time: datetime, separator: str, timespec: str) -> None:
    text = time.isoformat(separator, timespec)
    assume(not re.search(r"[+-]..:..:..\.", text))  # an offset with a fraction of a second is no ISO 8601
    wanted = _micros(datetime.fromisoformat(text))
    for spelled in (text, text.replace("+00:00", "Z"), text.replace(".", ",")):
        assert read_time(spelled, "iso") == wanted
        assert _read_array(_time("iso"), pa.array([spelled, None])) == [wanted, None]


@settings(max_examples=50, deadline=None)
@given(st.dates())
def test_dates_are_midnights(day: date) -> None:
    wanted = _micros(datetime(day.year, day.month, day.day))
    assert _read_array(_time("iso"), pa.array([day.isoformat()])) == [wanted]
    assert _read_array(_time("iso"), pa.array([day])) == [wanted]
    assert _read_array(_time("%d.%m.%Y"), pa.array([f"{day.day:02}.{day.month:02}.{day.year:04}"])) == [wanted]


_digits = st.text("0123456789", max_size=3)
_iso_like = st.builds(
    "{}-{}-{}{}{}:{}:{}{}{}".format,
    st.sampled_from(["2024", "1900", "2000", "0000", "0001", "9999", "10000", "999"])
    | st.integers(0, 9999).map("{:04}".format),
    st.integers(0, 13).map("{:02}".format),
    st.integers(0, 32).map("{:02}".format),
    st.sampled_from(["T", " ", "t", "x", ""]),
    st.integers(0, 25).map("{:02}".format),
    st.integers(0, 61).map("{:02}".format),
    st.integers(0, 61).map("{:02}".format),
    st.just("") | st.builds("{}{}".format, st.sampled_from([".", ",", ";"]), st.text("0123456789", max_size=12)),
    st.sampled_from(["", "Z", "z", "+00:00", "-12:30", "+0530", "+24:00", "-23:59:59", "+1", " UTC", "+01:60"]),
)
_date_like = st.builds(
    "{}-{}-{}".format, st.integers(0, 9999).map("{:04}".format), *[st.integers(0, 32).map("{:02}".format)] * 2
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_iso_like | _date_like | st.text(max_size=6) | st.none(), max_size=5))
@example(["2024-02-29T23:59:60Z", "2023-02-29", "2024-01-01T24:00:00", "٢٠٢٤-01-01", "2024-01-01T00:00:00.1234567"])
def test_what_is_read_of_any_text_is_what_datetime_reads(texts: list[str | None]) -> None:
    got = _read_array(_time("iso"), pa.array(texts, pa.string()))
    for text, micros in zip(texts, got, strict=True):
        assert micros == (None if text is None else read_time(text, "iso"))
        if micros is not None:
            assert text is not None
            assert micros == _micros(datetime.fromisoformat(text))
        elif text is not None and re.fullmatch(
            r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:]+([.,][0-9]+)?)?(Z|[+-][0-9:]+)?", text
        ):
            with contextlib.suppress(ValueError):
                assert _micros(datetime.fromisoformat(text)) is None


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(_PATTERNS), _datetimes, st.data())
def test_patterns_are_what_strptime_says(pattern: str, time: datetime, data: st.DataObject) -> None:
    zone = time.strftime("%z") or "+0000"
    full = f"{time.year:04}"
    text = (pattern if pattern != "iso" else "%Y-%m-%d").replace("%Y", full).replace("%z", zone)
    text = time.strftime(text)
    if data.draw(st.booleans()):  # break it somewhere
        place = data.draw(st.integers(0, len(text)))
        text = text[:place] + data.draw(st.sampled_from(["", "0", "9", " ", "x", "٣", "\n"])) + text[place + 1 :]
    try:
        wanted = _micros(datetime.strptime(text, pattern if pattern != "iso" else "%Y-%m-%d"))
    except ValueError:
        wanted = None
    if pattern != "iso":
        assert read_time(text, pattern) == wanted
    assert _read_array(_time(pattern), pa.array([text, "x", text])) == [
        read_time(text, pattern),
        None,
        read_time(text, pattern),
    ]


@settings(deadline=None)
@given(st.integers(_FIRST, _LAST) | st.integers(2**53 - 99, 2**53 + 99))
@example(2**53)
@example(-(2**53))
def test_seconds_keep_order_and_come_back(micros: int) -> None:
    around = np.clip(np.arange(micros - 2, micros + 3), _FIRST, _LAST)
    seconds = to_seconds(around)
    assert (np.diff(seconds) >= 0).all()
    assert np.abs(
        [Decimal(float(s)) - Decimal(int(m)) / 10**6 for s, m in zip(seconds, around, strict=True)]
    ).max() <= Decimal("3e-5")
    rounded, is_time = round_seconds(seconds)
    assert is_time.all()
    assert np.array_equal(rounded, seconds)
    if abs(micros) < 2**33 * 10**6 - 9:  # until the year 2242
        assert np.array_equal(to_micros(seconds)[0], around)


@settings(deadline=None)
@given(
    st.floats(allow_infinity=True) | st.floats(-1e12, 1e12) | st.integers(-(2**62), 2**62),
    st.sampled_from(["epoch_s", "epoch_ms"]),
)
def test_epoch_numbers_are_rounded_to_the_microsecond(value: float, unit: str) -> None:
    per_value = 10**6 if unit == "epoch_s" else 1000
    exact = None if value != value or abs(value) == float("inf") else Decimal(float(value)) * per_value
    wanted = None if exact is None else int(exact.to_integral_value("ROUND_HALF_EVEN")) if abs(exact) < 10**19 else None
    wanted = wanted if wanted is not None and _FIRST <= wanted <= _LAST else None
    column = _time(unit)
    arrays = [pa.array([value], pa.float64() if isinstance(value, float) else pa.int64())]
    if value == value:
        arrays.append(pa.array([repr(value)]))
    for array in arrays:
        assert _read_array(column, array) == [wanted]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_timestamps_of_any_unit_are_times(unit: str, zone: str | None) -> None:
    nanos = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}[unit]
    numbers = [0, 1, -1, 1500, -1500, 10**9 + 1, -(2**63), 2**63 - 1, None]
    cells = pa.array(numbers, pa.int64()).cast(pa.timestamp(unit, zone))
    wanted = [None if n is None else n * nanos // 1000 for n in numbers]
    for format_ in ("iso", "epoch_s", "%Y"):
        got = _read_array_of_any(_time(format_), cells)
        assert got == [micros if micros is not None and _FIRST <= micros <= _LAST else None for micros in wanted]


def _read_array_of_any(column: TimeColumn, cells: pa.Array) -> list[int | None]:
    times, is_wrong = rules.parse_times(column, cells)
    assert is_wrong.tolist() == [
        null and valid for null, valid in zip(times.is_null().to_pylist(), cells.is_valid().to_pylist(), strict=True)
    ]
    listed: list[int | None] = times.cast(pa.int64()).to_pylist()
    return listed


def test_numbers_are_times_of_a_pattern_but_none_of_iso() -> None:
    for cells in (
        pa.array([20240229, None, 3]),
        pa.array([20240229.0, None, 3.5]),
        pa.array([20240229.0, float("nan"), 3.0]),
    ):
        times, is_wrong = rules.parse_times(_time("%Y%m%d"), cells)
        assert times.to_pylist() == [datetime(2024, 2, 29, tzinfo=UTC), None, None]
        assert is_wrong.tolist() == [False, False, True]
        assert rules.parse_times(_time("iso"), cells)[1].tolist() == [True, False, True]


def test_time_rules_keep_the_microsecond() -> None:
    column = _time("iso", min="2024-01-01T00:00:00.000001Z", max="9999-12-31T23:59:59+00:00", required=True)
    texts = ["2024-01-01T00:00:00", "2024-01-01T00:00:00.000001", "9999-12-31T23:59:58", "9999-12-31T23:59:59.9", None]
    times, _ = rules.parse_times(column, pa.array(texts))
    for given_ in (times, seconds_of(times)):
        found = {breach.reason + breach.rule: breach.rows.tolist() for breach in rules.time_breaches(column, given_)}
        assert found == {
            "missing_requiredmust be given": [False] * 4 + [True],
            f"out_of_rangemust be at least {column.min}": [True] + [False] * 4,
            f"out_of_rangemust be at most {column.max}": [False] * 3 + [True, False],
        }


@settings(deadline=None)
@given(st.floats(-3e10, 2.5e11), st.sampled_from(["iso", "epoch_s", "epoch_ms", "%Y-%m-%d %H:%M:%S.%f"]))
def test_times_are_spelled_as_they_are_read(value: float, format_: str) -> None:
    times, _ = rules.parse_times(_time("epoch_s" if format_ != "epoch_ms" else format_), pa.array([value, None]))
    spelled, missing = spell_times(pa.chunked_array([times]), format_)
    assert missing is None
    assert json.loads(json.dumps(spelled)) == spelled
    again, _ = rules.parse_times(_time(format_), pa.array([spelled]))
    assert seconds_of(again)[0] == seconds_of(times)[0]


def test_a_slice_and_nothing_are_read() -> None:
    cells = pa.array(["x", "2024-01-01", None, "1999-12-31"]).slice(1, 2)
    assert read_times(cells, "iso").to_pylist() == [datetime(2024, 1, 1, tzinfo=UTC), None]
    for kind in (pa.string(), pa.null(), pa.int64(), pa.timestamp("ns")):
        for format_ in ("iso", "epoch_s", "%Y"):
            assert len(rules.parse_times(_time(format_), pa.array([], kind))[0]) == 0
