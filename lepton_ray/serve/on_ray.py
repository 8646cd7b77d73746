"""The application on Ray Serve: replicas that hold a package and answer at a listener of their own and at Ray Serve's HTTP.

Ray Serve owns placement, health, lifecycle and scaling; the requests at the listener it does not see, so a replica reports
them (``record_autoscaling_stats``), probes its listener (``check_health``) and drains it before it ends (``__del__``).
"""

import asyncio
import gc
import hashlib
import logging
import re
import ssl
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import metrics as serve_metrics
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions
from ray.serve.exceptions import RayServeException

from lepton_ray import __version__
from lepton_ray.core import metrics as catalogue
from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError, LeptonError
from lepton_ray.core.files import sha256_json
from lepton_ray.core.metrics import Metric
from lepton_ray.engine.faults import last_line
from lepton_ray.engine.session import free_port
from lepton_ray.serve.access import AccessLog
from lepton_ray.serve.connection import ConnectionLimits
from lepton_ray.serve.endpoint import HTTP_OK, Outputs, ProtocolName
from lepton_ray.serve.guard import build_guard
from lepton_ray.serve.http import AsgiApp, asgi_app
from lepton_ray.serve.listener import Listener
from lepton_ray.serve.rate.on_ray import Shares
from lepton_ray.serve.rollout.holding import Holding, Serving
from lepton_ray.serve.rollout.on_ray import DEPLOYMENT, Reporter, end_keeper, read_plan
from lepton_ray.serve.rollout.tally import Tally
from lepton_ray.serve.sockets import SharedSocket, share
from lepton_ray.serve.tls import local_file, watch_certificate
from lepton_ray.spec.release import AuthSpec, RateLimitSpec, ServeSpec, TlsSpec, is_loopback
from lepton_ray.spec.rollout import ModelRef, TrafficPlan

LISTENER_REQUESTS = "listener_requests"
"""Name of the statistic: requests under way at a replica's listener, on average."""
_SHUTDOWN_S, _DRAIN_S = 20.0, 15.0  # Ray Serve waits for its own requests first, for 2 s at least
_SURGE_PERCENT = 20  # rounded up to whole replicas: the new one is there before the old one leaves
_ENTRANCE_TIMEOUT_S = 30.0
_FLUSH_S = 1.0
_GC_OBJECTS = 50_000  # new ones between collections: an image in JSON is a thousand lists, and Python's own 700 means two a request
_EVERY_INTERFACE = ("0.0.0.0", "::", "")  # noqa: S104  compared, not bound
_MAX_PORT = 65535

_logger = logging.getLogger("lepton_ray.serve")


@dataclass(frozen=True)
class Listening:
    """Where each replica listens, on its node."""

    host: str
    port: int
    limits: ConnectionLimits


@dataclass(frozen=True)
class Entrance:
    """How a replica can be reached without Ray Serve's HTTP; without an address, why not."""

    address: tuple[str, int] | None
    node_id: str
    node_ip: str
    reason: str = ""
    scheme: str = "http"
    problem: str = ""
    """Why the replica does not answer with what it should."""


@dataclass(frozen=True)
class Addresses:
    """Where a running application answers."""

    url: str
    """The fastest way in that this machine can use."""
    through: str
    """Which one that is, and the other one or why there is none."""


@dataclass(frozen=True)
class Served:
    """What all replicas of an application have in common, whichever packages they hold."""

    serving: Serving
    listening: Listening | None
    auth: AuthSpec | None
    rate_limit: RateLimitSpec | None
    tls: TlsSpec | None
    access_log: bool


