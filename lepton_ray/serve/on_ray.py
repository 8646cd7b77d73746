"""The application on Ray Serve: replicas that hold a package and answer at a listener of their own and at Ray Serve's HTTP.

Ray Serve owns placement, health, lifecycle and scaling; the requests at the listener it does not see, so a replica reports
them (``record_autoscaling_stats``), probes its listener (``check_health``) and drains it before it ends (``__del__``).
"""

import asyncio
import gc
import hashlib
import logging
import re
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
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
from lepton_ray.serve.drift.on_ray import DriftMeters
from lepton_ray.serve.endpoint import HTTP_OK, Outputs, ProtocolName
from lepton_ray.serve.exchange import ConnectionLimits
from lepton_ray.serve.grpc_connection import GrpcConnection
from lepton_ray.serve.guard import build_guard
from lepton_ray.serve.http import AsgiApp, asgi_app
from lepton_ray.serve.jobs.desk import Desk, Part, answer_part
from lepton_ray.serve.jobs.on_ray import KeeperLink, end_jobs
from lepton_ray.serve.latency import RecentLatency
from lepton_ray.serve.listener import Listener
from lepton_ray.serve.rate.on_ray import Shares
from lepton_ray.serve.rollout.holding import Holding, Serving, open_checked
from lepton_ray.serve.rollout.on_ray import DEPLOYMENT, Reporter, end_keeper, read_plan
from lepton_ray.serve.rollout.tally import Tally
from lepton_ray.serve.scaling import ANSWERED, LISTENER_REQUESTS, P95_MS, REPORT_S, WINDOW_S, ReplicaPolicy
from lepton_ray.serve.shelf import Shelf, take
from lepton_ray.serve.sockets import SharedSocket, share
from lepton_ray.serve.tls import local_file, watch_certificate
from lepton_ray.spec.monitor import MonitorSpec
from lepton_ray.spec.release import AuthSpec, JobsSpec, RateLimitSpec, ServeSpec, TlsSpec, is_loopback
from lepton_ray.spec.rollout import ModelRef, TrafficPlan

_SHUTDOWN_S, _DRAIN_S = 20.0, 15.0  # Ray Serve waits for its own requests first, for 2 s at least
_SURGE_PERCENT = 20  # rounded up to whole replicas: the new one is there before the old one leaves
_ENTRANCE_TIMEOUT_S = 30.0
_COLD_START_TIMEOUT_S = 180.0
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
    grpc_port: int | None = None


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
    grpc: str = ""
    """Where it answers gRPC, or why it does not; empty if nobody asked for it."""


@dataclass(frozen=True)
class Addresses:
    """Where a running application answers."""

    url: str
    """The fastest way in that this machine can use."""
    through: str
    """Which one that is, and the other one or why there is none."""


@dataclass(frozen=True)
class Shelving:
    """Further models, in memory while they are asked for."""

    packages: dict[str, ModelRef]
    memory_limit_mb: int


@dataclass(frozen=True)
class Served:
    """What all replicas of an application have in common, whichever packages they hold."""

    serving: Serving
    listening: Listening | None
    auth: AuthSpec | None
    rate_limit: RateLimitSpec | None
    tls: TlsSpec | None
    access_log: bool
    monitor: MonitorSpec | None = None
    has_latency: bool = False
    """Replicas report what they have answered, and how fast."""
    shelving: Shelving | None = None
    jobs: JobsSpec | None = None


class _RayMeters:
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
        self._by_version: dict[tuple[str, str], _RayMeter] = {}
        self._differing_rows: Counter[str] = Counter()
        self._shares: dict[str, tuple[float, dict[str, str]]] = {}
        """Told again and again: Ray 2.60 drops a gauge that is not set for 20 s."""

    def of(self, version: str) -> "_RayMeter":
        """Return the meter of one version."""
        return self.of_model(self.name, version)

    def of_model(self, name: str, version: str) -> "_RayMeter":
        """Return the meter of one version of a model."""
        return self._by_version.setdefault((name, version), _RayMeter(self, name, version))

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


class _RayMeter:
    """Of one version of a model."""

    def __init__(self, all_versions: _RayMeters, name: str, version: str) -> None:
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
            if self._to.recent is not None:
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


