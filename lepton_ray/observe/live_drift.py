"""The drift that the replicas of a model have told of their last windows, as Prometheus has it: the mean over them, which alerts judge."""

import json
import urllib.parse
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from lepton_ray.artifacts.reference import METRIC_FIELDS, Excess, Side
from lepton_ray.core.errors import LeptonError
from lepton_ray.core.text import without_credentials
from lepton_ray.core.web import get_json

_FIELD_OF_NAME = {f"ray_{metric.name}": name for metric, name in METRIC_FIELDS.items()}


@dataclass(frozen=True, kw_only=True)
class LiveDrift(Excess):
    """A column of a version."""

    version: str

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "alarms": list(self.alarms)}


def ask_prometheus(url: str, model: str) -> list[LiveDrift]:
    """Return the columns of a model's versions that replicas tell of now, the farthest from the reference first.

    Raises:
        LeptonError: If Prometheus does not answer, or has nothing of the model.
    """
    names = "|".join(_FIELD_OF_NAME)
    query = f'avg by (__name__, version, side, feature) ({{__name__=~"{names}", model={json.dumps(model)}}})'
    answer = get_json(f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    try:
        found = None if isinstance(answer, str) else answer["data"]["result"]
        columns: dict[tuple[str, Side, str], dict[str, Any]] = defaultdict(dict)
        for one in found or ():
            labels = one["metric"]
            columns[labels["version"], labels["side"], labels["feature"]][_FIELD_OF_NAME[labels["__name__"]]] = float(
                one["value"][1]
            )
    except (KeyError, TypeError, ValueError, IndexError):
        found, answer = None, "something else"
    if found is None:
        raise LeptonError(
            f"Prometheus must answer at {without_credentials(url)}, got {answer}. Check --prometheus, or start it with "
            "cluster/observability/prometheus.yml"
        )
    if not columns:
        raise LeptonError(
            f"Prometheus must have windows of {model!r}, got none. Check the name; a replica tells of its first window when it has "
            "serve.monitor.min_rows"
        )
    drifts = [LiveDrift(version=of[0], side=of[1], name=of[2], **values) for of, values in columns.items()]
    return sorted(drifts, key=lambda one: -one.size)
