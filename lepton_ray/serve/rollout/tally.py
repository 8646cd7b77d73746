"""What one variant has answered, as counts that add up over replicas: requests, errors, times, answers, comparisons, outcomes.

An *answer* is what a row's output comes to for counting: its label, or the bin of its number. The bins' edges are the
champion's own golden outputs, so all replicas and both variants have the same.
"""

import math
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Self

import numpy as np

from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.core.files import read_json
from lepton_ray.core.status import HTTP_FAILED, HTTP_OK
from lepton_ray.serve.endpoint import Meter, Outputs

_GROWTH = math.log(1.1)  # of a bin of times to the next: a percentile is right to 5 %
_LIKELY = 0.5
_MAX_EDGES = 9


@dataclass
class Tally:
    """Sums; ``plus`` and ``minus`` make others of them."""

    requests: int = 0
    errors: int = 0
    times: Counter[int] = field(default_factory=Counter)
    """Requests that were answered, by the logarithm of their milliseconds."""
    answers: Counter[str] = field(default_factory=Counter)
    compared_rows: int = 0
    differing_rows: int = 0
    largest_difference: float = 0.0
    dropped: int = 0
    """Requests that were not copied, as too many waited."""
    outcomes: int = 0
    outcome_sum: Fraction = Fraction()
    """Exact, as is the next: their difference says how outcomes vary, however far from 0 they lie."""
    outcome_squares: Fraction = Fraction()

    def plus(self, other: Self) -> "Tally":
        """Return the sum."""
        return _combine(self, other, 1)

    def minus(self, other: Self) -> "Tally":
        """Return what has come since ``other``; of the differences the largest stays."""
        return _combine(self, other, -1)

    def percentile_ms(self, fraction: float) -> float | None:
        """Return a percentile of the times in milliseconds, or None without any."""
        wanted = fraction * self.times.total()
        seen = 0
        for index in sorted(self.times):
            seen += self.times[index]
            if seen >= wanted:
                return math.exp((index - 0.5) * _GROWTH)
        return None


def _combine(one: Tally, other: Tally, sign: int) -> Tally:
    values: dict[str, Any] = {}
    for part in fields(Tally):
        mine, theirs = getattr(one, part.name), getattr(other, part.name)
        if isinstance(mine, Counter):
            values[part.name] = Counter({key: mine[key] + sign * theirs[key] for key in mine.keys() | theirs.keys()})
        else:
            values[part.name] = mine + sign * theirs
    values["largest_difference"] = max(one.largest_difference, other.largest_difference)
    return Tally(**values)


class Answers:
    """Turns outputs into answers, alike for two packages of one signature."""

    def __init__(self, package: ModelPackage) -> None:
        signature = package.signature
        names = [tensor.name for tensor in signature.outputs]
        self._number = names[-1]
        self._text = next((name for name in ("label", "is_anomaly") if name in names), None)
        self._classes = signature.classes
        self._edges = [] if self._text or self._classes else _edges(package, self._number)

    def of(self, outputs: Outputs) -> list[str]:
        """Return the answer of each row."""
        if self._text is not None:
            return [str(value) for value in outputs[self._text].tolist()]
        numbers = outputs[self._number]
        if self._classes:
            rows = (numbers >= _LIKELY).tolist()
            return [" ".join(str(index) for index, is_likely in enumerate(row) if is_likely) for row in rows]
        means = numbers.reshape(len(numbers), -1).mean(axis=1).tolist()
        return [str(bisect_right(self._edges, mean)) for mean in means]

    def counted(self, outputs: Outputs) -> list[str]:
        """Return what is counted of all rows: of sets of tags each tag, as there are more sets than can be counted."""
        answers = self.of(outputs)
        is_tags = self._text is None and bool(self._classes)
        return [tag for answer in answers for tag in answer.split() or [""]] if is_tags else answers

    def largest_difference(self, one: Outputs, other: Outputs) -> float:
        """Return the largest difference between the numbers of two outputs."""
        return float(np.abs(one[self._number].astype(float) - other[self._number]).max())


def _edges(package: ModelPackage, name: str) -> list[float]:
    numbers = np.asarray(read_json(package.path / "golden_outputs.json")[name], float)
    means = numbers.reshape(len(numbers), -1).mean(axis=1)
    return sorted(set(np.quantile(means, np.linspace(0, 1, _MAX_EDGES), method="nearest").tolist()))


class TallyMeter:
    """Counts into a tally besides another meter. Thread-safe."""

    def __init__(self, meter: Meter, answers: Answers) -> None:
        self._meter = meter
        self._answers = answers
        self._lock = threading.Lock()
        self._tally = Tally()

    def observe(self, protocol_name: str, code: int, seconds: Sequence[float], outputs: Outputs | None) -> None:
        """Count requests."""
        self._meter.observe(protocol_name, code, seconds, outputs)
        if protocol_name == "job_parts":  # the champion alone has them, and they take longer than other requests
            return
        answers = [] if outputs is None else self._answers.counted(outputs)
        # a refusal takes no time, and most are the champion's
        times = [math.ceil(math.log(max(one * 1000, 1e-3)) / _GROWTH) for one in seconds] if code == HTTP_OK else ()
        with self._lock:
            self._tally.requests += len(seconds)
            self._tally.errors += len(seconds) if code >= HTTP_FAILED else 0
            self._tally.times.update(times)
            self._tally.answers.update(answers)

    def add_error(self) -> None:
        """Count a request that this variant alone could not answer."""
        with self._lock:
            self._tally.errors += 1

    def add_dropped(self) -> None:
        """Count a request that was not copied."""
        with self._lock:
            self._tally.dropped += 1

    def add_outcome(self, value: float) -> None:
        """Count what came of an answer."""
        with self._lock:
            self._tally.outcomes += 1
            self._tally.outcome_sum += Fraction(value)
            self._tally.outcome_squares += Fraction(value) ** 2

    def compare(self, theirs: Outputs, ours: Outputs) -> int:
        """Count how far this variant's outputs are from the champion's; returns how many rows have another answer."""
        pairs = zip(self._answers.of(theirs), self._answers.of(ours), strict=True)
        differing = sum(one != other for one, other in pairs)
        largest = self._answers.largest_difference(theirs, ours)
        with self._lock:
            self._tally.compared_rows += len(next(iter(ours.values())))
            self._tally.differing_rows += differing
            self._tally.largest_difference = max(self._tally.largest_difference, largest)
        return differing

    def tally(self) -> Tally:
        """Return a copy of all counts since the beginning."""
        with self._lock:
            return self._tally.plus(Tally())


def total(tallies: Sequence[Tally]) -> Tally:
    """Return the sum of tallies."""
    summed = Tally()
    for tally in tallies:
        summed = summed.plus(tally)
    return summed