@serve.ingress()
class ModelReplica:
    """Holds what its plan names. Ready once that is warm, has answered its golden records, and the replica listens."""

    _shared: SharedSocket | None = None
    _grpc_shared: SharedSocket | None = None
    _tasks: "tuple[asyncio.Task[None], ...]" = ()

    def __init__(self, served: Served) -> None:
        gc.set_threshold(_GC_OBJECTS)  # what is there at the start, Ray Serve leaves out of all collections
        self._listening = served.listening
        self._tls = served.tls
        self._reasons: dict[int, str] = {}
        """Why nobody listens at a port."""
        self._recent = RecentLatency(round(WINDOW_S / REPORT_S)) if served.has_latency else None
        self._meters = _RayMeters(served.serving.name, self._recent)
        self._access_log = AccessLog(_access_log_file()) if served.access_log else None
        self._guard, self._tokens = build_guard(served.auth, served.rate_limit, self._meters.count_failure)
        self._drift = DriftMeters(served.serving.name, served.monitor)
        self._holding = Holding(served.serving, self._meters.of, self._guard, self._drift.watch)
        self._served = served

    async def __serve_build_asgi_app__(self) -> AsgiApp:
        """Return the application for Ray Serve's HTTP, in the loop of the replica."""
        return asgi_app(self._holding.front, self._access_log)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Follow a plan: Ray Serve calls this before the replica is ready, and whenever the plan changes."""
        plan, before = TrafficPlan.model_validate(user_config), self._holding.plan
        if before is None and self._served.shelving is not None:
            self._holding.front.shelf = await self._open_shelf(self._served.shelving)
        if before is None and self._served.jobs is not None:
            link = KeeperLink(serve.get_replica_context().app_name)
            self._holding.front.desk = Desk(self._served.jobs, self._holding.front, link.reach, self._meters.of)
        await self._holding.follow(plan)
        self._meters.tell_rollout(plan, before)
        if not self._tasks:
            await self._start_tasks()
            if self._listening is not None:
                await self._start_listener(self._listening)

    async def _open_shelf(self, shelving: Shelving) -> Shelf:
        serving = self._served.serving
        opened = [asyncio.to_thread(open_checked, serving, ref) for ref in shelving.packages.values()]
        packages = dict(zip(shelving.packages, await asyncio.gather(*opened), strict=True))
        return Shelf(
            packages,
            serving.limits,
            self._meters.of_model,
            shelving.memory_limit_mb,
            serving.max_waiting,
            partial(take, num_threads=serving.num_threads),
        )

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
        followed = [self._tick_for_ever(), self._drift.follow()]
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
        front, limits = self._holding.front, listening.limits
        self._listener = Listener(front, limits, self._access_log)
        self._shared = await self._share(self._listener, listening.host, listening.port, "http/1.1")
        if listening.grpc_port is not None:
            self._grpc_listener = Listener(front, limits, self._access_log, GrpcConnection)
            self._grpc_shared = await self._share(self._grpc_listener, listening.host, listening.grpc_port, "h2")
        if self._tokens is None and (warning := warn_of_openness(listening.host)):
            _logger.warning("%s", warning)

    async def _share(self, listener: Listener, host: str, port: int, protocol: str) -> SharedSocket | None:
        """Have a listener accept at an address that all replicas of the node share; None if that is taken."""
        if self._tls is not None:
            use = partial(setattr, listener, "tls")
            followed = watch_certificate(self._tls, use, self._meters.count_failure, protocol)
            self._tasks += (asyncio.create_task(followed.follow()),)
        try:
            shared = await asyncio.to_thread(share, _meeting_place(host, port), host, port)
        except OSError as error:
            self._reasons[port] = f"{host}:{port} must be free on the replica's node, got: {error}"
            _logger.warning("no listener: %s", self._reasons[port])
            return None
        listener.start(shared.listening)
        shared.give_to_others()
        _logger.info("listening at %s:%d", host, port)
        return shared

    async def entrance(self) -> Entrance:
        """Say where the listener is."""
        node_id, node_ip = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        if self._listening is None:
            return Entrance(None, node_id, node_ip, "it is off", problem=self._holding.problem)
        address = (self._listening.host, self._listening.port)
        reason = self._reasons.get(self._listening.port, "")
        scheme = "http" if self._tls is None else "https"
        facts = {"scheme": scheme, "problem": self._holding.problem, "grpc": self._say_grpc(self._listening)}
        return Entrance(None if reason else address, node_id, node_ip, reason, **facts)

    def _say_grpc(self, listening: Listening) -> str:
        port = listening.grpc_port
        if port is None:
            return ""
        reason = self._reasons.get(port)
        return f"no gRPC: {reason}" if reason else f"gRPC is at {listening.host}:{port}"

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Answer one POST of the cluster's own; returns status and body."""
        response = await asyncio.to_thread(self._holding.front.champion.ask, "POST", path, body)
        return response.code, response.body

    async def answer_part(self, records: list[Any], version: str) -> Part:
        """Answer rows of a job; see ``desk``."""
        return await answer_part(self._holding.front, records, version)

    async def check_health(self) -> None:
        """Ask the listener as a client would: it answers in the loop that answers everything else."""
        if self._shared is not None:
            await self._listener.probe()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell the controller what it does not see."""
        stats = {LISTENER_REQUESTS: sum(listener.mean_under_way() for listener, _ in self._open_listeners())}
        if self._recent is not None:
            answered, p95_s = self._recent.read()
            stats |= {ANSWERED: float(answered), P95_MS: p95_s * 1000}
        return stats

    def _open_listeners(self) -> list[tuple[Listener, SharedSocket]]:
        listeners = [] if self._shared is None else [(self._listener, self._shared)]
        return listeners if self._grpc_shared is None else [*listeners, (self._grpc_listener, self._grpc_shared)]

    async def __del__(self) -> None:
        """Leave without a lost request: the other replicas of the node have the same socket."""
        if not self._tasks:  # it has never been ready
            return
        leaving = self._open_listeners()
        self._shared = self._grpc_shared = None
        for listener, shared in leaving:
            listener.leave()
            shared.close()  # with no other replica on the node, who comes now is refused at once, and goes elsewhere
        await asyncio.gather(*(listener.drain(_DRAIN_S) for listener, _ in leaving))
        self._holding.close()
        if (shelf := self._holding.front.shelf) is not None:
            shelf.close()
        if self._access_log is not None:
            await self._access_log.flush()
        for task in self._tasks:
            task.cancel()
        self._meters.flush()


def _meeting_place(host: str, port: int) -> Path:
    """Folder in which the replicas of one application on this node find each other."""
    context = ray.get_runtime_context()
    key = f"{serve.get_replica_context().app_name} {host} {port}"
    name = hashlib.sha256(key.encode()).hexdigest()[:8]  # short: the path of a Unix socket has 107 bytes at most
    return Path(context.get_temp_dir(), context.get_session_name(), f"lr{name}")


def _access_log_file() -> Path:
    """Where Ray's dashboard looks for logs of Serve, and a name that no other replica has."""
    context, replica = ray.get_runtime_context(), serve.get_replica_context()
    name = re.sub(r"[^\w.-]", "_", f"access_{replica.app_name}_{replica.replica_tag}.log")
    return Path(context.get_temp_dir(), context.get_session_name(), "logs", "serve", name)


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
    grpc_port = listener.grpc_port if listener.grpc_port != 0 else free_port()
    return Listening(listener.host or spec.host, port if 0 < port <= _MAX_PORT else free_port(), limits, grpc_port)


