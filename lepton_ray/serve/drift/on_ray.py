"""The drift of a replica's packages as metrics of Ray."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from ray.serve import metrics as serve_metrics

from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.reference import Drift, read_reference
from lepton_ray.core import metrics as catalogue
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.metrics import Metric
from lepton_ray.serve.drift.window import Shown, Watch, WatchedPredictor, clock
from lepton_ray.spec.monitor import MonitorSpec

_TICK_S = 1.0

_logger = logging.getLogger("lepton_ray.serve")


@dataclass
class _Watched:
    watch: Watch
    shown: tuple[Shown, Shown]


class DriftMeters:
    """Watches the packages that a replica has, and exports how far they have drifted. Without a spec it does nothing."""

    def __init__(self, model: str, spec: MonitorSpec | None) -> None:
        self._model = model
        self._spec = spec
        self._watched: dict[str, _Watched | None] = {}
        """By version; None has no reference."""
        self._gauges = {metric.name: _gauge(metric) for metric in (*_OF_COLUMNS, catalogue.DRIFT_ROWS)} if spec else {}

    def watch(self, predictor: Predictor) -> Predictor:
        """Return a predictor whose rows are counted, or the same if there is nothing to hold them against."""
        if self._spec is None:
            return predictor
        version = predictor.package.version
        if version not in self._watched:
            self._watched[version] = self._begin(predictor, self._spec)
        watched = self._watched[version]
        return predictor if watched is None else WatchedPredictor(predictor, watched.watch)

    def _begin(self, predictor: Predictor, spec: MonitorSpec) -> _Watched | None:
        try:
            reference = read_reference(predictor.package)
        except ArtifactError as error:
            _logger.warning("drift is not watched: %s", error)
            return None
        sides = Shown("input", spec.max_features), Shown("output", spec.max_features)
        return _Watched(Watch(reference, spec, clock()), sides)

    async def follow(self) -> None:
        """Count what has come, once a second for ever, in a thread: it takes some milliseconds."""
        while self._spec is not None:
            await asyncio.sleep(_TICK_S)
            await asyncio.to_thread(self.tick)

    def tick(self) -> None:
        """Count what has come, and export the windows that have ended."""
        for version, watched in list(self._watched.items()):
            drifts = watched.watch.tick(clock()) if watched is not None else None
            if watched is not None and drifts:
                self._export({"model": self._model, "version": version}, watched, drifts)

    def _export(self, labels: dict[str, str], watched: _Watched, drifts: list[Drift]) -> None:
        self._gauges[catalogue.DRIFT_ROWS.name].set(drifts[0].rows, labels)
        for side, shown in zip(("input", "output"), watched.shown, strict=True):
            chosen, gone = shown.choose(drifts)
            for metric, field in _OF_COLUMNS.items():
                gauge = self._gauges[metric.name]
                for drift in chosen:
                    gauge.set(getattr(drift, field), {**labels, "side": side, "feature": drift.name})
                for name in gone:
                    gauge.set(0.0, {**labels, "side": side, "feature": name})


_OF_COLUMNS = {
    catalogue.DRIFT_PSI: "excess_psi",
    catalogue.DRIFT_JS: "js_distance",
    catalogue.DRIFT_UNSEEN: "excess_unseen",
    catalogue.DRIFT_MISSING: "excess_missing",
}
"""The field of ``Drift`` that each metric of a column is."""


def _gauge(metric: Metric) -> Any:
    return serve_metrics.Gauge(metric.name, metric.description, metric.labels)
