"""The meter's counts as metrics of the driver."""

from functools import cache
from typing import Any

from lepton_ray.core import metrics as catalogue
from lepton_ray.core.metrics import Metric
from lepton_ray.cost.meter import Meter
from lepton_ray.engine.meters import gauge


def export(meter: Meter) -> None:
    """Tell what the run has spent so far."""
    for stage, spent in meter.by_stage().items():
        _gauge(catalogue.COST_SECONDS).set(spent.seconds, {"stage": stage})
        if spent.usd is not None:
            _gauge(catalogue.COST_USD).set(spent.usd, {"stage": stage})
    if meter.rate is not None:
        _gauge(catalogue.COST_RATE).set(meter.rate)
    if (used := meter.used_fraction()) is not None:
        _gauge(catalogue.BUDGET_USED).set(used)


@cache
def _gauge(metric: Metric) -> Any:
    return gauge(metric)
