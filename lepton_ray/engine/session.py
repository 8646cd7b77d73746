"""Connect to a Ray cluster: the one that RAY_ADDRESS names, or a local one that ends with this process.

Ray 2.60 reads ``RAY_AUTH_MODE`` when it is imported, so Ray is imported here, after the settings are made, and
modules that import Ray themselves are imported after ``connect``.
"""

import contextlib
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError, LeptonError
from lepton_ray.core.extras import require

LOCAL_OBJECT_STORE_BYTES = 512 << 20
_REACH_S = 10.0
_ANSWER_S = 60.0  # a head under load takes some ten
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4" + b"\0" * 5  # with a frame of no settings
_PORTS = range(20000, 32768)
"""Above the ports that Ray gives to its workers, below those that Linux gives to outgoing connections: neither takes one
between the moment it is found free and its use."""
_given: set[int] = set()
_waiting: list[Callable[[], None]] = []
"""What is to be done once this process is connected."""


@dataclass(frozen=True)
class Session:
    """A connection; ``is_local`` says whether the cluster ends with this process."""

    address: str
    is_local: bool
    metrics_url: str | None
    """Prometheus text of this node; open without a token."""


def connect() -> Session:
    """Connect this process to Ray, once; later calls return the same cluster.

    Raises:
        EngineError: If the cluster cannot be reached or refuses the token.
    """
    settings.prepare_ray()
    ray = require("ray", "this stage")
    address = settings.ray_address()
    is_local = not settings.has_cluster()
    if not ray.is_initialized():
        try:
            with _signals_kept():
                _init(ray, address or "auto", is_local)
        except LeptonError:
            raise
        except Exception as error:  # Ray 2.60 raises bare ones, such as for a node that does not start in time
            hint = (
                "Check RAY_ADDRESS, and RAY_AUTH_TOKEN or ~/.ray/auth_token"
                if not is_local
                else "Is the machine out of memory or ports, or too busy?"
            )
            raise EngineError(
                f"Ray must be reachable at {address or 'a new local cluster'}, got: {_first_line(error)}. {hint}",
                retryable=True,
            ) from error
    while _waiting:
        _waiting.pop(0)()
    node = next((n for n in ray.nodes() if n["Alive"] and n["NodeID"] == ray.get_runtime_context().get_node_id()), None)
    metrics = (
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        if node and node.get("MetricsExportPort")
        else None
    )
    return Session(ray.get_runtime_context().gcs_address, is_local, metrics)


def check_answers(timeout_s: float) -> None:
    """Let a process of its own connect to the cluster that RAY_ADDRESS names, if it does, and end it when it takes too long.

    Ray 2.60 waits for many minutes for a head that takes connections and does not answer; in this process nothing could end that.

    Raises:
        EngineError: If the head does not answer. Whatever else is wrong ``connect`` tells.
    """
    address = settings.ray_address()
    if address is None:
        return
    command = [sys.executable, "-c", f"from {__name__} import connect; connect()"]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)  # noqa: S603  our own
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"Ray must answer at {address} within {timeout_s:g} s, got no answer. Is the head overloaded, or is it no head of Ray?",
            retryable=True,
        ) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the handler of SIGTERM back: Ray 2.60 replaces it by one that aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _init(ray: Any, address: str, is_local: bool) -> None:
    if not is_local:
        _check_listens(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        return
    dashboard_port = free_port()
    settings.point_to_dashboard(dashboard_port)
    ray.init(
        address="local",
        log_to_driver=False,
        logging_level=logging.ERROR,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard_port,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        _metrics_export_port=free_port(),
    )


def _check_listens(address: str) -> None:
    """Find out whether anything answers at ``host:port``; of another address, such as ``auto``, nothing is known.

    Ray 2.60 tries for minutes to reach a head that is not there, or that takes connections and does not answer, and nothing ends that.
    A head speaks gRPC: it answers the first bytes of HTTP/2 (RFC 9113, 3.4), or with TLS refuses them.

    Raises:
        OSError: If nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), _REACH_S) as connection:
            connection.settimeout(_ANSWER_S)
            connection.sendall(_GREETING)
            connection.recv(1)


def is_connected() -> bool:
    """Whether this process is connected to a cluster already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def when_connected(act: Callable[[], None]) -> None:
    """Do what needs the cluster: now, or when this process connects to one, or never if it does not."""
    if is_connected():
        act()
    else:
        _waiting.append(act)


def close() -> None:
    """Disconnect; a local cluster stops with all its processes."""
    _waiting.clear()
    if is_connected():
        sys.modules["ray"].shutdown()


def free_port() -> int:
    """Return a TCP port that nothing on this machine listens on now, another for each call in a process.

    Raises:
        EngineError: If none of many tried is free.
    """
    for port in random.SystemRandom().sample(_PORTS, 1000):
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            _given.add(port)
            return port
    raise EngineError(f"a port from {_PORTS[0]} to {_PORTS[-1]} must be free, got none. Stop what listens on them")


def _first_line(error: BaseException) -> str:
    text: Any = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