class _RayMeters:
    """Exports the catalogue's metrics through Ray, of all versions that a replica has.

    One update of a Ray counter takes as long as a fifth of a request, so counts are kept until they are flushed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
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
        self._by_version: dict[str, _RayMeter] = {}
        self._differing_rows: Counter[str] = Counter()

    def of(self, version: str) -> "_RayMeter":
        """Return the meter of one version."""
        return self._by_version.setdefault(version, _RayMeter(self, version))

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

    def tell_rollout(self, plan: TrafficPlan, before: TrafficPlan | None) -> None:
        """Export the share that a plan gives to its challenger, and that the one before has none."""
        for told, fraction in ((before, 0.0), (plan, plan.share)):
            if told is not None and told.challenger is not None:
                labels = {"model": self.name, "version": told.challenger.version, "mode": told.mode or ""}
                self.share.set(fraction, labels)

    def tell_differences(self, tallies: dict[str, Tally]) -> None:
        """Export how many rows shadows have answered otherwise."""
        for version, tally in tallies.items():
            if (more := tally.differing_rows - self._differing_rows[version]) > 0:
                self.differences.inc(more, {"model": self.name, "version": version})
            self._differing_rows[version] = tally.differing_rows


class _RayMeter:
    """Of one version."""

    def __init__(self, all_versions: _RayMeters, version: str) -> None:
        self._to = all_versions
        self._model = {"model": all_versions.name, "version": version}
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


@serve.ingress()
class ModelReplica:
    """Holds what its plan names. Ready once that is warm, has answered its golden records, and the replica listens."""

    _shared: SharedSocket | None = None
    _tasks: "tuple[asyncio.Task[None], ...]" = ()

    def __init__(self, served: Served) -> None:
        gc.set_threshold(_GC_OBJECTS)  # what is there at the start, Ray Serve leaves out of all collections
        self._listening = served.listening
        self._tls = served.tls
        self._reason = "it is off"
        self._meters = _RayMeters(served.serving.name)
        self._access_log = AccessLog(_access_log_file()) if served.access_log else None
        self._guard, self._tokens = build_guard(served.auth, served.rate_limit, self._meters.count_failure)
        self._holding = Holding(served.serving, self._meters.of, self._guard)

    async def __serve_build_asgi_app__(self) -> AsgiApp:
        """Return the application for Ray Serve's HTTP, in the loop of the replica."""
        return asgi_app(self._holding.front, self._access_log)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Follow a plan: Ray Serve calls this before the replica is ready, and whenever the plan changes."""
        plan, before = TrafficPlan.model_validate(user_config), self._holding.plan
        await self._holding.follow(plan)
        self._meters.tell_rollout(plan, before)
        if not self._tasks:
            await self._start_tasks()
            if self._listening is not None:
                await self._start_listener(self._listening)

    async def prepare(self, ref: dict[str, Any]) -> dict[str, Any]:
        """Open a package that may become the challenger; returns it with its digest, or ``problem``."""
        try:
            prepared = await self._holding.prepare(ModelRef.model_validate(ref))
        except LeptonError as error:
            return {"problem": str(error)}
        return prepared.model_dump()

    async def _tick_for_ever(self) -> None:
        """Export metrics, and report to the rollout's keeper while there is one."""
        reporter = Reporter(serve.get_replica_context())
        while True:
            await asyncio.sleep(_FLUSH_S)
            self._meters.flush()
            if self._access_log is not None:
                self._meters.tell_unlogged(self._access_log.dropped)
            plan = self._holding.plan
            if plan is not None and plan.challenger is not None:
                tallies = self._holding.tallies()
                self._meters.tell_differences(tallies)
                await reporter.report(plan, tallies, self._holding.problem)

    async def _start_tasks(self) -> None:
        followed = [self._tick_for_ever()]
        if self._access_log is not None:
            followed.append(self._access_log.follow())
        if self._tokens is not None:
            followed.append(self._tokens.follow())
        if self._guard is not None:
            context = serve.get_replica_context()
            shares = Shares(self._guard, context.app_name, context.replica_tag)
            if self._guard.purses:
                await shares.begin()
            followed.append(shares.follow())
        self._tasks = tuple(asyncio.create_task(one) for one in followed)

    async def _start_listener(self, listening: Listening) -> None:
        self._listener = Listener(self._holding.front, listening.limits, self._access_log)
        if self._tls is not None:
            followed = watch_certificate(self._tls, self._use_certificate, self._meters.count_failure)
            self._tasks += (asyncio.create_task(followed.follow()),)
        try:
            shared = await asyncio.to_thread(share, _meeting_place(listening), listening.host, listening.port)
        except OSError as error:
            self._reason = f"{listening.host}:{listening.port} must be free on the replica's node, got: {error}"
            _logger.warning("no listener: %s", self._reason)
            return
        self._listener.start(shared.listening)
        shared.give_to_others()
        self._shared = shared
        _logger.info("listening at %s:%d", listening.host, listening.port)
        if self._tokens is None and (warning := warn_of_openness(listening.host)):
            _logger.warning("%s", warning)

    def _use_certificate(self, context: ssl.SSLContext) -> None:
        self._listener.tls = context

    async def entrance(self) -> Entrance:
        """Say where the listener is."""
        node_id, node_ip = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        if self._listening is None or self._shared is None:
            return Entrance(None, node_id, node_ip, self._reason, problem=self._holding.problem)
        address = (self._listening.host, self._listening.port)
        scheme = "http" if self._tls is None else "https"
        return Entrance(address, node_id, node_ip, scheme=scheme, problem=self._holding.problem)

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Answer one POST of the cluster's own; returns status and body."""
        response = await asyncio.to_thread(self._holding.front.champion.ask, "POST", path, body)
        return response.code, response.body

    async def check_health(self) -> None:
        """Ask the listener as a client would: it answers in the loop that answers everything else."""
        if self._shared is not None:
            await self._listener.probe()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell the controller what it does not see."""
        return {LISTENER_REQUESTS: 0.0 if self._shared is None else self._listener.mean_under_way()}

    async def __del__(self) -> None:
        """Leave without a lost request: the other replicas of the node have the same socket."""
        if not self._tasks:  # it has never been ready
            return
        shared, self._shared = self._shared, None
        if shared is not None:
            await self._listener.drain(_DRAIN_S)
            shared.close()
        self._holding.close()
        if self._access_log is not None:
            await self._access_log.flush()
        for task in self._tasks:
            task.cancel()
        self._meters.flush()


def _meeting_place(listening: Listening) -> Path:
    """Folder in which the replicas of one application on this node find each other."""
    context = ray.get_runtime_context()
    key = f"{serve.get_replica_context().app_name} {listening.host} {listening.port}"
    name = hashlib.sha256(key.encode()).hexdigest()[:8]  # short: the path of a Unix socket has 107 bytes at most
    return Path(context.get_temp_dir(), context.get_session_name(), f"lr{name}")


def _access_log_file() -> Path:
    """Where Ray's dashboard looks for logs of Serve, and a name that no other replica has."""
    context, replica = ray.get_runtime_context(), serve.get_replica_context()
    name = re.sub(r"[^\w.-]", "_", f"access_{replica.app_name}_{replica.replica_tag}.log")
    return Path(context.get_temp_dir(), context.get_session_name(), "logs", "serve", name)


