"""Finished trials, written down as plain data as they end: what a killed search is told of, and goes on from."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.fs as pafs

from lepton_ray.artifacts.whole import write_whole
from lepton_ray.tune.space import Values

_CLOCK = "clock"


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    values: Values
    """At its end: ``pbt`` changes them while a trial runs."""
    loss: float | None
    """Least validation loss of an epoch; None if it never was a number."""
    epochs: int
    stopped_early: bool
    ended_at_s: float = 0.0
    """Seconds that the search had run when the trial ended."""
    cost: float | None = None
    """Of ``also_minimise``; None without it."""
    schedule: list[dict[str, Any]] = field(default_factory=list)
    """With ``pbt``: the values of all epochs, as ``{"from_epoch": 3, "values": {...}}``, counted from 1."""

    @property
    def rank(self) -> float:
        """The loss, for comparing: a trial without one is the worst."""
        return math.inf if self.loss is None else self.loss


@dataclass(frozen=True)
class Journal:
    """A folder with a JSON file for each finished trial, named by its number, and one with the seconds spent."""

    filesystem: pafs.FileSystem
    path: str

    def read(self) -> list[Trial]:
        """Return the finished trials in the order in which they ended; one that was cut off while written is left out."""
        return [trial for _, trial in sorted(self._read_all().items()) if trial is not None]

    def write(self, trial: Trial) -> None:
        """Write a finished trial under a number that no file has."""
        number = max(self._read_numbers(), default=0) + 1
        self._write(f"{number:05d}", asdict(trial))

    def read_seconds(self) -> float:
        """Return how long the search has run, as far as it was written down."""
        spent = self._read_one(_CLOCK)
        seconds = spent.get("seconds", 0.0) if spent else 0.0
        return max([seconds, *(trial.ended_at_s for trial in self.read())])

    def write_seconds(self, seconds: float) -> None:
        """Write how long the search has run."""
        self._write(_CLOCK, {"seconds": round(seconds, 3)})

    def _read_numbers(self) -> list[int]:
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        names = (info.base_name.removesuffix(".json") for info in self.filesystem.get_file_info(selector))
        return [int(name) for name in names if name.isdecimal()]

    def _read_all(self) -> dict[int, Trial | None]:
        return {number: _to_trial(self._read_one(f"{number:05d}")) for number in self._read_numbers()}

    def _read_one(self, name: str) -> dict[str, Any] | None:
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}.json") as stream:
                content = json.loads(stream.read())
        except (FileNotFoundError, ValueError):  # killed while writing it
            return None
        return content if isinstance(content, dict) else None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.filesystem, f"{self.path}/{name}.json", json.dumps(content, allow_nan=False).encode())


def _to_trial(content: dict[str, Any] | None) -> Trial | None:
    try:
        return Trial(**content) if content else None
    except TypeError:
        return None


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the least loss, the first of equals."""
    return min(trials, key=lambda trial: trial.rank)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other beats in loss and cost, by loss; of equals the first. All trials have a cost."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.rank, trial.cost)):
        if trial.loss is not None and (not front or _cost(trial) < _cost(front[-1])):
            front.append(trial)
    return front


def _cost(trial: Trial) -> float:
    return math.inf if trial.cost is None else trial.cost


def cheapest_of(front: Sequence[Trial], max_loss_excess_fraction: float) -> Trial:
    """Return the trial with the least cost of a front whose loss is at most so much above the least."""
    least = front[0].rank
    return [trial for trial in front if trial.rank <= least + max_loss_excess_fraction * abs(least)][-1]


def has_stalled(trials: Sequence[Trial], patience: int) -> bool:
    """Whether so many trials in a row were no better than the best before them."""
    best = trials.index(best_of(trials)) if trials else 0
    return len(trials) - 1 - best >= patience
