"""``lepton-ray drift live`` against a Prometheus that answers what a test says."""

import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from lepton_ray.cli.app import app

Serve = Callable[[bytes], str]
_asked: list[str] = []


@pytest.fixture
def serve() -> Iterator[Serve]:
    body = b""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _asked.append(urllib.parse.unquote_plus(self.path.partition("query=")[2]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()

    def answer(what: bytes) -> str:
        nonlocal body
        body = what
        return f"http://127.0.0.1:{server.server_port}"

    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def sample(metric: str, side: str, feature: str, value: str) -> dict[str, Any]:
    labels = {"__name__": f"ray_lepton_drift_{metric}", "version": "7", "side": side, "feature": feature}
    return {"metric": labels, "value": [1.0, value]}


def vector(*samples: dict[str, Any]) -> bytes:
    return json.dumps({"data": {"result": samples}}).encode()


def run(url: str, *options: str) -> Any:
    return CliRunner().invoke(app, ["drift", "live", 'my "model"', "--prometheus", url, *options])


def test_columns_come_the_worst_first_with_what_is_beyond_its_bound(serve: Serve) -> None:
    url = serve(
        vector(
            sample("excess_psi", "input", "size", "0.1"),
            sample("js_distance", "input", "size", "0.2"),
            sample("excess_psi", "output", "label", "0.9"),
            sample("excess_missing", "input", "size", "0.11"),
        )
    )
    done = run(url, "--json", "--check")
    assert done.exit_code == 3
    first, second = json.loads(done.stdout)
    assert (first["name"], first["side"], first["alarms"]) == ("label", "output", ["excess_psi"])
    assert second == {
        "version": "7",
        "side": "input",
        "name": "size",
        "excess_psi": 0.1,
        "js_distance": 0.2,
        "excess_unseen": 0.0,
        "excess_missing": 0.11,
        "alarms": ["excess_missing"],
    }
    assert _asked[-1].endswith(r'model="my \"model\""})')


def test_without_drift_or_without_the_check_the_status_is_0(serve: Serve) -> None:
    drifted = vector(sample("excess_psi", "input", "size", "0.9"))
    assert run(serve(vector(sample("excess_psi", "input", "size", "0.2"))), "--check").exit_code == 0
    shown = run(serve(drifted))
    assert shown.exit_code == 0
    assert "excess_psi" in shown.stdout


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"<html>", b'{"data": {"result": [{"metric": {}, "value": [0, "1"]}]}}']
)
def test_what_is_no_prometheus_is_said(serve: Serve, body: bytes) -> None:
    done = run(serve(body))
    assert done.exit_code == 1
    assert "Prometheus must answer at" in done.stderr


def test_a_model_that_nobody_tells_of_is_said(serve: Serve) -> None:
    done = run(serve(vector()))
    assert done.exit_code == 1
    assert "must have windows of 'my \"model\"', got none" in done.stderr


def test_an_address_where_nothing_answers_is_said() -> None:
    done = run("http://user:secret@127.0.0.1:1")
    assert done.exit_code == 1
    assert "secret" not in done.stderr
