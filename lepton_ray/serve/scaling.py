"""How many replicas a load needs, so that the 95th percentile of its latency stays below a target.

Ray Serve runs ``ReplicaPolicy`` in its controller, pickled by value with this module: nothing of ours may be imported here. It applies
bounds and delays itself.

A replica is taken for a queue in which latency grows as ``1 / (1 - busy)``; its busy fraction follows from the requests that are under
way. That serves to foresee what fewer replicas would do. It need not be true: more replicas come where the measured percentile misses
the target, whatever the model says, and a rate at which it was missed is remembered, so that one load never makes replicas come and go.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

LISTENER_REQUESTS = "listener_requests"
"""Name of a statistic: requests under way at a replica's listener, on average."""
ANSWERED = "answered"
"""Requests that a replica has answered in its last ``WINDOW_S``."""
P95_MS = "p95_ms"
"""95th percentile of their latency."""
REPORT_S = 1.0
"""A replica reports so often."""
WINDOW_S = 5.0
_MIN_ANSWERED = 20  # a 95th percentile of fewer says little
# times the number of replicas, by one decision: for latency, and for more requests than are answered
_MOST_GROWTH, _MOST_FLOW = 2.0, 8.0
# fractions of a replica's time: where it is busy for less and is slow, more replicas are no remedy
_LEAST_BUSY, _MOST_BUSY = 0.2, 0.9
_DRAINING = -0.05  # growth of what is under way, of what is answered: it is the past that is slow
_SAFETY = 0.9  # of the rate at which the target was missed
_CHEAPER = 4.0  # times, by the model, which can be wrong by less: what is remembered was of other requests
_SETTLE_S = 2 * WINDOW_S  # what is measured sooner after a change is of both numbers of replicas
_REMEMBER_S = 600.0


class Observed(NamedTuple):
    """What replicas report, all together."""

    replicas: int
    load: float
    """Requests under way, on average."""
    rate: float
    """Requests answered in a window."""
    p95_ms: float | None
    """None of too few requests."""


@dataclass(frozen=True)
class Memory:
    """What a policy keeps from one decision to the next; times in seconds."""

    replicas: int = 0
    changed: float = -math.inf
    """When their number changed."""
    missed_rate: float = math.inf
    """Least rate of a replica at which the target was missed."""
    missed_cost_ms: float = 0.0
    """What ``_cost_ms`` was then."""
    missed: float = -math.inf
    """When that was."""
    load: float = 0.0
    sampled: float = -math.inf
    """When the load was that, at least a window ago."""
    growth: float = 0.0
    """Of the load in a window, in parts of what was answered in it."""


def wanted_replicas(
    replicas: int, load: float, p95_ms: float, growth: float, target_p95_ms: float, headroom: float
) -> float:
    """Return how many replicas hold a target; grows with the load and with the percentile.

    Args:
        replicas: That the numbers are of; at least 1.
        load: Requests under way in all of them, on average.
        p95_ms: Measured.
        growth: Of the load in a window, in parts of what was answered in it.
        target_p95_ms: Not to be exceeded.
        headroom: Fraction of the target that fewer replicas must be foreseen to keep.
    """
    busy = load / (replicas + load)  # of a queue with one server: load / replicas = busy / (1 - busy)
    if p95_ms > target_p95_ms:
        flow = min((1 + growth) / _MOST_BUSY, _MOST_FLOW)
        more = max(min(p95_ms / target_p95_ms, _MOST_GROWTH), flow)
        return max(float(replicas), replicas * min(more, busy / _LEAST_BUSY))
    used = p95_ms / (headroom * target_p95_ms)
    if used >= 1:
        return float(replicas)
    may_be_busy = min(max(1 - used * (1 - busy), _LEAST_BUSY), _MOST_BUSY)
    return min(float(replicas), replicas * busy / may_be_busy)


