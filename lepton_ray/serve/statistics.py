"""What a model has answered since it was loaded, in the form of Triton's statistics.

Source: https://github.com/triton-inference-server/server, docs/protocol/extension_statistics.md. ``queue`` is what passes from a
request's head to its run, the time in which its body comes among it; ``batch_stats`` gathers runs by their rows, rounded up
to a power of two, so that there are never many.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

_PARTS = ("compute_input", "compute_infer", "compute_output")
_NS, _MS = 1e9, 1e3


class RunTimes(NamedTuple):
    """Moments of one run, by ``time.perf_counter``."""

    begun: float
    encoded: float
    ran: float
    answered: float


class _Batches:
    """Sums over runs of about one size; times in seconds. One for each size is all that is kept: a run must cost little."""

    __slots__ = ("calls", "of_calls", "of_runs", "rows", "runs", "waited")

    def __init__(self) -> None:
        self.runs = self.calls = self.rows = 0
        self.waited = 0.0
        self.of_runs = [0.0, 0.0, 0.0]
        """Of the parts, each run counted once."""
        self.of_calls = [0.0, 0.0, 0.0]
        """The same, each run counted for each of its calls."""


class Statistics:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: dict[int, _Batches] = {}
        self._failed, self._failed_s = 0, 0.0
        self._last_s = 0.0

    def add_run(self, starts: Sequence[float], rows: int, times: RunTimes) -> None:
        """Count one run for requests that started at ``starts``, of ``rows`` rows together."""
        begun, encoded, ran, answered = times
        calls = len(starts)
        now = time.time()
        with self._lock:
            sums = self._batches.get((rows - 1).bit_length())
            if sums is None:
                sums = self._batches[(rows - 1).bit_length()] = _Batches()
            sums.runs += 1
            sums.calls += calls
            sums.rows += rows
            sums.waited += calls * begun - sum(starts)
            for part, seconds in enumerate((encoded - begun, ran - encoded, answered - ran)):
                sums.of_runs[part] += seconds
                sums.of_calls[part] += calls * seconds
            self._last_s = now

    def add_failure(self, seconds: float) -> None:
        """Count a request that came to nothing."""
        with self._lock:
            self._failed += 1
            self._failed_s += seconds

    def tell(self) -> dict[str, Any]:
        """Return all of it; nothing is ever answered from a cache."""
        with self._lock:
            sizes = sorted(self._batches.items())
            every = [sums for _, sums in sizes]
            calls, waited = sum(sums.calls for sums in every), sum(sums.waited for sums in every)
            parts = [sum(sums.of_calls[part] for sums in every) for part in range(len(_PARTS))]
            return {
                "last_inference": round(self._last_s * _MS),
                "inference_count": sum(sums.rows for sums in every),
                "execution_count": sum(sums.runs for sums in every),
                "inference_stats": {
                    "success": _tell(calls, waited + sum(parts)),
                    "fail": _tell(self._failed, self._failed_s),
                    "queue": _tell(calls, waited),
                    **{name: _tell(calls, seconds) for name, seconds in zip(_PARTS, parts, strict=True)},
                    "cache_hit": _tell(0, 0.0),
                    "cache_miss": _tell(0, 0.0),
                },
                "batch_stats": [{"batch_size": 1 << power, **_tell_parts(sums)} for power, sums in sizes],
            }


def _tell_parts(sums: _Batches) -> dict[str, dict[str, int]]:
    return {name: _tell(sums.runs, seconds) for name, seconds in zip(_PARTS, sums.of_runs, strict=True)}


def _tell(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * _NS)}
