"""The doctor: each fault by itself is found on its node, with what mends it; a healthy cluster has no finding but ok."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lepton_ray.cli.app import app
from lepton_ray.launch.doctor import checks, on_ray
from lepton_ray.launch.doctor.checks import Finding
from lepton_ray.launch.doctor.facts import NodeFacts, Peer, find_unreachable, library_versions, try_storage

GIB = 1 << 30
HEALTHY = NodeFacts(
    node="10.0.0.1",
    versions=dict.fromkeys(library_versions(), "1.0"),
    auth_mode="token",
    has_token=True,
    object_store_bytes=4 * GIB,
    memory_bytes=16 * GIB,
    shm_bytes=8 * GIB,
    spill_folder="/tmp/ray/session",
    spill_free_bytes=50 * GIB,
    spill_total_bytes=100 * GIB,
)
NODES = [replace(HEALTHY, node=f"10.0.0.{number}") for number in (1, 2, 3)]


def _judge(nodes: list[NodeFacts]) -> list[Finding]:
    functions: list[Callable[[list[NodeFacts]], list[Finding]]] = [
        checks.check_versions,
        checks.check_libraries,
        checks.check_token,
        checks.check_ports,
        checks.check_spill,
        checks.check_object_store,
        lambda nodes: checks.check_storage(nodes, "/shared", []),
    ]
    return [finding for function in functions for finding in function(nodes)]


def test_a_healthy_cluster_is_well() -> None:
    findings = _judge(NODES)
    assert {finding.status for finding in findings} == {"ok"}
    assert len(findings) == 7


@pytest.mark.parametrize(
    ("fault", "check", "status", "seen", "mend"),
    [
        (
            {"versions": {**HEALTHY.versions, "torch": "2.0"}},
            "versions",
            "error",
            "torch 2.0 (others: 1.0)",
            "pip install",
        ),
        (
            {"versions": {**HEALTHY.versions, "onnx": None}},
            "versions",
            "error",
            "onnx missing (others: 1.0)",
            "pip install",
        ),
        ({"auth_mode": None}, "token", "warning", "whoever reaches its ports runs code", "ray get-auth-token"),
        ({"has_token": False}, "token", "error", "there is no token", "ray get-auth-token"),
        (
            {"unreachable": ["metrics of 10.0.0.3"]},
            "ports",
            "error",
            "cannot connect to metrics",
            "--metrics-export-port",
        ),
        ({"spill_free_bytes": 10 * GIB}, "spill disk", "warning", "10.0 GiB free, 10%", "--object-spilling-directory"),
        ({"spill_free_bytes": 1 * GIB}, "spill disk", "error", "1.0 GiB free, 1%", "--object-spilling-directory"),
        ({"shm_bytes": 1 * GIB}, "object store", "error", "puts it on the disk", "mount -o remount"),
        ({"object_store_bytes": GIB // 2}, "object store", "warning", "spill early", f"--object-store-memory={GIB}"),
        ({"storage_problem": "Read-only file system"}, "storage", "error", "/shared: Read-only file system", "mount"),
    ],
)
def test_a_fault_is_found_on_its_node(fault: dict[str, Any], check: str, status: str, seen: str, mend: str) -> None:
    nodes = [NODES[0], replace(NODES[1], **fault), NODES[2]]
    (finding,) = (finding for finding in _judge(nodes) if finding.status != "ok")
    assert (finding.check, finding.node, finding.status) == (check, "10.0.0.2", status)
    assert seen in finding.seen
    assert mend in finding.mend


def test_a_small_machine_needs_no_large_object_store() -> None:
    nodes = [replace(HEALTHY, object_store_bytes=GIB // 2, memory_bytes=2 * GIB)]
    assert [finding.status for finding in checks.check_object_store(nodes)] == ["ok"]


def test_a_storage_that_is_another_on_each_node_is_found() -> None:
    """Every node wrote without an error, but the caller sees none of a node's files: a folder of its own, not a mount."""
    (finding,) = checks.check_storage(NODES, "/shared", ["10.0.0.3"])
    assert (finding.node, finding.status) == ("10.0.0.3", "error")
    assert "not seen elsewhere" in finding.seen


def test_libraries_that_are_missing_are_told_with_their_extras() -> None:
    nodes = [replace(node, versions={**node.versions, "jax": None, "torch": None}) for node in NODES]
    (finding,) = checks.check_libraries(nodes)
    assert finding.status == "ok"
    assert finding.mend.startswith("pip install 'lepton-ray[jax,torch]'")


@pytest.mark.parametrize(("ahead_s", "status"), [(0.0, "ok"), (0.9, "ok"), (5.0, "error"), (-5.0, "error")])
def test_clocks(ahead_s: float, status: str) -> None:
    """The answer took 2 s: a clock within them may be right, one outside is surely wrong by what is left."""
    skew = on_ray._skew_s(100.0, 101.0 + ahead_s * 2, 102.0)
    (finding,) = checks.check_clocks({"10.0.0.2": skew})
    assert finding.status == status
    if status == "error":
        assert f"{ahead_s * 2 + (-1 if ahead_s > 0 else 1):+.1f} s" in finding.seen


def test_ports_that_nothing_answers_at_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = Peer("a", "metrics", "127.0.0.1", server.getsockname()[1])
        gone = Peer("b", "object manager", "127.0.0.1", 1)
        assert find_unreachable([here, gone]) == ["object manager of b (127.0.0.1:1)"]


