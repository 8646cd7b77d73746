"""What a replica keeps of its traffic for drift: counts of a window that goes on, and what the last one came to.

A request pays for a copy of its tensors, if it is among those that are counted; ``Watch.tick`` counts them in another thread.
"""

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.predictor import AnyPredictor
from lepton_ray.artifacts.reference import SIDES, Drift, Reference
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.spec.monitor import MonitorSpec

_MAX_WAITING_BYTES = 32 << 20  # of tensors between two ticks; texts count by their references


class Watch:
    """Of one package. Thread-safe."""

    def __init__(self, reference: Reference, spec: MonitorSpec, now: float) -> None:
        self._reference = reference
        self._spec = spec
        self._lock = threading.Lock()
        self._waiting: list[Feeds] = []
        self._rows = self._bytes = 0
        """Of what waits."""
        self._window = reference.empty()
        self._begun = now

    def offer(self, feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None:
        """Take the rows of a run, or evenly chosen ones, as long as there is room until the next tick."""
        room = self._spec.max_rows_per_s - self._rows
        if room <= 0:
            return
        watched = [
            (name, values)
            for part in (feeds, outputs)
            for name, values in part.items()
            if name in self._reference.tensors
        ]
        rows = len(watched[0][1])
        row_bytes = sum([values[:1].nbytes for _, values in watched])
        room = min(room, (_MAX_WAITING_BYTES - self._bytes) // max(row_bytes, 1))
        if not rows or room <= 0:
            return
        step = math.ceil(rows / room)
        tensors = {name: values[::step].copy() for name, values in watched}  # a request's buffers are its connection's
        num_rows = math.ceil(rows / step)
        with self._lock:
            self._waiting.append(tensors)
            self._rows += num_rows
            self._bytes += num_rows * row_bytes

    def tick(self, now: float) -> list[Drift] | None:
        """Count what waits; returns what the window came to if it has ended, the worst column first.

        Args:
            now: Seconds on a clock that never goes back; ticks are a second apart.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._rows = self._bytes = 0
        if waiting:
            joined = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
            self._window = self._window.plus(self._reference.count(joined))
        if now - self._begun < self._spec.window_s or self._window.rows < self._spec.min_rows:
            return None
        ended, self._window, self._begun = self._window, self._reference.empty(), now
        return self._reference.judge(ended)


class WatchedPredictor:
    """A predictor whose runs are offered to a watch."""

    def __init__(self, predictor: AnyPredictor, watch: Watch) -> None:
        self.package = predictor.package
        self.signature = predictor.signature
        self._predictor = predictor
        self._watch = watch

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs, as ``Predictor`` has it."""
        outputs = self._predictor.run(feeds)
        self._watch.offer(feeds, outputs)
        return outputs


def choose(drifts: list[Drift], most: int) -> list[Drift]:
    """Return the first columns of each side, at most ``most`` each."""
    return [drift for side in SIDES for drift in [one for one in drifts if one.side == side][:most]]


def clock() -> float:
    """Seconds that ``Watch`` counts in."""
    return time.monotonic()
