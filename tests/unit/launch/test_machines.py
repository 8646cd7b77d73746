"""The commands around Ray's own, with a stand-in for ``ray`` that says and does what the real one did in each case."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ray.core.errors import EngineError, SpecError
from lepton_ray.launch import machines

CONFIG: dict[str, Any] = {
    "cluster_name": "test",
    "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]},
    "auth": {"ssh_user": "ray"},
    "file_mounts": {},
}
# Ray's launcher tells what it does around what was asked, and its terminals end lines as terminals do.
NOISE = "2026-01-01 00:00:00,000 INFO local.py:1 -- [head] fetched\r\nShared connection to 10.0.0.1 closed.\r\n"


class Ray:
    """What ``ray`` is to say, by its subcommand, and with which exit status."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "ray.py"
        script.write_text(
            "import json, pathlib, sys, time\n"
            f"said = json.loads((pathlib.Path({str(folder)!r}) / f'{{sys.argv[1]}}.json').read_text())\n"
            "sys.stdout.write(said['text'])\nsys.stdout.flush()\ntime.sleep(said['seconds'])\nsys.exit(said['code'])\n"
        )
        self.command = (sys.executable, str(script))

    def says(self, subcommand: str, text: str = "", code: int = 0, seconds: float = 0) -> None:
        content = {"text": text, "code": code, "seconds": seconds}
        (self.folder / f"{subcommand}.json").write_text(json.dumps(content))

    def lists(self, *addresses: str, dead: tuple[str, ...] = ()) -> None:
        nodes = [
            {
                "node_ip": ip,
                "is_head_node": ip == "10.0.0.1",
                "state": "DEAD" if ip in dead else "ALIVE",
                "resources_total": {"CPU": 2.0, "memory": "3.0 GiB"},
            }
            for ip in (*addresses, *dead)
        ]
        listed = json.dumps(nodes, indent=2).replace("\n", "\r\n")
        mark = machines._MARK
        echoed = f"Running `echo {mark}; ray list nodes; echo {mark}`\n"
        self.says("exec", f"{echoed}{NOISE}{mark}\r\n{listed}\r\n{mark}\r\n{NOISE}")


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray(tmp_path)
    monkeypatch.setattr(machines, "_RAY", made.command)
    monkeypatch.setattr(machines, "_POLL_S", 0.01)
    made.says("up", "done")
    made.says("down", "No nodes remaining.")
    return made


def up(timeout_s: float = 30.0) -> tuple[machines.ClusterStatus, list[str]]:
    told: list[str] = []
    return machines.up(Path("a.yaml"), CONFIG, timeout_s, told.append), told


def test_up_waits_for_all_machines(ray: Ray) -> None:
    ray.lists("10.0.0.2", "10.0.0.1", "10.0.0.3")
    found, told = up()
    assert [node.ip for node in found.nodes] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert found.nodes[0].resources == {"CPU": 2.0}
    assert told == ["the head is up", "3 of 3 machines are alive"]


