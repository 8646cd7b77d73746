"""A launcher file's cluster brought up, asked, used and brought down by Ray's own commands, each held to what it says it did.

Ray 2.60's launcher exits with 0 when workers do not come, when ``ray`` is not found on a machine that it should stop, and before
workers have stopped: every command here looks at the machines afterwards.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ray.core.errors import EngineError, SpecError
from lepton_ray.core.web import open_url
from lepton_ray.engine.session import free_port
from lepton_ray.launch.ray_yaml import DASHBOARD_PORT, PROJECT, Config

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_POLL_S = 5.0  # each time asks anew, which takes seconds of its own
_ASK_TIMEOUT_S = 120.0
_SSH_CONNECT_S = 10
_STOP_GRACE_S = 30.0
_MARK = "lepton-ray-nodes"
_NO_HEAD = "Head node of cluster"  # begins what Ray says without one, below a traceback
_NO_NODES = "No nodes remaining"
_LAST_LINES = 15
# Ray's processes on a machine, counted without pgrep, which small images lack.
_COUNT_RAY = "cat /proc/[0-9]*/comm 2>/dev/null | grep -cxE 'raylet|gcs_server'"
# The environment is found as Ray's launcher finds it.
_STOP_RAY = "source ~/.bashrc >/dev/null 2>&1; ray stop --grace-period 10"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Node:
    """A machine that Ray counts as alive."""

    ip: str
    is_head: bool
    resources: dict[str, float]


@dataclass(frozen=True)
class ClusterStatus:
    """What is alive of a cluster, beside the number of machines that its file asks for at least."""

    nodes: tuple[Node, ...]
    num_asked: int

    @property
    def is_whole(self) -> bool:
        """Whether all machines asked for are alive."""
        return len(self.nodes) >= self.num_asked and any(node.is_head for node in self.nodes)


def num_asked(config: Config) -> int:
    """Return how many machines a launcher file asks for at least, the head among them."""
    if config["provider"]["type"] == "local":
        workers = config["provider"].get("worker_ips", [])
        return 1 + int(config.get("min_workers", len(workers)))
    kinds = config.get("available_node_types", {}).values()
    return 1 + sum(int(kind.get("min_workers", 0)) for kind in kinds)


def up(path: Path, config: Config, timeout_s: float, tell: Tell) -> ClusterStatus:
    """Bring a cluster up, or up to date, and wait until all machines that its file asks for are alive.

    Raises:
        EngineError: If ``ray up`` fails, or machines are missing after ``timeout_s``.
        SpecError: If a file that machines need is not there.
    """
    deadline = time.monotonic() + timeout_s
    _check_mounts(config, path)
    with _output() as output:
        _ray(["up", "-y", "--no-config-cache", str(path)], timeout_s, output)
    tell("the head is up")
    told = -1
    while True:
        found = status(path, config)
        if len(found.nodes) != told:
            told = len(found.nodes)
            tell(f"{told} of {found.num_asked} machines are alive")
        if found.is_whole:
            return found
        if time.monotonic() > deadline:
            action = f"See ray monitor {path}, which shows what the head's autoscaler does"
            raise EngineError(
                f"{path}: {found.num_asked} machines must be alive within {timeout_s:g} s, got {told}. {action}",
                retryable=True,
            )
        time.sleep(_POLL_S)


def _check_mounts(config: Config, path: Path) -> None:
    """Ray copies nothing, and says nothing, where a file to copy is missing."""
    problems = [
        f"file_mounts.{remote} must name a file that is here, got {local!r}. "
        + ("Run ray get-auth-token --generate" if "auth_token" in str(local) else "Make it, or change the path")
        for remote, local in config.get("file_mounts", {}).items()
        if not Path(local).expanduser().exists()
    ]
    mounts = config.get("file_mounts", {})
    if mounts.get(PROJECT) == "." and not Path("constraints.txt").is_file():
        problems.append(
            f"file_mounts.{PROJECT} must be the folder of the project, with constraints.txt, got {str(Path.cwd())!r}, all of which would be "
            "copied to the machines. Go to the project's folder"
        )
    if problems:
        raise SpecError(problems, str(path))


def status(path: Path, config: Config) -> ClusterStatus:
    """Ask a cluster's head which machines are alive.

    Raises:
        EngineError: If the head does not answer.
    """
    command = f"echo {_MARK}; ray list nodes --format json --limit 10000 --detail; echo {_MARK}"
    with _output() as output:
        _ray(["exec", str(path), command], _ASK_TIMEOUT_S, output)
        text = _said(output)
    parts = text.split(_MARK)
    body = next((part for part in reversed(parts) if "[" in part and "]" in part and "node_ip" in part), "")
    try:
        listed = json.loads(body[body.index("[") : body.rindex("]") + 1])
    except ValueError:
        raise EngineError(f"{path}: the head must list its nodes, got: {_end_of(text)}. Is Ray running there?", retryable=True) from None  # fmt: skip
    nodes = [
        Node(node["node_ip"], bool(node["is_head_node"]), _numbers(node.get("resources_total") or {}))
        for node in listed
        if node["state"] == "ALIVE"
    ]
    return ClusterStatus(tuple(sorted(nodes, key=lambda node: (not node.is_head, node.ip))), num_asked(config))


def _numbers(resources: dict[str, Any]) -> dict[str, float]:
    """Leave out memory, which Ray tells as a text with a unit."""
    return {name: value for name, value in resources.items() if isinstance(value, int | float)}


@contextlib.contextmanager
def forwarded(path: Path) -> Iterator[str]:
    """Forward the head's dashboard to this machine; yields its URL here.

    Raises:
        EngineError: If it does not answer.
    """
    port = free_port()
    command = [*_RAY, "dashboard", str(path), "--port", str(port), "--remote-port", str(DASHBOARD_PORT)]
    with _output() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)  # noqa: S603  # fmt: skip
        try:
            _wait_for_answer(f"http://127.0.0.1:{port}/api/version", process, output)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_for_answer(url: str, process: "subprocess.Popen[bytes]", output: Any) -> None:
    deadline = time.monotonic() + _ASK_TIMEOUT_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise EngineError(
                f"the head's dashboard must answer through SSH, got: {_end_of(_said(output))}. Is the cluster up?",
                retryable=True,
            )
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with open_url(url, 5):
            return True
    except urllib.error.HTTPError:
        return True  # it asks for the token
    except OSError:
        return False


def down(path: Path, config: Config, timeout_s: float, tell: Tell) -> None:
    """Bring a cluster down, and see that nothing of it runs on.

    Raises:
        EngineError: If ``ray down`` fails, or Ray's processes are left on a machine.
    """
    with _output() as output:
        _ray(["down", "-y", str(path)], timeout_s, output)
        said = _said(output)
    if _NO_NODES not in said:
        raise EngineError(f"{path}: ray down must end with {_NO_NODES!r}, got: {_end_of(said)}. Look at the machines")
    tell("ray down has ended")
    if config["provider"]["type"] == "local" and "coordinator_address" not in config["provider"]:
        _stop_leftovers(path, config, tell)


def _stop_leftovers(path: Path, config: Config, tell: Tell) -> None:
    """Stop what runs on where Ray does not look: ``ray down`` stops Ray on the head alone."""
    provider = config["provider"]
    hosts = [provider["head_ip"], *provider["worker_ips"]]
    left, silent = _leftovers(config, hosts)
    for host in left:
        tell(f"stopping Ray on {host}")
        _ssh(config, host, f"bash --login -c {shlex.quote(_STOP_RAY)}")
    deadline = time.monotonic() + _STOP_GRACE_S
    while left and time.monotonic() < deadline:
        time.sleep(1)
        left, _ = _leftovers(config, left)
    if left or silent:
        which = [f"{host} still runs Ray" for host in left] + [f"{host} cannot be asked ({why})" for host, why in silent.items()]  # fmt: skip
        raise EngineError(f"{path}: nothing of the cluster must run on, but {'; '.join(which)}. Run ray stop there")


def _leftovers(config: Config, hosts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the hosts on which Ray runs, and why others cannot be asked."""
    left: list[str] = []
    silent: dict[str, str] = {}
    for host in hosts:
        done = _ssh(config, host, _COUNT_RAY)
        count = done.stdout.strip()
        if not count.isdecimal():
            silent[host] = _end_of(done.stderr or done.stdout) or f"ssh ended with {done.returncode}"
        elif int(count) > 0:
            left.append(host)
    return left, silent


