"""All servers that are compared: how each is started and asked, and the environments of the peers.

A peer has a folder in ``peers/`` with its pinned ``requirements.txt``; its environment is made at the first use, and again when those change.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asks import BENTOML, LITSERVE, MLFLOW, OURS, PLAIN, Dialect  # beside this file
from measure import Tree  # one folder up

from lepton_ray.engine.session import free_port

HERE = Path(__file__).parent
PEERS = HERE / "peers"
START_S, END_S = 180.0, 60.0


@dataclass(frozen=True)
class Server:
    """How a server is started, with PACKAGE, PORT and TOKENS behind the script, and asked."""

    script: str
    dialect: Dialect
    environment: str = ""
    """Folder in ``peers/`` with its requirements; this project's environment if empty."""
    port_shift: int = 0
    """Where it answers, after PORT."""
    ready: str = "/health"
    takes_tokens: bool = False
    uses_haproxy: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


_OURS = Server("ours.py", OURS, port_shift=1, ready="/v2/health/ready", takes_tokens=True)
OURS_NAME, PLAIN_SERVE, BARE = "ours", "plain Ray Serve", "bare listener"
LITSERVE_NAME, BENTOML_NAME, MLFLOW_NAME = "LitServe", "BentoML", "MLflow"
STARLETTE, FASTAPI = "Starlette + orjson", "FastAPI"
OURS_HAPROXY, OURS_PROXY, PLAIN_HAPROXY = "ours, HAProxy", "ours, Ray Serve's proxy", "plain Ray Serve, HAProxy"

SERVERS = {
    OURS_NAME: _OURS,
    BARE: Server("peers/bare_listener.py", PLAIN),
    STARLETTE: Server("peers/starlette/server.py", PLAIN, "starlette"),
    FASTAPI: Server("peers/fastapi/server.py", PLAIN, "fastapi"),
    LITSERVE_NAME: Server("peers/litserve/server.py", LITSERVE, "litserve"),
    BENTOML_NAME: Server("peers/bentoml/server.py", BENTOML, "bentoml", ready="/readyz"),
    MLFLOW_NAME: Server("peers/mlflow/server.py", MLFLOW, "mlflow"),
    PLAIN_SERVE: Server("plain_serve.py", PLAIN),
}
STANDARD = {
    OURS_HAPROXY: Server(_OURS.script, OURS, ready=_OURS.ready, takes_tokens=True, uses_haproxy=True),
    OURS_PROXY: Server(_OURS.script, OURS, ready=_OURS.ready, takes_tokens=True),
    PLAIN_HAPROXY: Server("plain_serve.py", PLAIN, uses_haproxy=True),
    PLAIN_SERVE: SERVERS[PLAIN_SERVE],
}
"""At the address of Ray Serve's own HTTP."""


@contextlib.contextmanager
def started(
    server: Server, folder: Path, package: Path, tokens: Path, *more: str, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[str, Tree]]:
    """Start a server, wait until it is ready, and end it with all that it started.

    Args:
        server: Which.
        folder: For the environments of peers.
        package: What it serves.
        tokens: File of tokens.
        more: Arguments behind those.
        prefix: Command before it, such as one that pins it to a core.
    """
    port, tree = free_ports(), Tree()
    arguments = [str(package), str(port), *([str(tokens)] if server.takes_tokens else []), *more]
    python = python_of(server.environment, folder)
    command = [*prefix, python, str(HERE / server.script), *arguments]
    environment = {**tree.environment(), "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory(prefix="lepton_bench") as scratch:
        haproxy = haproxy_variables(Path(scratch)) if server.uses_haproxy else {}
        process = subprocess.Popen(
            command,
            env={**environment, "RAY_worker_niceness": "0", **server.variables, **haproxy},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        tree.add(process.pid)
        try:
            url = f"http://127.0.0.1:{port + server.port_shift}"
            wait_until_ready(url + server.ready, process, output)
            yield url, tree
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            tree.end(process)


def python_of(environment: str, folder: Path) -> str:
    """Return the Python of a peer's environment, made where it is not there or has other requirements; "" is this one."""
    if not environment:
        return sys.executable
    home, wanted = folder.resolve() / "peers" / environment, PEERS / environment / "requirements.txt"
    python, made = home / "bin" / "python", home / "requirements.txt"
    if not made.exists() or made.read_text() != wanted.read_text():
        print(f"making the environment of {environment} in {home}", flush=True)
        venv.create(home, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip must install {wanted}, got {done.returncode}:\n{done.stderr[-2000:]}")
        shutil.copy(wanted, made)
    return str(python)


def haproxy_variables(scratch: Path) -> dict[str, str]:
    """Return what makes Ray Serve put HAProxy before its replicas, away from other clusters' on this machine."""
    places = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
    places |= {"SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state"}
    ports = free_ports()
    settings = {name: str(scratch / place) for name, place in places.items()}
    settings |= {"METRICS_PORT": str(ports), "STATS_PORT": str(ports + 1)}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        **{f"RAY_SERVE_HAPROXY_{name}": value for name, value in settings.items()},
    }


def free_ports() -> int:
    """Return a port that is free with the next one, below those of outgoing connections: one that asks its own port answers itself."""
    while True:
        port = free_port()
        with socket.socket() as following, contextlib.suppress(OSError):
            following.bind(("127.0.0.1", port + 1))
            return port


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", output: Any) -> None:
    """Wait until a URL answers 200."""
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            output.seek(0)
            raise RuntimeError(f"{url} must answer:\n{output.read().decode(errors='replace')[-3000:]}")
        time.sleep(0.1)
