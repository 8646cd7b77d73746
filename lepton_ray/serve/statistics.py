"""What a model has answered since it was loaded, in the form of Triton's statistics.

Source: https://github.com/triton-inference-server/server, docs/protocol/extension_statistics.md. ``queue`` is what passes from a
request's head to its run, the time in which its body comes among it; ``batch_stats`` gathers runs by their rows, rounded up
to a power of two, so that there are never many.
"""

import threading
import time
from collections import defaultdict
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


class _Sum:
    """How often, and how long together."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds

    def tell(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * _NS)}


class Statistics:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_requests: defaultdict[str, _Sum] = defaultdict(_Sum)
        self._of_batches: defaultdict[int, defaultdict[str, _Sum]] = defaultdict(lambda: defaultdict(_Sum))
        self._rows = self._runs = 0
        self._last_ms = 0

    def add_run(self, starts: Sequence[float], rows: int, times: RunTimes) -> None:
        """Count one run for requests that started at ``starts``, of ``rows`` rows together."""
        calls = len(starts)
        parts = (times.encoded - times.begun, times.ran - times.encoded, times.answered - times.ran)
        waited = calls * times.begun - sum(starts)
        with self._lock:
            self._rows += rows
            self._runs += 1
            self._last_ms = round(time.time() * _MS)
            self._of_requests["success"].add(calls, waited + calls * (times.answered - times.begun))
            self._of_requests["queue"].add(calls, waited)
            batch = self._of_batches[1 << (rows - 1).bit_length()]
            for name, seconds in zip(_PARTS, parts, strict=True):
                self._of_requests[name].add(calls, calls * seconds)
                batch[name].add(1, seconds)

    def add_failure(self, seconds: float) -> None:
        """Count a request that came to nothing."""
        with self._lock:
            self._of_requests["fail"].add(1, seconds)

    def tell(self) -> dict[str, Any]:
        """Return all of it; nothing is ever answered from a cache."""
        names = ("success", "fail", "queue", *_PARTS, "cache_hit", "cache_miss")
        with self._lock:
            return {
                "last_inference": self._last_ms,
                "inference_count": self._rows,
                "execution_count": self._runs,
                "inference_stats": {name: self._of_requests[name].tell() for name in names},
                "batch_stats": [
                    {"batch_size": size, **{name: batch[name].tell() for name in _PARTS}}
                    for size, batch in sorted(self._of_batches.items())
                ],
            }