def _ssh(config: Config, host: str, command: str) -> "subprocess.CompletedProcess[str]":
    auth = config.get("auth", {})
    key = ["-i", str(Path(auth["ssh_private_key"]).expanduser())] if "ssh_private_key" in auth else []
    proxy = ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"] if "ssh_proxy_command" in auth else []
    # Ray's launcher does not check host keys either: it has just made the machines.
    options = [f"ConnectTimeout={_SSH_CONNECT_S}", "BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]  # fmt: skip
    flags = [word for option in options for word in ("-o", option)]
    target = f"{auth.get('ssh_user', 'ubuntu')}@{host}"
    try:
        return subprocess.run(  # noqa: S603
            ["ssh", *flags, *proxy, *key, target, command],  # noqa: S607
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 255, "", f"no answer within {_ASK_TIMEOUT_S:g} s")


@contextlib.contextmanager
def _output() -> Iterator[Any]:
    """A file for a command's output: SSH's connection outlives the command, and would hold a pipe open."""
    with tempfile.TemporaryFile() as file:
        yield file


def _said(output: Any) -> str:
    """Return all that a command has written so far."""
    output.seek(0)
    text: str = output.read().decode(errors="replace")
    return text


def _ray(arguments: list[str], timeout_s: float, output: Any) -> None:
    """Run one of Ray's commands, to its end.

    Raises:
        EngineError: If it does not end in time, or not with 0; says its last lines.
    """
    process = subprocess.Popen(  # noqa: S603
        [*_RAY, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise EngineError(f"ray {arguments[0]} must end within {timeout_s:g} s, got no end. Give --timeout-s more", retryable=True) from None  # fmt: skip
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        last = _end_of(_said(output), _LAST_LINES)
        if _NO_HEAD in last:
            raise EngineError(
                f"the cluster must be up, got: {_NO_HEAD} is not there. Start it: lepton-ray cluster up FILE"
            )
        raise EngineError(f"ray {shlex.join(arguments)} must succeed, got exit status {code}:\n{last}")


def _end_of(text: str, lines: int = 1) -> str:
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(kept[-lines:]) or "nothing"
