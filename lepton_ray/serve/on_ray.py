"""The application on Ray Serve, which owns its replicas' placement, health, lifecycle and scaling: deploy, ask, remove."""

import errno
import logging
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import ray
from pydantic import BaseModel
from ray import serve
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions
from ray.serve.exceptions import RayServeException

from lepton_ray import __version__
from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError
from lepton_ray.core.files import sha256_json
from lepton_ray.core.status import HTTP_OK
from lepton_ray.core.web import is_loopback
from lepton_ray.engine.faults import last_line
from lepton_ray.engine.session import free_port
from lepton_ray.serve.guard import warn_of_openness
from lepton_ray.serve.handles import near
from lepton_ray.serve.jobs.on_ray import end_jobs
from lepton_ray.serve.plans.on_ray import DEPLOYMENT, read_plan
from lepton_ray.serve.replica.lean import leave_out_pandas
from lepton_ray.serve.replica.on_ray import Entrance, Listening, ModelReplica, Served
from lepton_ray.serve.rollout.on_ray import end_keeper
from lepton_ray.serve.scaling import REPORT_S, WINDOW_S, ReplicaPolicy
from lepton_ray.serve.sockets import is_free
from lepton_ray.serve.tls import local_file
from lepton_ray.spec.release import ServeSpec, TlsSpec
from lepton_ray.spec.rollout import TrafficPlan

_SHUTDOWN_S = 20.0  # longer than a replica drains; Ray Serve waits for its own requests first, for 2 s at least
_SURGE_PERCENT = 20  # rounded up to whole replicas: the new one is there before the old one leaves
_ENTRANCE_TIMEOUT_S = 30.0
_COLD_START_TIMEOUT_S = 180.0
_EVERY_INTERFACE = ("0.0.0.0", "::", "")  # noqa: S104  compared, not bound
_MAX_PORT = 65535
_HEAD = "node:__internal_head__"  # what Ray calls the resource that only the head has


@dataclass(frozen=True)
class Addresses:
    """Where a running application answers."""

    url: str
    """The fastest way in that this machine can use."""
    through: str
    """Which one that is, and the other one or why there is none."""


def listen_at(spec: ServeSpec) -> Listening | None:
    """Return where the replicas of an application listen."""
    listener = spec.listener
    if listener is None:
        return None
    port = listener.port if listener.port is not None else spec.port and spec.port + 1
    grpc_port = listener.grpc_port if listener.grpc_port != 0 else free_port()
    return Listening(listener.host or spec.host, port if 0 < port <= _MAX_PORT else free_port(), listener, grpc_port)


def build_application(served: Served, plan: TrafficPlan, spec: ServeSpec) -> Any:
    """Return the Serve application, not yet deployed.

    Its version is that of the settings: where they stay, an update changes the plan of the replicas that are there, and Ray
    Serve 2.60 would otherwise replace them.
    """
    deployment = serve.deployment(
        ModelReplica,
        name=DEPLOYMENT,
        user_config=plan.model_dump(mode="json"),
        ray_actor_options={"num_cpus": spec.cpus_per_replica, "runtime_env": _replica_environment()},
        max_ongoing_requests=spec.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        max_surge_percent=_SURGE_PERCENT,
        autoscaling_config=_autoscaling(spec),
        logging_config={"enable_access_log": False},  # there is our own; Ray's takes a sixth of a request at Ray's HTTP
    )
    return deployment.options(version=_version_of(served), _internal=True).bind(served)


def _replica_environment() -> dict[str, Any]:
    """Return the environment of the replicas' processes: that of the job, as Ray Serve has it where none is given, and our hook.

    Ray 2.60 takes hooks for whole jobs alone, and tells its workers of them by a variable. A job's own hook stays.
    """
    of_job = ray.get_runtime_context().runtime_env if ray.is_initialized() else {}
    variables = of_job.get("env_vars") or {}
    if WORKER_PROCESS_SETUP_HOOK_ENV_VAR in variables:
        return {**of_job}
    hook = f"{leave_out_pandas.__module__}.{leave_out_pandas.__qualname__}"
    return {**of_job, "env_vars": {**variables, WORKER_PROCESS_SETUP_HOOK_ENV_VAR: hook}}


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
    return sha256_json({"code": __version__, "served": _facts(served)})


def _facts(value: Any) -> Any:
    """Return settings as JSON, each of them, also those that come to be."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value):
        return {field.name: _facts(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _facts(one) for name, one in value.items()}
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value


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
        _check_port(spec)
        serve.start(http_options=HTTPOptions(host=spec.host, port=spec.port or free_port(), **_tls_options(spec.tls)))
        can_be_none = spec.autoscaling.min_replicas == 0  # then this call starts the first one
        timeout_s = _COLD_START_TIMEOUT_S if can_be_none else _ENTRANCE_TIMEOUT_S
        with near(serve.run(application, name=name, route_prefix=spec.route_prefix)) as handle:
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


def _check_port(spec: ServeSpec) -> None:
    """See that nobody listens where Ray Serve's proxy is to start on this node.

    That of Ray 2.60 binds with SO_REUSEPORT: it would share the port with the proxy of another cluster, and each request be
    answered by one of the two.

    Raises:
        OSError: If somebody does, or it is no address that can be listened at.
    """
    here = ray.get_runtime_context().get_node_id()
    # the head has a proxy always
    is_head = any(node["NodeID"] == here and _HEAD in node["Resources"] for node in ray.nodes())
    is_started = serve.context._get_global_client(raise_if_no_controller_running=False) is not None
    if is_head and not is_started and spec.port and not is_free(spec.host, spec.port):
        raise OSError(errno.EADDRINUSE, "another process listens there")


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
        with near(serve.get_app_handle(name)) as handle:
            code, answer = handle.ask.remote(path, body).result(timeout_s=_ENTRANCE_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError) as error:
        raise EngineError(f"{name} must answer {path}, got: {last_line(error)}", retryable=True) from error
    if code != HTTP_OK:
        raise EngineError(f"{name} must answer {path}, got status {code}: {answer[:500].decode(errors='replace')}")
    return bytes(answer)


def settings_of(name: str) -> list[str]:
    """Return which of the sections that an application may lack a running one has.

    Raises:
        EngineError: If it does not answer.
    """
    try:
        with near(serve.get_app_handle(name)) as handle:
            found: list[str] = handle.settings.remote().result(timeout_s=_ENTRANCE_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError) as error:
        raise EngineError(f"{name} must answer, got: {last_line(error)}", retryable=True) from error
    return found


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
