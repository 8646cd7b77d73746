"""Clusters: one in this process for the whole folder, and heads of their own as a platform engineer starts them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lepton_ray.engine.session import free_port

REPOSITORY = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head node with token authentication."""

    dashboard: str
    address: str
    """``RAY_ADDRESS`` of drivers on this machine."""
    environment: dict[str, str]
    home: Path

    def run(self, *command: str, timeout_s: float = 500, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a client of the cluster."""
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


_begun: set[str] = set()
"""Addresses of the clusters that ``cluster`` has begun."""


@pytest.fixture(scope="module")
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    token = home / ".ray" / "auth_token"
    token.write_text("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
    dashboard = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    environment |= {
        "HOME": str(home),
        "PATH": f"{BIN}:{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'runs' / 'mlflow.db'}",
        **getattr(request.module, "HEAD_ENVIRONMENT", {}),
    }
    ports = {
        "--port": free_port(),
        "--ray-client-server-port": free_port(),
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": free_port(),
        "--metrics-export-port": free_port(),
    }
    # In a folder of its own: a head that is killed leaves its address behind, and the next ray.init() would wait for it.
    temp_dir = tempfile.mkdtemp(prefix="lr-", dir="/tmp")  # sockets allow no long path
    options = [f"--temp-dir={temp_dir}", *(f"{name}={port}" for name, port in ports.items())]
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=4",
        "--object-store-memory=300000000",
        *options,
    ]
    log = (home / "head.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=home
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until(lambda: process.poll() is not None or answers(f"{url}/api/version"), "the head's start")
        assert process.poll() is None, (home / "head.log").read_text()
        yield Head(url, f"127.0.0.1:{ports['--port']}", environment, home)
    finally:
        stop_group(process)
        log.close()
        shutil.rmtree(temp_dir, ignore_errors=True)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


def processes_named(name: str) -> list[int]:
    """Processes that this one started, and those that they started, by what they call themselves."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if name in (path / "cmdline").read_text() and os.getpid() in ancestors(int(path.name)):
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


@pytest.fixture(scope="session")
def ending() -> Iterator[None]:
    """Ends at the end of all tests what ``cluster`` has begun."""
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def cluster(ending: None) -> None:
    """A local cluster of 4 logical CPUs that this process is connected to: that of the tests before, unless one of them has left it."""
    from lepton_ray.core import settings

    settings.prepare_ray()
    import ray

    if ray.is_initialized():
        if ray.get_runtime_context().gcs_address in _begun:
            return
        ray.shutdown()
    port = free_port()
    settings.point_to_dashboard(port)
    ray.init(address="local", num_cpus=4, log_to_driver=False, object_store_memory=300 << 20, dashboard_port=port)
    _begun.add(ray.get_runtime_context().gcs_address)
