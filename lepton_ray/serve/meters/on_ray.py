"""The catalogue's metrics of requests, exported through Ray by the replica that answers them."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

from ray.serve import metrics as serve_metrics

from lepton_ray.core import metrics as catalogue
from lepton_ray.core.metrics import Metric
from lepton_ray.serve.endpoint import Outputs, ProtocolName
from lepton_ray.serve.latency import RecentLatency
from lepton_ray.serve.rollout.tally import Tally
from lepton_ray.spec.rollout import TrafficPlan


class RequestMeters:
    """Exports the catalogue's metrics through Ray, of all versions that a replica has.

    One update of a Ray counter takes as long as a fifth of a request, so counts are kept until they are flushed.
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
        share, latency = catalogue.ROLLOUT_SHARE, catalogue.LATENCY
        self.share = serve_metrics.Gauge(share.name, share.description, share.labels)
        self.latency = serve_metrics.Histogram(latency.name, latency.description, list(latency.buckets), latency.labels)
        self._by_version: dict[tuple[str, str], _VersionMeter] = {}
        self._differing_rows: Counter[str] = Counter()
        self._shares: dict[str, tuple[float, dict[str, str]]] = {}
        """Told again and again: Ray 2.60 drops a gauge that is not set for 20 s."""

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
        for meter in list(self._by_version.values()):
            meter.flush()
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

    def observe(self, protocol_name: str, code: int, seconds: float, outputs: Outputs | None) -> None:
        """Count a request."""
        self._to.latency.observe(seconds * 1000, self._tags[protocol_name])
        labels = outputs["label"].tolist() if outputs is not None and "label" in outputs else ()
        with self._lock:
            self._counts.requests[protocol_name, code] += 1
            for label in labels:  # most often one
                self._counts.labels[label] += 1
            self._counts.rows += 0 if outputs is None else len(next(iter(outputs.values())))
            if (
                self._to.recent is not None and protocol_name != "job_parts"
            ):  # as large as they may take, whatever the load
                self._to.recent.add(seconds)

    def flush(self) -> None:
        """Hand the counts to Ray."""
        with self._lock:
            counts, self._counts = self._counts, _Counts()
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


def _counter(metric: Metric) -> Any:
    return serve_metrics.Counter(metric.name, metric.description, metric.labels)
