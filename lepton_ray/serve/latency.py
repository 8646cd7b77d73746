"""The 95th percentile of the latency of the last seconds, from counts in buckets: a request costs one addition."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

_LEAST_S, _MOST_S, _GROWTH = 1e-5, 1e3, 1.1
_EDGES_S = [_LEAST_S * _GROWTH**power for power in range(math.ceil(math.log(_MOST_S / _LEAST_S, _GROWTH)) + 1)]
_SHARE = 0.95


class RecentLatency:
    """Counts of the last ``num_slots`` readings."""

    def __init__(self, num_slots: int) -> None:
        self._counts = [0] * (len(_EDGES_S) + 1)
        self._slots: deque[list[int]] = deque(maxlen=num_slots)

    def add(self, seconds: Iterable[float]) -> None:
        """Count requests."""
        for one in seconds:
            self._counts[bisect_left(_EDGES_S, one)] += 1

    def read(self) -> tuple[int, float]:
        """Return how many requests the last slots hold, and their 95th percentile in seconds, 0 of none; begins a new slot.

        The percentile is the upper edge of a bucket: up to a tenth too long, never too short.
        """
        self._slots.append(self._counts)
        self._counts = [0] * (len(_EDGES_S) + 1)
        sums = [sum(slots) for slots in zip(*self._slots, strict=True)]
        total = sum(sums)
        rank = math.ceil(_SHARE * total)
        seen = 0
        for index, count in enumerate(sums):
            seen += count
            if count and seen >= rank:
                return total, _EDGES_S[min(index, len(_EDGES_S) - 1)]
        return 0, 0.0
