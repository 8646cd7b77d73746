"""The catalogue's metrics as Ray exports them from a driver, a task or an actor.

Processes tell their metrics apart by the label ``WorkerId`` that Ray adds; the metrics of a process go with it.
"""

import threading
import time
from collections.abc import Mapping

import ray
from ray.util import metrics

from lepton_ray.core.metrics import Metric

_REPEAT_S = 1.0


class Gauge:
    """A gauge that keeps its values: Ray 2.60 drops one that is not set within two of its reports, 20 s, so they are set again."""

    def __init__(self, metric: Metric) -> None:
        self._gauge = metrics.Gauge(metric.name, metric.description, metric.labels)
        self._values: dict[tuple[tuple[str, str], ...], float] = {}

    def set(self, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Export a value from now on, as long as the process is connected to Ray."""
        given = dict(labels or {})
        self._values[tuple(sorted(given.items()))] = value
        self._gauge.set(value, given)

    def repeat(self) -> None:
        """Export the last values again."""
        for labels, value in list(self._values.items()):
            self._gauge.set(value, dict(labels))


_kept: dict[str, Gauge] = {}
"""By metric: the last that was made of it, as a process may train again."""
_lock = threading.Lock()


def counter(metric: Metric) -> metrics.Counter:
    """Return a counter to ``inc``."""
    return metrics.Counter(metric.name, metric.description, metric.labels)


def gauge(metric: Metric) -> Gauge:
    """Return a gauge to ``set``; a thread of the process repeats it."""
    made = Gauge(metric)
    with _lock:
        if not _kept:
            threading.Thread(target=_repeat, name="lepton-gauges", daemon=True).start()
        _kept[metric.name] = made
    return made


def _repeat() -> None:
    while True:
        time.sleep(_REPEAT_S)
        with _lock:
            if not ray.is_initialized():
                _kept.clear()
                return
            for one in _kept.values():
                one.repeat()