def build_application(served: Served, plan: TrafficPlan, spec: ServeSpec) -> Any:
    """Return the Serve application, not yet deployed.

    Its version is that of the settings: where they stay, an update changes the plan of the replicas that are there, and Ray
    Serve 2.60 would otherwise replace them.
    """
    deployment = serve.deployment(
        ModelReplica,
        name=DEPLOYMENT,
        user_config=plan.model_dump(mode="json"),
        ray_actor_options={"num_cpus": spec.cpus_per_replica},
        max_ongoing_requests=spec.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        max_surge_percent=_SURGE_PERCENT,
        autoscaling_config=_autoscaling(spec),
        logging_config={"enable_access_log": False},  # there is our own; Ray's takes a sixth of a request at Ray's HTTP
    )
    return deployment.options(version=_version_of(served), _internal=True).bind(served)


def _autoscaling(spec: ServeSpec) -> AutoscalingConfig:
    scaling, pace = spec.autoscaling, spec.autoscaling.pace()
    return AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_ongoing_requests=pace.target_ongoing_requests,
        upscale_delay_s=pace.upscale_delay_s,
        downscale_delay_s=pace.downscale_delay_s,
        downscale_to_zero_delay_s=scaling.downscale_to_zero_delay_s,
        metrics_interval_s=REPORT_S,  # Ray 2.60 says that it will go, and has nothing else that works: 10 s would be too late
        look_back_period_s=WINDOW_S,
        policy=AutoscalingPolicy(
            policy_function=ReplicaPolicy,
            policy_kwargs={
                "target_p95_ms": scaling.target_p95_ms,
                "headroom": pace.headroom,
                "max_ongoing_requests": spec.max_ongoing_requests,
            },
        ),
    )


