"""Times: calendar parts, points on a circle and age, from float64 seconds since 1970 UTC, by exact whole numbers.

The calendar is the proleptic Gregorian one of years 1 to 9999, in UTC. Days are counted from 0000-03-01, so that a leap day ends
a year and every division is of numbers that are not negative (Hinnant, "chrono-compatible low-level date algorithms", 2013).
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from lepton_ray.artifacts import statistics
from lepton_ray.artifacts.statistics import Values
from lepton_ray.core.frozen import Floats, Frozen, Texts
from lepton_ray.features.execution import run_steps
from lepton_ray.features.graph_builder import Graph
from lepton_ray.spec.features_content import TimeFeatures

_DAY_S = 86400
_EPOCH_S = 62_135_596_800  # from 0001-01-01 to 1970-01-01
_FIRST_S, _LAST_S = -float(_EPOCH_S), 253_402_300_799.0  # 0001-01-01T00:00:00, 9999-12-31T23:59:59
_MARCH_DAYS = 306  # from 0000-03-01 to 0001-01-01
_ERA_DAYS, _ERA_YEARS = 146_097, 400
_CIRCLES = {
    "month": (1, 12),
    "day": (1, 31),
    "weekday": (0, 7),
    "hour": (0, 24),
    "minute": (0, 60),
    "day_of_year": (1, 366),
}
"""Least value and number of values of each part."""


class TimeState(Frozen):
    """How one column of times becomes numbers."""

    impute: float
    """Seconds since 1970 that stand for a missing value."""
    has_indicator: bool
    parts: Texts
    offsets: Floats
    scales: Floats
    cyclic: Texts
    reference: float
    """Seconds since 1970 that ``age`` counts back from."""

    def names_of(self, name: str) -> list[str]:
        """Return the names of the features."""
        names = [f"{name}:{part}" for part in self.parts]
        names += [f"{name}:{part}_{function}" for part in self.cyclic for function in ("sin", "cos")]
        return [*names, f"{name}:missing"] if self.has_indicator else names


Times = Mapping[str, TimeState]


def fit_time(name: str, seconds_N: Values, spec: TimeFeatures) -> TimeState:
    """Fit a column."""
    present = statistics.present(seconds_N)
    reference = spec.reference_time.timestamp() if spec.reference_time else float(present.max(initial=-math.inf))
    raw = TimeState(
        impute=statistics.statistic(present, spec.impute),
        has_indicator=spec.missing_indicator,
        parts=spec.parts,
        offsets=(0.0,) * len(spec.parts),
        scales=(1.0,) * len(spec.parts),
        cyclic=spec.cyclic,
        reference=reference if math.isfinite(reference) else 0.0,
    )
    if len(present) == 0 or spec.scale == "none" or not spec.parts:
        return raw
    states = {name: raw}
    build: Callable[[Graph], str] = lambda graph: _add_parts(graph, states, 0)  # noqa: E731
    values_NP = run_steps({"times": [name]}, {"times": seconds_N[:, None]}, len(spec.parts), build)
    fitted = [statistics.location_and_scale(np.ascontiguousarray(values), spec.scale) for values in values_NP.T]
    return raw.model_copy(update={"offsets": tuple(o for o, _ in fitted), "scales": tuple(s for _, s in fitted)})


def add_time(graph: Graph, times: Times, name: str) -> str:
    """Add (N, features) float32 of one of the columns, all of which are in one tensor."""
    position, state = list(times).index(name), times[name]
    values = []
    if state.parts:
        scaled = graph.scale(_add_parts(graph, times, position), state.offsets, state.scales)
        values.append(graph.cast(scaled, TensorProto.FLOAT))
    values += [_add_circle(graph, times, position, part) for part in state.cyclic]
    if state.has_indicator:
        values.append(graph.cast(graph.take(_add_missing(graph, times), [position]), TensorProto.FLOAT))
    return graph.concat(values)


def _add_parts(graph: Graph, times: Times, position: int) -> str:
    """Add (N, parts) float64."""
    state = list(times.values())[position]
    return graph.concat([_add_part(graph, times, position, part, state.reference) for part in state.parts])


def _add_part(graph: Graph, times: Times, position: int, part: str, reference: float) -> str:
    if part == "age":
        seconds = graph.take(_add_filled(graph, times), [position])
        elapsed = graph.add("Sub", graph.constant(reference), seconds)
        return graph.add("Div", elapsed, graph.constant(float(_DAY_S)))
    return graph.cast(graph.take(_add_calendar(graph, times, part), [position]), TensorProto.DOUBLE)


def _add_circle(graph: Graph, times: Times, position: int, part: str) -> str:
    first, count = _CIRCLES[part]
    angles = 2 * np.pi * (np.arange(first + count) - first) / count
    table = np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return graph.rows(table, graph.take(_add_calendar(graph, times, part), position))


def _add_missing(graph: Graph, times: Times) -> str:
    return graph.once("missing times", lambda: graph.add("IsNaN", graph.matrix(list(times))))


def _add_filled(graph: Graph, times: Times) -> str:
    """Add the seconds since 1970 (N, times) float64, none missing, years 1 to 9999."""

    def build() -> str:
        impute = graph.vector([state.impute for state in times.values()])
        filled = graph.add("Where", _add_missing(graph, times), impute, graph.matrix(list(times)))
        return graph.clip(filled, _FIRST_S, _LAST_S)

    return graph.once("filled times", build)


def _add_calendar(graph: Graph, times: Times, part: str) -> str:
    """Add a part of the calendar, (N, times) int64."""
    return graph.once(("calendar", part), lambda: _PARTS[part](_Calendar(graph, times)))


class _Calendar:
    """Whole-number arithmetic on the nodes of a graph; each intermediate value is added once."""

    def __init__(self, graph: Graph, times: Times) -> None:
        self._graph, self._times = graph, times

    def _once(self, name: str, build: Callable[[], str]) -> str:
        return self._graph.once(("calendar", name), build)

    def _whole(self, operator: str, value: str, number: int) -> str:
        return self._graph.add(operator, value, self._graph.constant(np.int64(number)))

    def plus(self, value: str, number: int) -> str:
        return self._whole("Add", value, number)

    def times(self, value: str, number: int) -> str:
        return self._whole("Mul", value, number)

    def over(self, value: str, number: int) -> str:
        return self._whole("Div", value, number)

    def modulo(self, value: str, number: int) -> str:
        return self._whole("Mod", value, number)

    def minus(self, value: str, *others: str) -> str:
        for other in others:
            value = self._graph.add("Sub", value, other)
        return value

    def sum(self, value: str, other: str) -> str:
        return self._graph.add("Add", value, other)

    def is_below(self, value: str, number: int) -> str:
        """1 where the value is less, else 0."""
        return self._graph.cast(self._whole("Less", value, number), TensorProto.INT64)

    def is_divisible(self, value: str, number: int) -> str:
        """1 where the number divides the value, else 0."""
        return self.is_below(self.modulo(value, number), 1)

    @property
    def seconds(self) -> str:
        """Whole seconds since 0001-01-01."""

        def build() -> str:
            floored = self._graph.add("Floor", _add_filled(self._graph, self._times))
            return self.plus(self._graph.cast(floored, TensorProto.INT64), _EPOCH_S)

        return self._once("seconds", build)

    @property
    def days(self) -> str:
        """Days since 0001-01-01, a Monday."""
        return self._once("days", lambda: self.over(self.seconds, _DAY_S))

    @property
    def march_day(self) -> str:
        """Days since the last 1st of March."""
        return self._once("march_day", self._build_march_day)

    @property
    def march_year(self) -> str:
        """Years of March to February, since 0000-03-01."""
        return self._once("march_year", self._build_march_year)

    @property
    def march_month(self) -> str:
        """Months since the last March."""
        return self._once("march_month", lambda: self.over(self.plus(self.times(self.march_day, 5), 2), 153))

    def _day_of_era(self) -> str:
        return self._once("day_of_era", lambda: self.modulo(self.plus(self.days, _MARCH_DAYS), _ERA_DAYS))

    def _year_of_era(self) -> str:
        def build() -> str:
            day = self._day_of_era()
            leap = self.sum(self.minus(day, self.over(day, 1460)), self.over(day, 36_524))
            return self.over(self.minus(leap, self.over(day, _ERA_DAYS - 1)), 365)

        return self._once("year_of_era", build)

    def _build_march_day(self) -> str:
        year = self._year_of_era()
        whole = self.minus(self.sum(self.times(year, 365), self.over(year, 4)), self.over(year, 100))
        return self.minus(self._day_of_era(), whole)

    def _build_march_year(self) -> str:
        era = self.over(self.plus(self.days, _MARCH_DAYS), _ERA_DAYS)
        return self.sum(self._year_of_era(), self.times(era, _ERA_YEARS))

    def year(self) -> str:
        """1 to 9999."""
        return self.sum(self.march_year, self._is_new_year())

    def _is_new_year(self) -> str:
        """1 in January and February, else 0."""
        return self.plus(self.times(self.is_below(self.march_month, 10), -1), 1)

    def month(self) -> str:
        """1 to 12."""
        return self.minus(self.plus(self.march_month, 3), self.times(self._is_new_year(), 12))

    def day(self) -> str:
        """1 to 31."""
        before = self.over(self.plus(self.times(self.march_month, 153), 2), 5)
        return self.plus(self.minus(self.march_day, before), 1)

    def day_of_year(self) -> str:
        """1 to 366."""
        year = self._graph.once(("calendar", "year"), self.year)
        leap = self.sum(
            self.minus(self.is_divisible(year, 4), self.is_divisible(year, 100)), self.is_divisible(year, 400)
        )
        spring = self.sum(self.plus(self.march_day, 60), leap)
        new_year = self.plus(self.march_day, -305)
        return self._graph.add("Where", self._graph.cast(self._is_new_year(), TensorProto.BOOL), new_year, spring)

    def weekday(self) -> str:
        """0 (Monday) to 6."""
        return self.modulo(self.days, 7)

    def is_weekend(self) -> str:
        """1 on Saturdays and Sundays, else 0."""
        return self.plus(self.times(self.is_below(self.weekday(), 5), -1), 1)

    def hour(self) -> str:
        """0 to 23."""
        return self.over(self.modulo(self.seconds, _DAY_S), 3600)

    def minute(self) -> str:
        """0 to 59."""
        return self.over(self.modulo(self.seconds, 3600), 60)


_PARTS: dict[str, Callable[[_Calendar], str]] = {
    "year": _Calendar.year,
    "month": _Calendar.month,
    "day": _Calendar.day,
    "weekday": _Calendar.weekday,
    "hour": _Calendar.hour,
    "minute": _Calendar.minute,
    "day_of_year": _Calendar.day_of_year,
    "is_weekend": _Calendar.is_weekend,
}
