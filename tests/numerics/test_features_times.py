"""Times through the compiled graph, against Python's datetime."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .feature_case import TOLERANCE, fit

TIMES = {"t": "time"}
PARTS = ["year", "month", "day", "weekday", "hour", "minute", "day_of_year", "is_weekend"]
CIRCLES = {
    "month": (1, 12),
    "day": (1, 31),
    "weekday": (0, 7),
    "hour": (0, 24),
    "minute": (0, 60),
    "day_of_year": (1, 366),
}
# float64 seconds tell whole microseconds apart until 2242; whole milliseconds for all years
MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999000)).map(
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000, tzinfo=UTC)
)
NEAR_MOMENTS = st.datetimes(datetime(1700, 1, 1), datetime(2242, 1, 1)).map(lambda t: t.replace(tzinfo=UTC))
EXTREMES = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    *(
        datetime(y, m, d, 23, 59, 59, 999000, tzinfo=UTC)
        for y in (4, 1900, 2000, 2023, 2024, 9996)
        for m, d in ((2, 28), (3, 1), (12, 31))
    ),
    *(datetime(y, 2, 29, tzinfo=UTC) for y in (4, 400, 2000, 2024, 9996)),
]


def part_of(time, part):
    """A part by Python."""
    if part == "day_of_year":
        return time.timetuple().tm_yday
    if part == "weekday":
        return time.weekday()
    return int(time.weekday() >= 5) if part == "is_weekend" else getattr(time, part)


@settings(max_examples=25, deadline=None)
@given(st.lists(MOMENTS | NEAR_MOMENTS, min_size=1, max_size=200))
@example(EXTREMES)
def test_parts_are_those_of_datetime(times):
    fitted = fit(TIMES, {"t": times}, times={"parts": PARTS, "cyclic": list(CIRCLES), "scale": "none"})
    result = dict(zip(fitted.names, fitted.features({"t": times}).T, strict=True))
    for part in PARTS:
        assert result[f"t:{part}"].tolist() == [part_of(time, part) for time in times]
    for part, (first, count) in CIRCLES.items():
        angles = [2 * math.pi * (part_of(time, part) - first) / count for time in times]
        np.testing.assert_allclose(result[f"t:{part}_sin"], np.sin(angles), atol=1e-6)
        np.testing.assert_allclose(result[f"t:{part}_cos"], np.cos(angles), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(MOMENTS, min_size=2, max_size=10, unique=True), MOMENTS)
def test_age_counts_back_from_the_reference_in_days(times, reference):
    section = {"parts": ["age"], "cyclic": [], "scale": "none"}
    latest = fit(TIMES, {"t": times}, times=section).features({"t": times})[:, 0]
    np.testing.assert_allclose(latest, [(max(times) - t) / timedelta(days=1) for t in times], **TOLERANCE)
    section["reference"] = reference.isoformat()
    given_one = fit(TIMES, {"t": times}, times=section).features({"t": times})[:, 0]
    np.testing.assert_allclose(given_one, [(reference - t) / timedelta(days=1) for t in times], **TOLERANCE)


@pytest.mark.parametrize("scale", ["standard", "min_max", "robust", "max_abs"])
def test_parts_are_scaled_over_the_training_rows(scale):
    start = datetime(2020, 1, 1, tzinfo=UTC)
    rng = np.random.default_rng(0)
    times = [start + timedelta(minutes=int(m)) for m in rng.integers(0, 3_000_000, 200)]
    fitted = fit(TIMES, {"t": times}, times={"parts": ["age", "year", "hour"], "cyclic": [], "scale": scale})
    raw = np.array([[(max(times) - t) / timedelta(days=1), t.year, t.hour] for t in times])
    low, middle, high = np.quantile(raw, [0.25, 0.5, 0.75], axis=0)
    expected = {
        "standard": (raw - raw.mean(axis=0)) / raw.std(axis=0),
        "min_max": (raw - raw.min(axis=0)) / np.ptp(raw, axis=0),
        "robust": (raw - middle) / np.where(high > low, high - low, 1),
        "max_abs": raw / np.abs(raw).max(axis=0),
    }[scale]
    np.testing.assert_allclose(fitted.features({"t": times}), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impute", ["median", "mean", "most_frequent"])
def test_missing_times_are_imputed_and_marked(impute):
    days = [datetime(2024, 3, day, 6, tzinfo=UTC) for day in (1, 1, 3, 8, 22)]
    expected = {"median": 3, "mean": 7, "most_frequent": 1}[impute]
    columns = {"s": "time", "t": "time"}
    section = {"parts": ["day"], "cyclic": [], "scale": "none", "impute": impute, "missing_indicator": True}
    fitted = fit(columns, {"s": days, "t": [*days[:4], None]}, times=section)
    assert fitted.names == ["s:day", "s:missing", "t:day", "t:missing"]
    assert fitted.features({"s": [None, days[2]], "t": days[:2]}).tolist() == [[expected, 1, 1, 0], [3, 0, 1, 0]]


def test_a_column_without_times_gives_what_is_finite():
    fitted = fit(TIMES, {"t": [None, None]}, times={"parts": ["age", *PARTS]})
    result = fitted.features({"t": [None, datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]})
    assert np.isfinite(result).all()