def _version_of(served: Served) -> str:
    serving = served.serving
    what = serving.open_model
    facts = {**vars(serving), "open_model": f"{what.__module__}.{what.__qualname__}", "limits": asdict(serving.limits)}
    listening = served.listening and asdict(served.listening)
    sections = [
        one and one.model_dump(mode="json")
        for one in (served.auth, served.rate_limit, served.tls, served.monitor, served.jobs)
    ]
    rest = {"sections": sections, "access_log": served.access_log, "has_latency": served.has_latency}
    if (shelving := served.shelving) is not None:
        rest["models"] = {name: ref.model_dump(mode="json") for name, ref in shelving.packages.items()}
        rest["memory_limit_mb"] = shelving.memory_limit_mb
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
        handle = _near(serve.run(application, name=name, route_prefix=spec.route_prefix))
        can_be_none = spec.autoscaling.min_replicas == 0  # then this call starts the first one
        timeout_s = _COLD_START_TIMEOUT_S if can_be_none else _ENTRANCE_TIMEOUT_S
        entrance = handle.entrance.remote().result(timeout_s=timeout_s)
    except (RayError, RayServeException, RuntimeError, ValueError, OSError) as error:
        place = f"{spec.host}:{spec.port}"
        what = _trouble(name) if isinstance(error, TimeoutError) else last_line(error)
        raise EngineError(
            f"serve: the application {name!r} must start at {place}, got: {what}. "
            "If the port is in use, choose another, or 0 for a free one",
            retryable=True,
        ) from error
    if entrance.problem:
        raise EngineError(f"serve: the replicas of {name!r} must answer with the package, but {entrance.problem}")
    options = serve.context._get_global_client().http_config  # Ray 2.60 has no public way to ask for the port in use
    host = "127.0.0.1" if options.host in (*_EVERY_INTERFACE, None) else options.host
    scheme = "https" if options.ssl_certfile and not settings.serve_uses_haproxy() else "http"
    standard = f"{scheme}://{host}:{options.port}{spec.route_prefix.rstrip('/')}"
    at = choose_address(entrance, standard, ray.get_runtime_context().get_node_id(), can_be_none)
    hosts = (spec.host, *((spec.listener.host,) if spec.listener and spec.listener.host else ()))
    warnings = [warning for one in hosts if spec.auth is None and (warning := warn_of_openness(one))]
    return Addresses(at.url, "; ".join(filter(None, [at.through, entrance.grpc, *warnings[-1:]])))


def _near(handle: Any) -> Any:
    """Return a handle after it was told to ask a replica of this node, where there is one: another node's loopback says nothing here."""
    if not handle.is_initialized:
        handle._init(_prefer_local_routing=True)  # Ray 2.60 has no public way
    return handle


def _trouble(name: str) -> str:
    """Return what Ray Serve says of an application that does not answer."""
    deployments = serve.status().applications[name].deployments.values()
    return "; ".join(one.message for one in deployments if one.message) or "no answer of a replica in time"


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
        code, answer = _near(serve.get_app_handle(name)).ask.remote(path, body).result(timeout_s=_ENTRANCE_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError) as error:
        raise EngineError(f"{name} must answer {path}, got: {last_line(error)}", retryable=True) from error
    if code != HTTP_OK:
        raise EngineError(f"{name} must answer {path}, got status {code}: {answer[:500].decode(errors='replace')}")
    return bytes(answer)


def choose_address(entrance: Entrance, standard: str, node_id: str, can_be_none: bool = False) -> Addresses:
    """Return the listener's address if the node ``node_id`` can reach it, else that of Ray Serve's HTTP.

    An application that can be without replicas is without listeners then; who asks Ray Serve waits for the first one.
    """
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
    if can_be_none:
        return Addresses(
            standard, f"{own}, which starts a replica if there is none; the replicas' listener is at {url}"
        )
    return Addresses(url, f"the replicas' listener; {own} is at {standard}")


def is_running(name: str) -> bool:
    """Whether the cluster has the application already."""
    return name in serve.status().applications


def stop(name: str) -> None:
    """Remove an application; without any left, Serve stops too."""
    serve.delete(name)
    end_keeper(name)
    end_jobs(name)
    if not serve.status().applications:
        serve.shutdown()