def decide(
    observed: Observed, memory: Memory, now: float, target_p95_ms: float, headroom: float
) -> tuple[float | None, Memory]:
    """Return how many replicas are wanted, and what to remember.

    Args:
        observed: Of now; ``p95_ms`` is known.
        memory: Of the decision before.
        now: Seconds of any clock.
        target_p95_ms: Not to be exceeded.
        headroom: As in ``wanted_replicas``.

    Returns:
        None for the number as long as what is measured is of other replicas, or of a queue that gets shorter.
    """
    replicas, load, rate, p95_ms = observed
    assert p95_ms is not None  # noqa: S101
    if now < memory.sampled:  # the clock has been set back: of no moment is known how long ago it was
        memory = Memory()
    memory = _take_note(observed, memory, now)
    if now - memory.changed < _SETTLE_S:
        return None, memory
    if p95_ms > target_p95_ms:
        if memory.growth < _DRAINING:
            return None, memory
        memory = _note_miss(observed, memory, now)
    wanted = wanted_replicas(replicas, load, p95_ms, memory.growth, target_p95_ms, headroom)
    likeness = min(1.0, _CHEAPER * _cost_ms(observed) / memory.missed_cost_ms) if memory.missed_cost_ms else 0.0
    needed = likeness * rate / (_SAFETY * memory.missed_rate)
    return (wanted if wanted > replicas else max(wanted, min(float(replicas), needed))), memory


def _cost_ms(observed: Observed) -> float:
    """The mean latency that a replica without a queue would have, by the model; that with one follows from Little's law.

    The percentile would not do: a busy machine's own pauses are most of it where requests are short.
    """
    latency_ms = WINDOW_S * 1000 * observed.load / observed.rate
    return latency_ms * observed.replicas / (observed.replicas + observed.load)


def _note_miss(observed: Observed, memory: Memory, now: float) -> Memory:
    rate = observed.rate / observed.replicas
    if rate >= memory.missed_rate:
        return replace(memory, missed=now)
    return replace(memory, missed_rate=rate, missed_cost_ms=_cost_ms(observed), missed=now)


def _take_note(observed: Observed, memory: Memory, now: float) -> Memory:
    if memory.replicas != observed.replicas:
        is_first = memory.replicas == 0
        memory = replace(memory, replicas=observed.replicas, changed=-math.inf if is_first else now)
    if now - memory.missed > _REMEMBER_S:
        memory = replace(memory, missed_rate=math.inf, missed_cost_ms=0.0)
    if now - memory.sampled < WINDOW_S:
        return memory
    growth = (observed.load - memory.load) / observed.rate if math.isfinite(memory.sampled) else 0.0
    return replace(memory, load=observed.load, sampled=now, growth=growth)


class ReplicaPolicy:
    """Ray Serve's custom policy: ``target_p95_ms`` if there is one and enough is answered to tell, else the requests under way."""

    def __init__(self, target_p95_ms: float | None, headroom: float, max_ongoing_requests: int) -> None:
        self._target_p95_ms = target_p95_ms
        self._headroom = headroom
        self._max_ongoing_requests = max_ongoing_requests

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return how many replicas are wanted, and the state that comes back with the next context."""
        state = context.policy_state.get("memory")
        if context.current_num_replicas == 0:  # Ray Serve starts the first one by itself
            return context.target_num_replicas, {}
        observed = observe(context)
        if self._target_p95_ms is None or observed.p95_ms is None:
            wanted = observed.load / context.config.get_target_ongoing_requests()
            return max(wanted, float(observed.rate > 0)), {"memory": state}  # short requests are seldom seen under way
        memory = Memory(**state) if state else Memory()
        wanted, memory = decide(observed, memory, context.current_time, self._target_p95_ms, self._headroom)
        if wanted is None:
            return context.target_num_replicas, {"memory": asdict(memory)}
        # Ray Serve's HTTP gives a replica no more than this, so what is beyond waits where no replica can measure it.
        least = context.total_num_requests / self._max_ongoing_requests
        return max(wanted, least), {"memory": asdict(memory)}


def observe(context: Any) -> Observed:
    """Return what the replicas report in a context of Ray Serve."""
    direct = sum((context.aggregated_metrics or {}).get(LISTENER_REQUESTS, {}).values())
    series = context.raw_metrics or {}
    answered = {replica: points[-1].value for replica, points in series.get(ANSWERED, {}).items() if points}
    times = {replica: points[-1].value for replica, points in series.get(P95_MS, {}).items() if points}
    total = sum(answered.values())
    load = context.total_num_requests + direct
    if total < _MIN_ANSWERED:
        return Observed(context.current_num_replicas, load, total, None)
    p95_ms = sum(count * times.get(replica, 0.0) for replica, count in answered.items()) / total
    return Observed(context.current_num_replicas, load, total, p95_ms)