def test_storage_is_written_where_the_caller_wrote(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/caller").touch()
    assert try_storage(str(tmp_path), "m", "10.0.0.1") is None
    assert (tmp_path / "m/10.0.0.1").is_file()


def test_storage_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    assert try_storage(str(tmp_path), "m", "a") == "a file that another machine wrote there is not seen"
    (tmp_path / "m/a").mkdir(parents=True)
    (tmp_path / "m/caller").touch()
    assert "a" in str(try_storage(str(tmp_path), "m", "a"))
    assert "unknown" in str(try_storage("unknown://user:pw@x", "m", "a"))
    assert "pw" not in str(try_storage("unknown://user:pw@x", "m", "a"))


class _Server(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, bytes]]

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path.partition("?")[0], (404, b""))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[str, int, bytes], str]]:
    """Answer one path with a status and a body; returns the server's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()

    def answer(path: str, status: int, body: bytes) -> str:
        _Server.answers = {path: (status, body)}
        return f"http://127.0.0.1:{server.server_port}"

    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def _vector(*values: str) -> bytes:
    return json.dumps({"data": {"result": [{"metric": {}, "value": [1.0, value]} for value in values]}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "wanted", "seen"),
    [
        (200, _vector("3"), "ok", "scrapes 3 nodes of Ray"),
        (200, _vector(), "warning", "scrapes no node of Ray"),
        (200, b"<html>", "error", "Expecting value"),
        (200, b"[]", "error", "no Prometheus answers there"),
        (503, b"", "error", "status 503"),
    ],
)
def test_prometheus(serve: Any, status: int, body: bytes, wanted: str, seen: str) -> None:
    (finding,) = checks.check_prometheus(serve("/api/v1/query", status, body))
    assert finding.status == wanted
    assert seen in finding.seen
    assert bool(finding.mend) == (wanted != "ok")


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (200, b'{"database": "ok", "version": "11.0.0"}', "ok"),
        (200, b'{"database": "failing"}', "error"),
        (200, b"[]", "error"),
        (502, b"", "error"),
    ],
)
def test_grafana(serve: Any, status: int, body: bytes, wanted: str) -> None:
    (finding,) = checks.check_grafana(serve("/api/health", status, body))
    assert finding.status == wanted


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "file:///etc/passwd", "127.0.0.1:9090"])
def test_an_address_where_nothing_answers_is_an_error_with_its_command(url: str) -> None:
    for finding in (*checks.check_prometheus(url), *checks.check_grafana(url)):
        assert finding.status == "error"
        assert finding.mend


def doctor(address: str) -> list[dict[str, Any]]:
    """Return what the doctor finds of a cluster that it cannot look at."""
    done = subprocess.run(
        [sys.executable, "-m", "lepton_ray", "doctor", "--grafana", "http://127.0.0.1:1", "--json"],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert [(one["check"], one["status"]) for one in found] == [("cluster", "error"), ("grafana", "error")]
    return found


def test_a_cluster_that_is_not_there_is_a_finding() -> None:
    assert (
        "Ray must be reachable at 127.0.0.1:1, got: [Errno 111] Connection refused" in doctor("127.0.0.1:1")[0]["seen"]
    )


@pytest.mark.slow
def test_a_head_that_does_not_answer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, and that is all."""
    monkeypatch.setattr("lepton_ray.cli.doctor._CONNECT_S", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout)
    assert (found["check"], found["status"]) == ("cluster", "error")
    assert f"Ray must answer at {address} within 8 s, got no answer" in found["seen"]
    assert found["mend"]


def _store_of(finding: Finding, node: NodeFacts) -> NodeFacts:
    """Start the node again as a finding on its object store says: what the store takes, tasks lack."""
    size = int(finding.mend.partition("--object-store-memory=")[2])
    return replace(node, object_store_bytes=size, memory_bytes=node.memory_bytes + node.object_store_bytes - size)


@pytest.mark.parametrize("spare", range(10))
def test_what_mends_a_small_object_store_mends_it(spare: int) -> None:
    node = replace(HEALTHY, object_store_bytes=80 << 20, memory_bytes=4 * GIB + spare)
    (finding,) = checks.check_object_store([node])
    assert finding.status == "warning"
    assert [one.status for one in checks.check_object_store([_store_of(finding, node)])] == ["ok"]


@pytest.mark.parametrize("odd", [0, 1])
def test_a_node_of_another_release_knows_other_libraries(odd: int) -> None:
    older = replace(HEALTHY, node="10.0.0.9", versions={"python": "1.0", "lepton_ray": "0.9", "forgotten": "1.0"})
    nodes = [HEALTHY, replace(HEALTHY, node="10.0.0.2"), HEALTHY]
    nodes.insert(odd * 2, older)
    (finding,) = checks.check_versions(nodes)
    assert (finding.node, finding.status) == ("10.0.0.9", "error")
    assert "lepton_ray 0.9 (others: 1.0)" in finding.seen
    assert "torch" in checks.check_libraries(nodes)[0].seen.partition("not everywhere:")[2]


@pytest.mark.parametrize("check", [checks.check_prometheus, checks.check_grafana])
@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://127.0.0.1/a b", "http://u:secret@127.0.0.1:1", "http://[::1", "http://u:secret@h"])  # fmt: skip
def test_an_address_that_is_none_is_a_finding_without_its_password(
    check: Callable[[str], list[Finding]], url: str
) -> None:
    (finding,) = check(url)
    assert finding.status == "error"
    assert "secret" not in str(finding)


def test_what_speaks_no_http_is_a_finding() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        (finding,) = checks.check_grafana(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert finding.status == "error"


def test_the_password_of_a_storage_that_cannot_be_written_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray.ray, "nodes", list)
    monkeypatch.setattr(on_ray, "_gather", lambda *_: ([], []))
    (finding,) = on_ray.examine("ftp://user:secret@host/runs")
    assert finding.check == "storage"
    assert "secret" not in str(finding)