def follow_requests(context: Any) -> tuple[float, dict[str, Any]]:
    """Return how many replicas the requests under way need, at the listeners and at Ray Serve's HTTP alike.

    Ray Serve runs this in its controller, pickled by value; it applies bounds and delays itself.
    """
    if context.current_num_replicas == 0:
        return context.target_num_replicas, {}
    direct = sum((context.aggregated_metrics or {}).get(LISTENER_REQUESTS, {}).values())
    return (context.total_num_requests + direct) / context.config.get_target_ongoing_requests(), {}


def warn_of_openness(host: str) -> str:
    """Return what to say of a host that answers everybody; empty if only this machine reaches it."""
    if is_loopback(host):
        return ""
    return f"everybody who can reach {host or 'this machine'} is answered; serve.auth asks for a token"


def listen_at(spec: ServeSpec) -> Listening | None:
    """Return where the replicas of an application listen."""
    listener = spec.listener
    if listener is None:
        return None
    port = listener.port if listener.port is not None else spec.port and spec.port + 1
    limits = ConnectionLimits(
        listener.max_connections, listener.receive_timeout_s, listener.idle_timeout_s, listener.connection_age_s
    )
    return Listening(listener.host or spec.host, port if 0 < port <= _MAX_PORT else free_port(), limits)


def build_application(served: Served, plan: TrafficPlan, spec: ServeSpec) -> Any:
    """Return the Serve application, not yet deployed.

    Its version is that of the settings: where they stay, an update changes the plan of the replicas that are there, and Ray
    Serve 2.60 would otherwise replace them.
    """
    scaling = spec.autoscaling
    deployment = serve.deployment(
        ModelReplica,
        name=DEPLOYMENT,
        user_config=plan.model_dump(mode="json"),
        ray_actor_options={"num_cpus": spec.cpus_per_replica},
        max_ongoing_requests=spec.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        max_surge_percent=_SURGE_PERCENT,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            policy=AutoscalingPolicy(policy_function=follow_requests),
        ),
    )
    return deployment.options(version=_version_of(served), _internal=True).bind(served)


def _version_of(served: Served) -> str:
    serving = served.serving
    what = serving.open_model
    facts = {**vars(serving), "open_model": f"{what.__module__}.{what.__qualname__}", "limits": asdict(serving.limits)}
    listening = served.listening and asdict(served.listening)
    sections = [one and one.model_dump(mode="json") for one in (served.auth, served.rate_limit, served.tls)]
    rest = {"sections": sections, "access_log": served.access_log}
    return sha256_json({"code": __version__, "serving": facts, "listening": listening, **rest})


