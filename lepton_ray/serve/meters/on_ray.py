"""The catalogue's metrics of requests, exported through Ray by the replica that answers them."""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, get_args

from ray.serve import metrics as serve_metrics

from lepton_ray.core import metrics as catalogue
from lepton_ray.core.metrics import Metric
from lepton_ray.serve.endpoint import Outputs, ProtocolName
from lepton_ray.serve.latency import RecentLatency
from lepton_ray.serve.rollout.tally import Tally
from lepton_ray.spec.rollout import TrafficPlan

_TOLD_AGAIN_FLUSHES = 10
_MS = 1000


class RequestMeters:
    """Exports the catalogue's metrics through Ray, of all versions that a replica has.

    One update of a Ray metric takes as long as a fifth of a request, so counts are kept until they are flushed. Those of the
    latency go out as a gauge for each bucket, under the names that Prometheus has for a histogram: Ray's own takes
    nothing but single values.
    """

    def __init__(self, name: str, recent: RecentLatency | None) -> None:
        self.name = name
        self.recent = recent
        self.requests = _counter(catalogue.REQUESTS)
        self.rows = _counter(catalogue.ROWS)
        self.predictions = _counter(catalogue.PREDICTIONS)
        self.differences = _counter(catalogue.SHADOW_DIFFERENCES)
        self._failures = _counter(catalogue.RELOAD_FAILURES)
        self._unlogged = _counter(catalogue.ACCESS_LOG_DROPPED)
        self._told_unlogged = 0
        share = catalogue.ROLLOUT_SHARE
        self.share = serve_metrics.Gauge(share.name, share.description, share.labels)
        self.latency = {part: _part_of_latency(part) for part in ("bucket", "sum", "count")}
        self._by_version: dict[tuple[str, str], _VersionMeter] = {}
        self._differing_rows: Counter[str] = Counter()
        self._shares: dict[str, tuple[float, dict[str, str]]] = {}
        """Told again and again: Ray 2.60 drops a gauge that is not set for 20 s."""
        self._flushes = 0

    def of(self, version: str) -> "_VersionMeter":
        """Return the meter of one version."""
        return self.of_model(self.name, version)

    def of_model(self, name: str, version: str) -> "_VersionMeter":
        """Return the meter of one version of a model."""
        return self._by_version.setdefault((name, version), _VersionMeter(self, name, version))

    def count_failure(self, what: str) -> None:
        """Count a changed file that could not be used."""
        self._failures.inc(1, {"model": self.name, "what": what})

    def tell_unlogged(self, total: int) -> None:
        """Export how many requests the access log has not in it."""
        if total > self._told_unlogged:
            self._unlogged.inc(total - self._told_unlogged, {"model": self.name})
        self._told_unlogged = total

    def flush(self) -> None:
        """Hand the counts to Ray."""
        self._flushes += 1
        for number, meter in enumerate(list(self._by_version.values())):
            meter.flush(tells_again=(self._flushes + number) % _TOLD_AGAIN_FLUSHES == 0)
        for fraction, labels in self._shares.values():
            self.share.set(fraction, labels)

    def tell_rollout(self, plan: TrafficPlan, before: TrafficPlan | None) -> None:
        """Export the share that a plan gives to its challenger, and that the one before has none."""
        for told, fraction in ((before, 0.0), (plan, plan.share)):
            if told is not None and told.challenger is not None:
                labels = {"model": self.name, "version": told.challenger.version, "mode": told.mode or ""}
                self._shares[told.challenger.version] = (fraction, labels)

    def tell_differences(self, tallies: dict[str, Tally]) -> None:
        """Export how many rows shadows have answered otherwise."""
        for version, tally in tallies.items():
            if (more := tally.differing_rows - self._differing_rows[version]) > 0:
                self.differences.inc(more, {"model": self.name, "version": version})
            self._differing_rows[version] = tally.differing_rows


class _VersionMeter:
    """Of one version of a model."""

    def __init__(self, all_versions: RequestMeters, name: str, version: str) -> None:
        self._to = all_versions
        self._model = {"model": name, "version": version}
        self._tags = {protocol: {**self._model, "protocol": protocol} for protocol in get_args(ProtocolName)}
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._latencies: defaultdict[str, _Latency] = defaultdict(_Latency)
        """By protocol, since the start."""

    def observe(self, protocol_name: str, code: int, seconds: Sequence[float], outputs: Outputs | None) -> None:
        """Count requests."""
        labels = outputs["label"].tolist() if outputs is not None and "label" in outputs else ()
        # parts of jobs are as large as they may be, whatever the load
        recent = None if protocol_name == "job_parts" else self._to.recent
        with self._lock:
            self._latencies[protocol_name].add(seconds)
            self._counts.requests[protocol_name, code] += len(seconds)
            self._counts.labels.update(labels)
            self._counts.rows += 0 if outputs is None else len(next(iter(outputs.values())))
            if recent is not None:
                recent.add(seconds)

    def flush(self, tells_again: bool) -> None:
        """Hand the counts to Ray; those of latency only if there are new ones, or they must be told again."""
        with self._lock:
            counts, self._counts = self._counts, _Counts()
            changed = {protocol_name for protocol_name, _ in counts.requests}
            told = [
                (self._tags[protocol_name], list(latency.tell()))
                for protocol_name, latency in self._latencies.items()
                if tells_again or protocol_name in changed
            ]
        for tags, values in told:
            for part, value, more in values:
                self._to.latency[part].set(value, {**tags, **more})
        for (protocol_name, code), count in counts.requests.items():
            self._to.requests.inc(count, {**self._tags[protocol_name], "code": str(code)})
        for label, count in counts.labels.items():
            self._to.predictions.inc(count, {**self._model, "label": label})
        if counts.rows:
            self._to.rows.inc(counts.rows, self._model)


@dataclass
class _Counts:
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    rows: int = 0


class _Latency:
    """A histogram in Prometheus' form."""

    __slots__ = ("_counts", "_sum_ms")

    def __init__(self) -> None:
        self._counts = [0] * (len(catalogue.LATENCY.buckets) + 1)
        self._sum_ms = 0.0

    def add(self, seconds: Sequence[float]) -> None:
        """Count requests."""
        for one in seconds:
            self._counts[bisect_left(catalogue.LATENCY.buckets, one * _MS)] += 1
        self._sum_ms += sum(seconds) * _MS

    def tell(self) -> Iterator[tuple[str, float, dict[str, str]]]:
        """Yield parts, their values, and the labels that tell them apart."""
        bounds = [*(str(float(bound)) for bound in catalogue.LATENCY.buckets), "+Inf"]
        for bound, count in zip(bounds, accumulate(self._counts), strict=True):
            yield "bucket", count, {"le": bound}
        yield "sum", self._sum_ms, {}
        yield "count", sum(self._counts), {}


def _part_of_latency(part: str) -> Any:
    metric = catalogue.LATENCY
    labels = (*metric.labels, "le") if part == "bucket" else metric.labels
    return serve_metrics.Gauge(f"{metric.name}_{part}", metric.description, labels)


def _counter(metric: Metric) -> Any:
    return serve_metrics.Counter(metric.name, metric.description, metric.labels)
