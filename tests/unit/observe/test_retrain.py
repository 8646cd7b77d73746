"""An alert starts a retraining job: which ones, how soon again, how often, and whose."""

import contextlib
import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lepton_ray.cli.app import app
from lepton_ray.core.files import write_json
from lepton_ray.observe import retrain as module
from lepton_ray.observe.retrain import Retrainer, RetrainRule

_RULE = RetrainRule("sizes", ("LeptonInputDrift",), cooldown_s=3600, max_per_week=2)
_DAY_S = 86400.0
_NOW = 1e9


def message(name: str = "LeptonInputDrift", model: str = "sizes", status: str = "firing") -> dict[str, Any]:
    return {"alerts": [{"status": status, "labels": {"alertname": name, "model": model}}]}


@pytest.mark.parametrize(
    ("body", "starts", "reason"),
    [
        (message(), [], None),
        (message(), [_NOW - 2 * 3600], None),
        (message(), [_NOW - 8 * _DAY_S, _NOW - 7.5 * _DAY_S, _NOW - 2 * _DAY_S], None),
        (message(status="resolved"), [], "no alert"),
        (message(name="LeptonErrorRateHigh"), [], "no alert"),
        (message(model="others"), [], "no alert"),
        (message(), [_NOW - 1800], "0.5 h ago"),
        (message(), [_NOW - 1800, _NOW + 365 * _DAY_S], "0.5 h ago"),
        (message(), [_NOW + _DAY_S, _NOW + 365 * _DAY_S], None),  # the clock was set back
        (message(), [_NOW - 3 * _DAY_S, _NOW - 2 * _DAY_S], "2 starts within a week"),
        ([], [], "no alert"),
        ({"alerts": [None, {}, {"labels": 3}]}, [], "no alert"),
        ({"alerts": 5}, [], "no alert"),
    ],
)
def test_the_rule(body: Any, starts: list[float], reason: str | None) -> None:
    found = _RULE.refuse(body, starts, _NOW)
    assert found is None if reason is None else reason in str(found)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def server(place: Path) -> Iterator[Retrainer]:
    code = f"open({str(place / 'runs')!r}, 'a').write('x')"
    made = Retrainer(0, "secret", _RULE, [sys.executable, "-c", code], place / "starts.json")
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def post(server: Retrainer, body: bytes, path: str = "/alerts", token: str = "secret") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request("POST", path, body, {"authorization": f"Bearer {token}"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_an_alert_runs_the_command_once(server: Retrainer, place: Path) -> None:
    body = json.dumps(message()).encode()
    assert post(server, body) == (200, {"started": True})
    status, again = post(server, body)
    assert (status, again["started"]) == (200, False)
    assert (place / "runs").read_text() == "x"


def test_alerts_that_come_together_start_one_job(
    server: Retrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    read = module.read_starts

    def read_together(path: Path) -> list[float]:
        starts = read(path)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # for one that reads before the first has written
        return starts

    monkeypatch.setattr(module, "read_starts", read_together)
    body = json.dumps(message()).encode()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: post(server, body)[1]["started"], range(2)))
    assert sorted(answers) == [False, True]
    assert (place / "runs").read_text() == "x"


def test_starts_are_remembered(server: Retrainer, place: Path) -> None:
    write_json(place / "starts.json", [0.0])
    assert post(server, json.dumps(message()).encode())[1] == {"started": True}
    assert len(json.loads((place / "starts.json").read_text())) == 1  # the one of 1970 is forgotten


def test_a_file_of_starts_that_is_broken_is_told(
    server: Retrainer, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in ("[1.0,", "3", '["1.0"]', "[null]"):
        (place / "starts.json").write_text(content)
        assert post(server, json.dumps(message()).encode())[0] == 500
    assert "Mend or remove the file" in caplog.text
    assert not (place / "runs").exists()


def test_a_slow_caller_keeps_nobody_waiting(server: Retrainer, place: Path) -> None:
    with socket.create_connection(server.server_address[:2], timeout=20) as slow:
        slow.sendall(b"POST /alerts HTTP/1.1\r\n")
        assert post(server, json.dumps(message()).encode())[1] == {"started": True}


def test_only_who_has_the_token_is_heard(server: Retrainer, place: Path) -> None:
    body = json.dumps(message()).encode()
    assert post(server, body, token="secreT")[0] == 401
    assert post(server, body, path="/other")[0] == 404
    assert post(server, b"{")[0] == 400
    assert post(server, b"")[0] == 400
    assert post(server, b"[" * 100_000)[0] == 400
    assert not (place / "runs").exists()


def test_a_command_that_fails_is_not_run_again_at_once(place: Path) -> None:
    made = Retrainer(0, "secret", _RULE, [sys.executable, "-c", "raise SystemExit(3)"], place / "starts.json")
    assert "status 3" in made.take(message())["reason"]
    assert "ago" in made.take(message())["reason"]
    made.server_close()
    missing = Retrainer(0, "secret", _RULE, [str(place / "nothing")], place / "others.json")
    assert "could not be run" in missing.take(message())["reason"]
    missing.server_close()


def test_the_command_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "short"):
        monkeypatch.delenv("HOOK", raising=False)
        if value is not None:
            monkeypatch.setenv("HOOK", value)
        done = CliRunner().invoke(app, ["drift", "retrain", "--model", "sizes", "--token-env", "HOOK", "--", "true"])
        assert done.exit_code == 2
        assert "HOOK must be set to a token" in done.output


@pytest.mark.parametrize(
    ("content", "command", "told"),
    [
        ("{}", "true", "--starts must be a file of times that can be written"),
        ("[", "true", "--starts must be a file of times that can be written"),
        (None, "true", "--starts must be a file of times that can be written"),
        ("[]", "no-such-program", "COMMAND must begin with a program, got 'no-such-program'"),
    ],
)
def test_what_would_fail_on_the_day_of_the_alert_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, command: str, told: str
) -> None:
    monkeypatch.setenv("HOOK", "a" * 16)
    starts = tmp_path / "starts.json" if content is not None else tmp_path / "none" / "starts.json"
    if content is not None:
        starts.write_text(content)
    else:
        (tmp_path / "none").write_text("a file where a folder should be")
    done = CliRunner().invoke(
        app,
        ["drift", "retrain", "--model", "sizes", "--token-env", "HOOK", "--starts", str(starts), "--", command],
    )
    assert done.exit_code in (1, 2)
    assert told in " ".join(done.output.split())


def test_a_command_may_write_what_is_no_text(place: Path) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'caf\xe9')"
    with Retrainer(0, "secret", _RULE, [sys.executable, "-c", code], place / "starts.json") as made:
        assert made.take(message()) == {"started": True}
