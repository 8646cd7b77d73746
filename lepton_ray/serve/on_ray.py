"""The application on Ray Serve: replicas that hold a package and answer through the HTTP application."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import metrics as serve_metrics
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.exceptions import RayServeException

from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.tables import empty_feeds
from lepton_ray.core import metrics as catalogue
from lepton_ray.core.errors import ArtifactError, EngineError
from lepton_ray.core.metrics import Metric
from lepton_ray.engine.faults import last_line
from lepton_ray.engine.session import free_port
from lepton_ray.serve.endpoint import Limits, Outputs
from lepton_ray.serve.http import build_http_app
from lepton_ray.spec.release import ServeSpec

DEPLOYMENT = "model"


@dataclass(frozen=True)
class Served:
    """Which package the replicas open; the digest makes sure that all of them have the same."""

    open_model: Callable[[], ModelPackage]
    """Called in each replica, on whatever machine it is."""
    digest: str
    name: str
    num_threads: int
    limits: Limits


class _RayMeter:
    """Exports the catalogue's metrics through Ray."""

    def __init__(self, name: str, version: str) -> None:
        self._model = {"model": name, "version": version}
        self._requests = serve_metrics.Counter(
            catalogue.REQUESTS.name, catalogue.REQUESTS.description, catalogue.REQUESTS.labels
        )
        self._rows = serve_metrics.Counter(catalogue.ROWS.name, catalogue.ROWS.description, catalogue.ROWS.labels)
        self._predictions = serve_metrics.Counter(
            catalogue.PREDICTIONS.name, catalogue.PREDICTIONS.description, catalogue.PREDICTIONS.labels
        )
        latency: Metric = catalogue.LATENCY
        self._latency = serve_metrics.Histogram(
            latency.name, latency.description, list(latency.buckets), latency.labels
        )

    def observe(self, protocol_name: str, code: int, seconds: float, outputs: Outputs | None) -> None:
        """Count a request."""
        tags = {**self._model, "protocol": protocol_name}
        self._requests.inc(1, {**tags, "code": str(code)})
        self._latency.observe(seconds * 1000, tags)
        if outputs is None:
            return
        self._rows.inc(len(next(iter(outputs.values()))), self._model)
        for label, count in Counter(outputs["label"].tolist() if "label" in outputs else ()).items():
            self._predictions.inc(count, {**self._model, "label": label})


@serve.ingress()
class ModelReplica:
    """Holds one package. Ready once it has answered a warm-up batch."""

    def __init__(self, served: Served) -> None:
        package = served.open_model()
        if package.digest != served.digest:
            raise ArtifactError(
                f"{package.path} must hold the package {served.digest[:12]}, got {package.version}. Deploy again"
            )
        self._served = served
        self._predictor = Predictor(package, served.num_threads)
        self._predictor.run(empty_feeds(package.signature, rows=1))

    def __serve_build_asgi_app__(self) -> Any:
        """Build the application in the replica."""
        meter = _RayMeter(self._served.name, self._predictor.package.version)
        return build_http_app(self._predictor, self._served.name, self._served.limits, meter)


def build_application(served: Served, spec: ServeSpec) -> Any:
    """Return the Serve application, not yet deployed."""
    scaling = spec.autoscaling
    deployment = serve.deployment(
        ModelReplica,
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": spec.cpus_per_replica},
        max_ongoing_requests=spec.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
        ),
    )
    return deployment.bind(served)


def run(application: Any, name: str, spec: ServeSpec) -> str:
    """Deploy an application in the connected cluster, wait until it is ready and return its URL.

    Raises:
        EngineError: If it does not become ready.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(http_options=HTTPOptions(host=spec.host, port=spec.port or free_port()))
        serve.run(application, name=name, route_prefix=spec.route_prefix)
    except (RayError, RayServeException, RuntimeError, ValueError, OSError) as error:
        place = f"{spec.host}:{spec.port}"
        raise EngineError(
            f"serve: the application {name!r} must start at {place}, got: {last_line(error)}. "
            "If the port is in use, choose another, or 0 for a free one",
            retryable=True,
        ) from error
    options = serve.context._get_global_client().http_config  # Ray 2.60 has no public way to ask for the port in use
    host = "127.0.0.1" if options.host in ("0.0.0.0", None) else options.host  # noqa: S104  compared, not bound
    return f"http://{host}:{options.port}{spec.route_prefix.rstrip('/')}"


def is_running(name: str) -> bool:
    """Whether the cluster has the application already."""
    return name in serve.status().applications


def stop(name: str) -> None:
    """Remove an application; without any left, Serve stops too."""
    serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()
