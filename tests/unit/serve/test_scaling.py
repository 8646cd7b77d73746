"""The rule that holds a latency: its shape, and its course in simulated queues, which know nothing of the model that it has of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lepton_ray.serve.latency import RecentLatency
from lepton_ray.serve.meters import on_ray
from lepton_ray.serve.scaling import (
    ANSWERED,
    LISTENER_REQUESTS,
    P95_MS,
    WINDOW_S,
    Memory,
    Observed,
    ReplicaPolicy,
    decide,
    wanted_replicas,
)
from lepton_ray.spec.autoscaling import PRESETS, AutoscalingSpec

_REPLICAS = st.integers(1, 100)
_LOADS = st.floats(0, 1e5)
_TIMES_MS = st.floats(0, 1e6)
_HEADROOMS = st.sampled_from([pace.headroom for pace in PRESETS.values()])


@given(_REPLICAS, _LOADS, _TIMES_MS, _TIMES_MS, _HEADROOMS)
def test_slower_answers_never_make_fewer_replicas(n: int, load: float, p95: float, other: float, room: float) -> None:
    fast, slow = sorted((p95, other))
    assert wanted_replicas(n, load, fast, 0.0, 100.0, room) <= wanted_replicas(n, load, slow, 0.0, 100.0, room) + 1e-9


@given(_REPLICAS, _LOADS, _LOADS, _TIMES_MS, _HEADROOMS)
def test_more_load_never_makes_fewer_replicas(n: int, load: float, other: float, p95: float, room: float) -> None:
    low, high = sorted((load, other))
    fewer, more = (wanted_replicas(n, one, p95, 0.0, 100.0, room) for one in (low, high))
    assert fewer <= more * (1 + 1e-9) + 1e-9


@given(_REPLICAS, _LOADS, _TIMES_MS, st.floats(-1, 1e6), _HEADROOMS)
def test_a_decision_is_bounded_and_of_the_right_sign(
    n: int, load: float, p95: float, growth: float, room: float
) -> None:
    wanted = wanted_replicas(n, load, p95, growth, 100.0, room)
    assert 0 <= wanted <= 8 * n
    if growth <= 0:
        assert wanted <= 2 * n
    if p95 > 100:
        assert wanted >= n
    elif p95 >= room * 100:
        assert wanted == n
    else:
        assert wanted <= n


@given(_REPLICAS, st.floats(0.1, 1e4), _HEADROOMS)
def test_idle_replicas_are_not_joined_by_more_however_slow_they_are(n: int, p95: float, room: float) -> None:
    """Who is slow without a queue stays slow beside others."""
    assert wanted_replicas(n, 0.1 * n, p95, 0.0, 100.0, room) <= n


def test_the_model_is_exact_for_a_queue_of_one_server_with_exponential_times() -> None:
    """Closed form: the time in the system is exponential with mean s / (1 - busy), and load = busy / (1 - busy)."""
    s_ms, rate, n = 10.0, 0.5, 10  # rate: of all, in services of one replica
    busy = rate / n
    p95, load = s_ms * np.log(20) / (1 - busy), n * busy / (1 - busy)
    target = 100.0
    may_be_busy = 1 - s_ms * np.log(20) / (0.75 * target)
    assert wanted_replicas(n, load, p95, 0.0, target, 0.75) == pytest.approx(rate / may_be_busy)


def test_the_rate_at_which_the_target_was_missed_is_remembered_and_forgotten() -> None:
    memory = Memory(replicas=2)
    missed, memory = decide(Observed(2, 10.0, 200.0, 150.0), memory, 100.0, 100.0, 0.75)
    assert missed is not None
    assert missed > 2
    # As if two, even one, were enough: 19 ms a request and replica; 42 ms were missed with, which is not four times as much.
    calm = Observed(3, 1.0, 200.0, 20.0)
    _, memory = decide(calm, memory, 101.0, 100.0, 0.75)
    held, memory = decide(calm, memory, 200.0, 100.0, 0.75)
    assert held is not None
    assert held > 2, "two have failed at this rate"
    fewer, memory = decide(calm._replace(rate=100.0), memory, 210.0, 100.0, 0.75)
    assert fewer is not None
    assert fewer <= 2, "at half the rate they would not"
    cheaper, memory = decide(calm._replace(load=0.02), memory, 220.0, 100.0, 0.75)
    assert cheaper is not None
    assert cheaper <= 1, "other requests, whatever pauses of the machine make of their percentile"
    later, _ = decide(calm, memory, 1000.0, 100.0, 0.75)
    assert later is not None
    assert later <= 2


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    _, memory = decide(Observed(2, 10.0, 200.0, 900.0), Memory(2), 1e9, 100.0, 0.75)
    for step in range(4):
        wanted, memory = decide(Observed(2, 10.0, 200.0, 900.0), memory, 1e9 - 3600 + 10 * step, 100.0, 0.75)
    assert wanted is not None
    assert wanted > 2


def test_nothing_is_decided_on_what_other_replicas_did() -> None:
    wanted, memory = decide(Observed(3, 50.0, 200.0, 900.0), Memory(2), 10.0, 100.0, 0.75)
    assert wanted is None
    assert decide(Observed(3, 50.0, 200.0, 900.0), memory, 10.0 + 2 * WINDOW_S, 100.0, 0.75)[0] == 6.0


@dataclass
class Simulation:
    """Replicas as queues of one server each; a request goes to any of them. Time in seconds; a step is one second."""

    service_s: Callable[[random.Random], float]
    rng: random.Random = field(default_factory=lambda: random.Random(3))
    free_at: list[float] = field(default_factory=lambda: [0.0])
    starting: list[float] = field(default_factory=list)
    """When those that start are ready."""
    recent: list[tuple[float, float]] = field(default_factory=list)
    """When each came, and when it was answered, of those that were not answered a window ago."""
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """When each was answered, and how long it took."""
    course: list[int] = field(default_factory=list)
    """Replicas at each second."""
    state: dict[str, Any] = field(default_factory=dict)
    want_more_since: float | None = None
    want_fewer_since: float | None = None

    def run(self, seconds: int, rate: float, policy: ReplicaPolicy, most: int = 40) -> None:
        begin = len(self.course)
        for now in range(begin, begin + seconds):
            self.free_at += [ready for ready in self.starting if ready <= now]
            self.starting = [ready for ready in self.starting if ready > now]
            at = now + self.rng.expovariate(rate) if rate else now + 1.0
            while at < now + 1:
                one = self.rng.randrange(len(self.free_at))
                end = self.free_at[one] = max(at, self.free_at[one]) + self.service_s(self.rng)
                self.recent.append((at, end))
                self.latencies.append((end, end - at))
                at += self.rng.expovariate(rate)
            self.course.append(len(self.free_at))
            self.follow(now + 1.0, policy, most)

    def p95(self, begin: float, end: float) -> float:
        return float(np.quantile([took for done, took in self.latencies if begin < done <= end], 0.95))

    def follow(self, now: float, policy: ReplicaPolicy, most: int) -> None:
        window = max(0.0, now - WINDOW_S)
        self.recent = [one for one in self.recent if one[1] > window]
        answered = [end - came for came, end in self.recent if end <= now]
        load = sum(min(end, now) - max(came, window) for came, end in self.recent) / (now - window)
        p95 = float(np.quantile(answered, 0.95)) * 1000 if answered else 0.0
        target = len(self.free_at) + len(self.starting)
        context = SimpleNamespace(
            current_num_replicas=len(self.free_at),
            target_num_replicas=target,
            total_num_requests=0.0,
            aggregated_metrics={LISTENER_REQUESTS: {"all": load}},
            raw_metrics={
                ANSWERED: {"all": [SimpleNamespace(value=len(answered))]},
                P95_MS: {"all": [SimpleNamespace(value=p95)]},
            },
            policy_state=self.state,
            current_time=now,
            config=SimpleNamespace(get_target_ongoing_requests=lambda: 4.0),
        )
        wanted, self.state = policy(context)
        self.scale(now, target, min(most, max(1, int(np.ceil(wanted)))))

    def scale(self, now: float, target: int, wanted: int) -> None:
        """As Ray Serve does: after a delay in which it was wanted all the time; a replica takes eight seconds to start."""
        self.want_more_since = (self.want_more_since or now) if wanted > target else None
        self.want_fewer_since = (self.want_fewer_since or now) if wanted < target else None
        if self.want_more_since is not None and now - self.want_more_since >= 2:
            self.starting += [now + 8.0] * (wanted - target)
        if self.want_fewer_since is not None and now - self.want_fewer_since >= 20:
            self.want_fewer_since = None
            self.starting.clear()
            self.free_at = self.free_at[: max(wanted, 1)]


_SERVICES: dict[str, Callable[[random.Random], float]] = {
    "exponential": lambda rng: rng.expovariate(1 / 0.05),
    "constant": lambda rng: 0.05,
    "few long ones": lambda rng: 0.25 if rng.random() < 0.1 else 0.0275,
}
"""A mean of 50 ms each."""
_POLICY = ReplicaPolicy(target_p95_ms=500.0, headroom=0.75, max_ongoing_requests=64)


@pytest.mark.parametrize("service", _SERVICES)
def test_replicas_follow_a_step_of_load_up_and_down_and_come_to_rest(service: str) -> None:
    simulation = Simulation(_SERVICES[service])
    simulation.run(500, 80.0, _POLICY)  # four replicas' whole time
    course = np.array(simulation.course)
    assert course[:20].max() > 1, "a replica needs eight seconds to start"
    assert 5 <= course[-1] <= 12
    steps = np.diff(course[250:])
    assert (steps >= 0).all(), "one load, no coming and going"
    assert np.count_nonzero(steps) <= 1
    assert simulation.p95(250, 500) <= 0.55
    simulation.run(300, 12.0, _POLICY)  # six tenths of one replica's time
    assert simulation.course[-1] <= 3
    assert simulation.p95(650, 800) <= 0.55
    assert np.count_nonzero(np.diff(simulation.course[650:])) <= 1


def test_no_load_leaves_the_least() -> None:
    simulation = Simulation(_SERVICES["constant"])
    simulation.run(40, 80.0, _POLICY)
    assert simulation.course[-1] > 3
    simulation.run(200, 0.0, _POLICY)
    assert simulation.course[-1] == 1


def test_a_target_that_no_replica_can_keep_does_not_take_all_of_them() -> None:
    simulation = Simulation(_SERVICES["constant"])
    simulation.run(200, 4.0, ReplicaPolicy(target_p95_ms=5.0, headroom=0.75, max_ongoing_requests=64))
    assert max(simulation.course) <= 2


def _context(**facts: Any) -> Any:
    base = {
        "current_num_replicas": 2,
        "target_num_replicas": 3,
        "total_num_requests": 2.0,
        "aggregated_metrics": {LISTENER_REQUESTS: {"a": 10.0, "b": 4.0}},
        "raw_metrics": {},
        "policy_state": {},
        "current_time": 1000.0,
        "config": SimpleNamespace(get_target_ongoing_requests=lambda: 8.0),
    }
    return SimpleNamespace(**{**base, **facts})


def _points(*values: float) -> dict[str, Any]:
    return {str(index): [SimpleNamespace(value=-1.0), SimpleNamespace(value=v)] for index, v in enumerate(values)}


def test_the_policy_adds_what_comes_both_ways() -> None:
    policy = ReplicaPolicy(None, 0.75, 64)
    assert policy(_context())[0] == 2.0
    assert policy(_context(aggregated_metrics={}))[0] == 0.25
    assert policy(_context(aggregated_metrics=None, raw_metrics=None))[0] == 0.25
    assert policy(_context(current_num_replicas=0))[0] == 3


def test_a_replica_that_answers_now_and_then_stays() -> None:
    idle = {"total_num_requests": 0.0, "aggregated_metrics": {}}
    policy = ReplicaPolicy(None, 0.75, 64)
    assert policy(_context(**idle))[0] == 0.0
    assert policy(_context(**idle, raw_metrics={ANSWERED: _points(1.0)}))[0] == 1.0


def test_a_percentile_is_that_of_all_replicas_and_needs_enough_answers() -> None:
    policy = ReplicaPolicy(100.0, 0.75, 64)
    memory = {"memory": {"replicas": 2, "changed": 0.0}}
    few = {ANSWERED: _points(10.0, 9.0), P95_MS: _points(900.0, 900.0)}
    assert policy(_context(raw_metrics=few, policy_state=memory))[0] == 2.0, "the load's"
    slow = {ANSWERED: _points(300.0, 100.0), P95_MS: _points(100.0, 300.0)}
    assert policy(_context(raw_metrics=slow, policy_state=memory))[0] == 3.0
    waiting = _context(raw_metrics=slow, policy_state=memory, total_num_requests=640.0)
    assert policy(waiting)[0] == 10.0, "what waits for a place in a replica is measured by none"


@given(st.lists(st.floats(2e-5, 900), min_size=1, max_size=200), st.integers(1, 4))
def test_the_recent_percentile_is_at_most_a_tenth_too_long(seconds: list[float], num_slots: int) -> None:
    recent = RecentLatency(num_slots)
    recent.add(seconds)
    total, p95 = recent.read()
    assert total == len(seconds)
    exact = float(np.quantile(seconds, 0.95, method="inverted_cdf"))
    assert exact <= p95 <= exact * 1.1001
    for _ in range(num_slots - 1):
        assert recent.read()[0] == total
    assert recent.read() == (0, 0.0)


def test_presets_differ_in_the_order_that_their_names_say() -> None:
    latency, balanced, cost = (AutoscalingSpec.model_validate({"preset": name}).pace() for name in PRESETS)
    for name in ("target_ongoing_requests", "upscale_delay_s", "headroom"):
        assert getattr(latency, name) < getattr(balanced, name) < getattr(cost, name)
    assert latency.downscale_delay_s > balanced.downscale_delay_s > cost.downscale_delay_s
    given_one = AutoscalingSpec(preset="cost", upscale_delay_s=0.5).pace()
    assert (given_one.upscale_delay_s, given_one.headroom) == (0.5, cost.headroom)
    with pytest.raises(ValidationError, match=r"min_replicas must be at most max_replicas \(2\), got 3"):
        AutoscalingSpec(min_replicas=3)


def test_parts_of_jobs_are_no_answers_that_a_target_is_held_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made as large as they may be: more replicas would be as slow."""
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(on_ray.serve_metrics, kind, lambda *facts: SimpleNamespace(observe=lambda *observed: None))
    recent = RecentLatency(5)
    meter = on_ray.RequestMeters("m", recent).of("v")
    for _ in range(30):
        meter.observe("job_parts", 200, [0.1], None)
        meter.observe("records", 200, [0.001], None)
    answered, p95_s = recent.read()
    assert answered == 30
    assert p95_s < 0.01
