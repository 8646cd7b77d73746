"""A replica: holds packages, answers at a listener of its own and at Ray Serve's HTTP.

The requests at the listener Ray Serve does not see, so a replica reports them (``record_autoscaling_stats``), probes its listener
(``check_health``) and drains it before it ends (``__del__``).
"""

import asyncio
import hashlib
import logging
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve

from lepton_ray.core.errors import LeptonError
from lepton_ray.core.garbage import collect_rarely
from lepton_ray.serve.access import AccessLog
from lepton_ray.serve.drift.on_ray import DriftMeters
from lepton_ray.serve.grpc_connection import GrpcConnection
from lepton_ray.serve.guard import build_guard, warn_of_openness
from lepton_ray.serve.http import AsgiApp, asgi_app
from lepton_ray.serve.jobs.desk import Desk, Part, answer_part
from lepton_ray.serve.jobs.on_ray import KeeperLink
from lepton_ray.serve.latency import RecentLatency
from lepton_ray.serve.listener import Listener
from lepton_ray.serve.meters.on_ray import RequestMeters
from lepton_ray.serve.rate.on_ray import Shares
from lepton_ray.serve.rollout.holding import Holding, Serving, open_checked
from lepton_ray.serve.rollout.on_ray import Reporter
from lepton_ray.serve.scaling import ANSWERED, LISTENER_REQUESTS, P95_MS, REPORT_S, WINDOW_S
from lepton_ray.serve.shelf import Shelf, take
from lepton_ray.serve.sockets import SharedSocket, share
from lepton_ray.serve.tls import watch_certificate
from lepton_ray.spec.monitor import MonitorSpec
from lepton_ray.spec.release import AuthSpec, JobsSpec, ListenerSpec, RateLimitSpec, TlsSpec
from lepton_ray.spec.rollout import ModelRef, TrafficPlan

_DRAIN_S = 15.0
_FLUSH_S = 1.0

_logger = logging.getLogger("lepton_ray.serve")


@dataclass(frozen=True)
class Listening:
    """Where each replica listens, on its node."""

    host: str
    port: int
    limits: ListenerSpec
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
class Shelving:
    """Further models, in memory while they are asked for."""

    packages: dict[str, ModelRef]
    memory_limit_mb: int


@dataclass(frozen=True, kw_only=True)
class Served:
    """What all replicas of an application have in common, whichever packages they hold."""

    serving: Serving
    listening: Listening | None = None
    auth: AuthSpec | None = None
    rate_limit: RateLimitSpec | None = None
    tls: TlsSpec | None = None
    access_log: bool
    monitor: MonitorSpec | None = None
    has_latency: bool = False
    """Replicas report what they have answered, and how fast."""
    shelving: Shelving | None = None
    jobs: JobsSpec | None = None


@serve.ingress()
class ModelReplica:
    """Holds what its plan names. Ready once that is warm, has answered its golden records, and the replica listens."""

    _shared: SharedSocket | None = None
    _grpc_shared: SharedSocket | None = None
    _tasks: "tuple[asyncio.Task[None], ...]" = ()

    def __init__(self, served: Served) -> None:
        collect_rarely()  # what is there at the start, Ray Serve leaves out of all collections
        self._listening = served.listening
        self._tls = served.tls
        self._reasons: dict[int, str] = {}
        """Why nobody listens at a port."""
        self._recent = RecentLatency(round(WINDOW_S / REPORT_S)) if served.has_latency else None
        self._meters = RequestMeters(served.serving.name, self._recent)
        self._access_log = AccessLog(_access_log_file()) if served.access_log else None
        self._guard, self._tokens = build_guard(served.auth, served.rate_limit, self._meters.count_failure)
        self._drift = DriftMeters(served.serving.name, served.monitor)
        self._holding = Holding(served.serving, self._meters.of, guard=self._guard, watch=self._drift.watch)
        self._served = served

    async def __serve_build_asgi_app__(self) -> AsgiApp:
        """Return the application for Ray Serve's HTTP, in the loop of the replica."""
        return asgi_app(self._holding.front, self._access_log)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Follow a plan: Ray Serve calls this before the replica is ready, and whenever the plan changes."""
        plan, before = TrafficPlan.model_validate(user_config), self._holding.plan
        if before is None and self._guard is not None:
            context = serve.get_replica_context()
            self._shares = Shares(self._guard, context.app_name, context.replica_tag)
            self._begun = asyncio.create_task(self._shares.begin())  # the packages open while the book's process starts
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

    async def _tell_for_ever(self) -> None:
        """Export metrics."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            self._meters.flush()
            if self._access_log is not None:
                self._meters.tell_unlogged(self._access_log.dropped)
            if (plan := self._holding.plan) is not None and plan.challenger is not None:
                self._meters.tell_differences(self._holding.tallies())

    async def _report_for_ever(self) -> None:
        """Report to the rollout's keeper while there is one: apart from the metrics, which must not wait for one that is slow."""
        reporter = Reporter(serve.get_replica_context())
        while True:
            await asyncio.sleep(_FLUSH_S)
            if (plan := self._holding.plan) is not None and plan.challenger is not None:
                await reporter.report(plan, self._holding.tallies(), self._holding.problem)

    async def _start_tasks(self) -> None:
        followed = [self._tell_for_ever(), self._report_for_ever(), self._drift.follow()]
        if self._access_log is not None:
            followed.append(self._access_log.follow())
        if self._tokens is not None:
            followed.append(self._tokens.follow())
        if self._guard is not None:
            await self._begun
            followed.append(self._shares.follow())
        self._tasks = tuple(asyncio.create_task(one) for one in followed)
        for task in self._tasks:
            task.add_done_callback(_log_end)

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

    async def settings(self) -> list[str]:
        """Name the sections of ``serve`` that this application has and another may lack."""
        served = self._served
        there: dict[str, object] = {"auth": served.auth, "rate_limit": served.rate_limit, "tls": served.tls}
        there |= {"models": served.shelving, "jobs": served.jobs}
        return [name for name, section in there.items() if section is not None]

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


def _log_end(task: "asyncio.Task[None]") -> None:
    """Say that what should go on as long as the replica has ended: nobody awaits it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("%r must go on as long as the replica, and has ended", task.get_coro(), exc_info=error)


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
