"""The catalogue's metrics as Ray exports them from a driver, a task or an actor.

Processes tell their metrics apart by the label ``WorkerId`` that Ray adds; the metrics of a process go with it.
"""

from ray.util import metrics

from lepton_ray.core.metrics import Metric


def counter(metric: Metric) -> metrics.Counter:
    """Return a counter to ``inc``."""
    return metrics.Counter(metric.name, metric.description, metric.labels)


def gauge(metric: Metric) -> metrics.Gauge:
    """Return a gauge to ``set``."""
    return metrics.Gauge(metric.name, metric.description, metric.labels)