def run(application: Any, name: str, spec: ServeSpec) -> Addresses:
    """Deploy an application in the connected cluster, wait until it is ready and return where it answers.

    Raises:
        EngineError: If it does not become ready.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if is_running(name) and (running := read_plan(name)) is not None and running.challenger is not None:
        rule = "must have no rollout under way while another package is deployed"
        raise EngineError(
            f"serve: the application {name!r} {rule}, got one of {running.challenger.version}. "
            f"Run lepton-ray rollout promote {name}, or abort {name}"
        )
    try:
        serve.start(http_options=HTTPOptions(host=spec.host, port=spec.port or free_port(), **_tls_options(spec.tls)))
        handle = serve.run(application, name=name, route_prefix=spec.route_prefix)
        entrance = handle.entrance.remote().result(timeout_s=_ENTRANCE_TIMEOUT_S)
    except (RayError, RayServeException, RuntimeError, ValueError, OSError) as error:
        place = f"{spec.host}:{spec.port}"
        raise EngineError(
            f"serve: the application {name!r} must start at {place}, got: {last_line(error)}. "
            "If the port is in use, choose another, or 0 for a free one",
            retryable=True,
        ) from error
    if entrance.problem:
        raise EngineError(f"serve: the replicas of {name!r} must answer with the package, but {entrance.problem}")
    options = serve.context._get_global_client().http_config  # Ray 2.60 has no public way to ask for the port in use
    host = "127.0.0.1" if options.host in (*_EVERY_INTERFACE, None) else options.host
    scheme = "https" if options.ssl_certfile and not settings.serve_uses_haproxy() else "http"
    standard = f"{scheme}://{host}:{options.port}{spec.route_prefix.rstrip('/')}"
    at = choose_address(entrance, standard, ray.get_runtime_context().get_node_id())
    hosts = (spec.host, *((spec.listener.host,) if spec.listener and spec.listener.host else ()))
    warnings = [warning for one in hosts if spec.auth is None and (warning := warn_of_openness(one))]
    return Addresses(at.url, "; ".join([at.through, *warnings[-1:]]))


def _tls_options(tls: TlsSpec | None) -> dict[str, str]:
    if tls is None:
        return {}
    return {"ssl_certfile": local_file(tls.certificate_file), "ssl_keyfile": local_file(tls.key_file)}


def ask(name: str, path: str, body: bytes) -> bytes:
    """POST to an application through Ray, where neither a token nor a certificate is asked for, and return the answer's body.

    Raises:
        EngineError: If there is none, or its status is not 200.
    """
    try:
        code, answer = serve.get_app_handle(name).ask.remote(path, body).result(timeout_s=_ENTRANCE_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError) as error:
        raise EngineError(f"{name} must answer {path}, got: {last_line(error)}", retryable=True) from error
    if code != HTTP_OK:
        raise EngineError(f"{name} must answer {path}, got status {code}: {answer[:500].decode(errors='replace')}")
    return bytes(answer)


def choose_address(entrance: Entrance, standard: str, node_id: str) -> Addresses:
    """Return the listener's address if the node ``node_id`` can reach it, else that of Ray Serve's HTTP."""
    own = f"Ray Serve's {'HAProxy' if settings.serve_uses_haproxy() else 'proxy'}"
    if entrance.address is None:
        return Addresses(standard, f"{own}; the replicas' listener does not answer: {entrance.reason}")
    host, port = entrance.address
    is_here = entrance.node_id == node_id
    if host in _EVERY_INTERFACE:
        host = "127.0.0.1" if is_here else entrance.node_ip
    elif is_loopback(host) and not is_here:
        return Addresses(standard, f"{own}; the replicas' listener answers only on its node, at {host}:{port}")
    url = f"{entrance.scheme}://[{host}]:{port}" if ":" in host else f"{entrance.scheme}://{host}:{port}"
    return Addresses(url, f"the replicas' listener; {own} is at {standard}")


def is_running(name: str) -> bool:
    """Whether the cluster has the application already."""
    return name in serve.status().applications


def stop(name: str) -> None:
    """Remove an application; without any left, Serve stops too."""
    serve.delete(name)
    end_keeper(name)
    if not serve.status().applications:
        serve.shutdown()
