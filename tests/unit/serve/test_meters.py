"""The latency that a replica exports is the histogram that Prometheus' own client would make of it."""

from typing import Any

import prometheus_client
import pytest

from lepton_ray.core.metrics import LATENCY
from lepton_ray.serve.meters import on_ray
from lepton_ray.serve.meters.on_ray import RequestMeters

_LATENCIES_S = [0.0, 1e-4, 0.0005, 0.00050001, 0.001, 0.0049, 0.02, 0.3, 4.9999, 5.0, 5.0001, 70.0]
Series = tuple[str, frozenset[tuple[str, str]]]


class _Registry:
    """In place of Ray Serve's metrics: what was told last, and how often."""

    def __init__(self) -> None:
        self.told: dict[Series, float] = {}
        self.times = 0

    def Gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Any:  # noqa: N802
        return _Gauge(self, name, labels)

    Counter = Gauge

    def of_latency(self) -> dict[Series, float]:
        return {series: value for series, value in self.told.items() if series[0].startswith(LATENCY.name)}


class _Gauge:
    def __init__(self, registry: _Registry, name: str, labels: tuple[str, ...]) -> None:
        self._registry, self._name, self._labels = registry, name, labels

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self._labels)
        self._registry.told[self._name, frozenset(tags.items())] = value
        self._registry.times += self._name.startswith(LATENCY.name)

    inc = set


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> _Registry:
    registry = _Registry()
    monkeypatch.setattr(on_ray, "serve_metrics", registry)
    return registry


def test_the_latency_is_a_histogram(registry: _Registry) -> None:
    expected = prometheus_client.Histogram(
        LATENCY.name, LATENCY.description, LATENCY.labels, buckets=LATENCY.buckets, registry=None
    )
    meters = RequestMeters("demo", None)
    for number, seconds in enumerate(_LATENCIES_S * 2):
        version, protocol = ("a", "records") if number % 3 else ("b", "oip")
        meters.of(version).observe(protocol, 200, [seconds], None)
        expected.labels("demo", version, protocol).observe(seconds * 1000)
        meters.flush()
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for metric in expected.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    assert registry.of_latency() == pytest.approx(samples)


def test_what_has_not_changed_is_told_before_ray_forgets_it(registry: _Registry) -> None:
    """Ray drops a gauge that was not set for 20 s; a flush is a second, and one of many models must not take it."""
    meters = RequestMeters("demo", None)
    for number in range(20):
        meters.of_model(f"model {number}", "a").observe("records", 200, [0.001], None)
    meters.flush()
    everything, most = len(registry.of_latency()), 0
    assert everything == 20 * (len(LATENCY.buckets) + 3)
    for _ in range(2):
        registry.told.clear()
        for _ in range(10):
            before = registry.times
            meters.flush()
            most = max(most, registry.times - before)
        assert len(registry.of_latency()) == everything
    assert most <= everything / 10