def test_fewer_machines_than_asked_is_no_success(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.lists("10.0.0.1", "10.0.0.2", dead=("10.0.0.3",))
    clock = SimpleNamespace(monotonic=partial(next, itertools.count(0, 20)), sleep=lambda seconds: None)
    monkeypatch.setattr(machines, "time", clock)
    with pytest.raises(EngineError, match=r"3 machines must be alive within 30 s, got 2. See ray monitor a.yaml"):
        up()
    assert not machines.status(Path("a.yaml"), CONFIG).is_whole


def test_workers_without_a_head_are_not_whole() -> None:
    workers = tuple(machines.Node(f"10.0.0.{n}", is_head=False, resources={}) for n in range(3))
    assert not machines.ClusterStatus(workers, num_asked=3).is_whole


@pytest.mark.parametrize(
    ("text", "told"), [(NOISE, "closed"), ("", "nothing"), (f"{machines._MARK}\n[oops node_ip ]\n", "oops")]
)
def test_a_head_that_lists_no_nodes_is_an_error(ray: Ray, text: str, told: str) -> None:
    ray.says("exec", text)
    with pytest.raises(EngineError, match=rf"the head must list its nodes, got: .*{told}"):
        machines.status(Path("a.yaml"), CONFIG)


def test_a_cluster_without_a_head_is_told_how_to_start(ray: Ray) -> None:
    ray.says(
        "exec",
        "Traceback (most recent call last):\n  File x\nRuntimeError: Head node of cluster (a) not found!\n",
        code=1,
    )
    with pytest.raises(EngineError) as caught:
        machines.status(Path("a.yaml"), CONFIG)
    assert (
        str(caught.value)
        == "the cluster must be up, got: Head node of cluster is not there. Start it: lepton-ray cluster up FILE"
    )


def test_a_failing_command_is_told_with_its_last_lines(ray: Ray) -> None:
    ray.says("up", "first\n" + "\n".join(f"line {n}" for n in range(30)) + "\nFailed to setup head node.\n", code=1)
    with pytest.raises(EngineError, match="got exit status 1:\nline 16\n") as caught:
        up()
    assert str(caught.value).endswith("Failed to setup head node.")


def test_a_command_that_hangs_is_ended(ray: Ray) -> None:
    ray.says("up", seconds=600)
    with pytest.raises(EngineError, match=r"ray up must end within 0.5 s"):
        up(timeout_s=0.5)


def test_files_that_machines_need_must_be_there(ray: Ray, tmp_path: Path) -> None:
    mounts = {"~/.ray/auth_token": str(tmp_path / "auth_token"), "~/x": str(tmp_path / "x"), "~/y": str(tmp_path)}
    with pytest.raises(SpecError) as caught:
        machines.up(Path("a.yaml"), {**CONFIG, "file_mounts": mounts}, 30, lambda text: None)
    token, other = caught.value.problems
    assert "Run ray get-auth-token --generate" in token
    assert other.startswith("file_mounts.~/x must name a file that is here")


def test_down_that_ray_has_not_finished_is_no_success(ray: Ray) -> None:
    ray.says("down", "Requested 2 nodes to shut down.")
    with pytest.raises(EngineError, match="ray down must end with 'No nodes remaining', got: Requested 2 nodes"):
        machines.down(Path("a.yaml"), CONFIG, 30, lambda text: None)


class Hosts:
    """Machines as SSH finds them: how many of Ray's processes each runs, None for one that does not answer."""

    def __init__(self, **counts: int | None) -> None:
        self.counts = {name.replace("_", "."): count for name, count in counts.items()}
        self.stops = True

    def ssh(self, config: Any, host: str, command: str) -> Any:
        count = self.counts[host]
        if count is None:
            return machines.subprocess.CompletedProcess(command, 255, "", "No route to host")
        if "ray stop" in command and self.stops:
            self.counts[host] = 0
        return machines.subprocess.CompletedProcess(command, 0, f"{count}\n", "")


def down(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    config = {**CONFIG, "provider": {"type": "local", "head_ip": "a.1", "worker_ips": ["a.2", "a.3"]}}
    monkeypatch.setattr(machines, "_ssh", hosts.ssh)
    monkeypatch.setattr(machines, "_STOP_GRACE_S", 0.1)
    machines.down(Path("a.yaml"), config, 30, told.append)
    return told


def test_what_ray_down_leaves_is_stopped(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    told = down(Hosts(a_1=0, a_2=1, a_3=0), monkeypatch)
    assert told == ["ray down has ended", "stopping Ray on a.2"]


def test_what_cannot_be_stopped_or_asked_is_no_success(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(a_1=2, a_2=None, a_3=0)
    hosts.stops = False
    with pytest.raises(EngineError, match=r"but a.1 still runs Ray; a.2 cannot be asked \(No route to host\)"):
        down(hosts, monkeypatch)


def test_machines_that_a_coordinator_has_given_are_its_own_to_look_at(ray: Ray) -> None:
    config = {**CONFIG, "provider": {"type": "local", "coordinator_address": "10.0.0.9:1234"}}
    told: list[str] = []
    machines.down(Path("a.yaml"), config, 30, told.append)
    assert told == ["ray down has ended"]


def test_a_cloud_is_asked_for_its_least_machines() -> None:
    kinds = {"head": {"node_config": {}}, "worker": {"min_workers": 2}, "other": {}}
    assert machines.num_asked({"provider": {"type": "aws"}, "available_node_types": kinds}) == 3
    assert machines.num_asked(CONFIG) == 3


def test_what_ends_the_command_ends_what_it_has_started(tmp_path: Path) -> None:
    """Ray's commands are sessions of their own: a signal to ours does not reach them."""
    stand_in, pid_file = tmp_path / "ray.py", tmp_path / "pid"
    stand_in.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'new')!r}).write_text(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'new')!r}, {str(pid_file)!r})\ntime.sleep(600)\n"
    )
    file = Path(__file__).parent.parent.parent.parent / "cluster/ray/local.yaml"
    code = (
        "import sys\nfrom lepton_ray.cli.app import app\nfrom lepton_ray.launch import machines\n"
        f"machines._RAY = (sys.executable, {str(stand_in)!r})\napp(['cluster', 'down', {str(file)!r}])\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not pid_file.exists():
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = int(pid_file.read_text())
    try:
        command.terminate()
        assert "interrupted" in command.communicate(timeout=60)[1]
        assert command.returncode == 130
        with pytest.raises(ProcessLookupError):
            os.kill(started, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(started, signal.SIGKILL)
