"""The drift of a replica's packages as metrics of Ray."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any
from weakref import ref

from ray.serve import metrics as serve_metrics

from lepton_ray.artifacts.predictor import AnyPredictor
from lepton_ray.artifacts.reference import METRIC_FIELDS, Drift, read_reference
from lepton_ray.core import metrics as catalogue
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.metrics import Metric
from lepton_ray.serve.drift.window import Watch, WatchedPredictor, choose, clock
from lepton_ray.spec.monitor import MonitorSpec

_TICK_S = 1.0

_logger = logging.getLogger("lepton_ray.serve")

_Told = tuple[Any, float, dict[str, str]]
"""A gauge, its value and its labels."""


class DriftMeters:
    """Watches the packages that a replica has, and exports how far they have drifted. Without a spec it does nothing."""

    def __init__(self, model: str, spec: MonitorSpec | None) -> None:
        self._model = model
        self._spec = spec
        self._watches: dict[str, ref[Watch]] = {}
        """By version; those are gone whose predictors are. (A weak dictionary cannot be looked through while another thread adds.)"""
        self._told: dict[str, list[_Told]] = {}
        """By version: what its last window came to."""
        self._gauges = (
            {metric.name: _gauge(metric) for metric in (*METRIC_FIELDS, catalogue.DRIFT_ROWS)} if spec else {}
        )

    def watch(self, predictor: AnyPredictor) -> AnyPredictor:
        """Return a predictor whose rows are counted, or the same if there is nothing to hold them against."""
        if self._spec is None:
            return predictor
        version = predictor.package.version
        known = self._watches.get(version)
        watch = (known and known()) or self._begin(predictor, self._spec)
        if watch is None:
            return predictor
        self._watches[version] = ref(watch)
        return WatchedPredictor(predictor, watch)

    def _begin(self, predictor: AnyPredictor, spec: MonitorSpec) -> Watch | None:
        try:
            return Watch(read_reference(predictor.package), spec, clock())
        except ArtifactError as error:
            _logger.warning("drift is not watched: %s", error)
            return None

    async def follow(self) -> None:
        """Tick once a second for ever, in a thread: it takes some milliseconds."""
        while self._spec is not None:
            await asyncio.sleep(_TICK_S)
            await asyncio.to_thread(self.tick)

    def tick(self) -> None:
        """Count what has come, and export what the last windows came to: Ray 2.60 drops a gauge that is not set for 20 s."""
        for version, known in list(self._watches.items()):
            if (watch := known()) is None:
                self._told.pop(version, None)
            elif (drifts := watch.tick(clock())) is not None:
                self._told[version] = list(self._tell(version, drifts))
        for told in self._told.values():
            for gauge, value, labels in told:
                gauge.set(value, labels)

    def _tell(self, version: str, drifts: list[Drift]) -> Iterator[_Told]:
        labels = {"model": self._model, "version": version}
        yield self._gauges[catalogue.DRIFT_ROWS.name], drifts[0].rows, labels
        most = self._spec.max_features if self._spec else 0
        for drift in choose(drifts, most):
            of_column = {**labels, "side": drift.side, "feature": drift.name}
            for metric, field in METRIC_FIELDS.items():
                yield self._gauges[metric.name], getattr(drift, field), of_column


def _gauge(metric: Metric) -> Any:
    return serve_metrics.Gauge(metric.name, metric.description, metric.labels)
