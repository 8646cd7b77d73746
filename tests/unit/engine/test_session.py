"""Ports for servers that start later."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lepton_ray.core.errors import EngineError
from lepton_ray.engine import session


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_PORTS", range(21000, 22000))
    monkeypatch.setattr(session, "_given", set(session._PORTS[:-1]))
    assert session.free_port() == 21999
    with pytest.raises(EngineError, match="a port from 21000 to 21999 must be free, got none"):
        session.free_port()


def test_what_needs_a_cluster_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    session.when_connected(lambda: done.append("before"))
    assert done == []
    monkeypatch.setattr(session, "is_connected", lambda: True)
    session.when_connected(lambda: done.append("at once"))
    assert done == ["at once"]
    monkeypatch.undo()
    session.close()
    assert session._waiting == [], "a run that never connects leaves nothing to the next"


def _answer(head: socket.socket) -> None:
    with contextlib.suppress(OSError), head.accept()[0] as connection:  # the test ends with them
        connection.sendall(b"\0")
        connection.recv(1 << 10)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_head_that_does_not_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Ray itself would wait for many minutes, in which nothing ends the process."""
    monkeypatch.setattr(session, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{head.getsockname()[1]}")
        with pytest.raises(EngineError, match=r"Ray must be reachable at .*, got: timed out\. Check RAY_ADDRESS"):
            session.connect()


def test_a_token_that_is_demanded_and_not_there_is_told(tmp_path: Path) -> None:
    """In a process of its own: Ray reads the mode when it is imported."""
    code = (
        "from lepton_ray.core.errors import EngineError\nfrom lepton_ray.engine.session import connect\n"
        "try:\n    connect()\nexcept EngineError as error:\n    print(error)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as head:
        threading.Thread(target=_answer, args=(head,), daemon=True).start()
        names = {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": f"127.0.0.1:{head.getsockname()[1]}", "HOME": str(tmp_path)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_TOKEN")}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**kept, **names}, capture_output=True, text=True, timeout=60, check=False
        )
    assert "no authentication token was found" in done.stdout, done.stderr
    assert "Check RAY_ADDRESS, and RAY_AUTH_TOKEN or ~/.ray/auth_token" in done.stdout


def test_a_cluster_that_does_not_start_in_time_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session, "_init", start)
    with pytest.raises(EngineError, match=r"at a new local cluster, got: The current node timed out .* too busy\?"):
        session.connect()
