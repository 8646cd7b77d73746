"""The access log: a line for each request at both ways in, whatever clients send, and never more than may wait or be kept."""

import asyncio
import json
import re
import socket
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve import access
from lepton_ray.serve.access import AccessLog, Entry, format_line
from lepton_ray.serve.batching import Batcher
from lepton_ray.serve.endpoint import Endpoint, Limits, NoMeter
from lepton_ray.serve.front import Front, Variant
from lepton_ray.serve.guard import build_guard
from lepton_ray.serve.http import asgi_app
from lepton_ray.serve.tokens import create_token
from lepton_ray.spec.release import AuthSpec

from .conftest import LONG, RECORD, SHORT
from .test_listener import Gate, get, post

_KEYS = ["time", "id", "method", "path", "status", "ms", "request_bytes", "answer_bytes", "rows", "version", "token"]


def _entry(**changes: Any) -> Entry:
    values: dict[str, Any] = {
        "at": 1.5e9 + 0.25,
        "request_id": b"job-7",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "seconds": 0.0012345,
        "request_bytes": 10,
        "answer_bytes": 20,
        "rows": 3,
        "headers": ((b"content-type", b"application/json"), (b"x-model-version", b"0123456789ab")),
        "token": "mobile-app",
    }
    return Entry(**{**values, **changes})


def _write(log: AccessLog) -> None:
    asyncio.run(log.flush())


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert all(list(line) == _KEYS for line in lines)
    return lines


def test_a_line_says_who_asked_for_what_and_what_came_of_it() -> None:
    assert format_line(_entry()) == (
        b'{"time":"2017-07-14T02:40:00.250000Z","id":"job-7","method":"POST","path":"/predict","status":200,"ms":1.234,'
        b'"request_bytes":10,"answer_bytes":20,"rows":3,"version":"0123456789ab","token":"mobile-app"}\n'
    )
    gone = json.loads(format_line(_entry(method="", status=None, headers=(), token="")))
    assert (gone["method"], gone["status"], gone["version"], gone["token"]) == (None,) * 4


@pytest.mark.parametrize(
    "nasty", ['\r\n{"status":200}\r\n', "\0\x1b[2J\x7f", "\u2028\u2029\x85", "\udcff\ud800", '"\\']
)
def test_clients_cannot_put_lines_into_the_log(nasty: str) -> None:
    raw = nasty.encode("utf-8", "surrogateescape" if nasty == "\udcff" else "replace")
    line = format_line(_entry(path=f"/{nasty}", request_id=raw + b"\xff\xfe\r\n"))
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert not re.search(rb"[\x00-\x1f]", line[:-1])
    assert json.loads(line)["status"] == 200


def test_long_paths_and_ids_are_cut() -> None:
    line = json.loads(format_line(_entry(path="/" + "ü" * 9000, request_id=b"x" * 9000)))
    assert (len(line["path"]), len(line["id"])) == (256, 128)


@pytest.fixture
def log(tmp_path: Path) -> AccessLog:
    return AccessLog(tmp_path / "logs" / "access.log")


@pytest.fixture
def token(tmp_path: Path) -> str:
    return create_token(tmp_path / "tokens.json", "mobile-app", ("predict", "metadata"), None, None)


@pytest.fixture
def guard(tmp_path: Path, token: str) -> Any:
    return build_guard(AuthSpec(tokens_file=str(tmp_path / "tokens.json")), None, lambda what: None)[0]


def _facts(line: dict[str, Any]) -> tuple[Any, ...]:
    assert abs(datetime.fromisoformat(line["time"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert line["ms"] > 0
    return tuple(line[key] for key in ("id", "method", "path", "status", "request_bytes", "rows", "token"))


def test_the_listener_notes_every_request(listen: Any, tmp_path: Path, log: AccessLog, guard: Any, token: str) -> None:
    running = listen(access_log=log, guard=guard, limits=Limits(max_request_bytes=1000))
    client = running.connect()
    bearer, secret = b"Authorization: Bearer " + token.encode(), b"X-Secret: sesame"
    good, bad = post([RECORD] * 2, bearer, b"X-Request-Id: job-7", secret), post([{"age": -1}], bearer, secret)
    answers = [client.ask(good), client.ask(bad), client.ask(post([RECORD], b"X-Request-Id: 1"))]
    answers.append(client.ask(get(b"/v2/models/d%65mo?token=" + token.encode(), bearer)))
    client.send(b"HEAD /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    answers.append(client.read("HEAD"))
    answers.append(client.ask(get(b"/%0d%0a%7b%ff" + b"a" * 500, bearer)))
    answers.append(client.ask(post(b" " * 1001, bearer)))
    running.call(log.flush())
    lines = _lines(tmp_path / "logs" / "access.log")
    assert [line["answer_bytes"] for line in lines] == [len(answer.body) for answer in answers]
    assert [line["version"] for line in lines] == [running.endpoint.version] + [None] * 6
    ids = [answer.headers["x-request-id"] for answer in answers]
    size = len(json.dumps([RECORD] * 2))
    assert [_facts(line) for line in lines] == [
        ("job-7", "POST", "/predict", 200, size, 2, "mobile-app"),
        (ids[1], "POST", "/predict", 422, len(b'[{"age": -1}]'), 1, "mobile-app"),
        ("1", "POST", "/predict", 401, len(json.dumps([RECORD])), 0, None),
        (ids[3], "GET", "/v2/models/demo", 200, 0, 0, "mobile-app"),
        (ids[4], "HEAD", "/v2/health/live", 200, 0, 0, None),
        (ids[5], "GET", ("/\r\n{\ufffd" + "a" * 500)[:256], 404, 0, 0, "mobile-app"),
        (ids[6], "POST", "/predict", 413, 0, 0, "mobile-app"),
    ]
    written = (tmp_path / "logs" / "access.log").read_bytes()
    for private in (token.encode(), b"sesame", b"colour", b"income"):
        assert private not in written
    assert log.dropped == 0


def test_requests_that_get_no_answer_are_noted_too(
    listen: Any, tmp_path: Path, log: AccessLog, monkeypatch: Any
) -> None:
    running = listen(access_log=log, cost=LONG)
    gate = Gate(monkeypatch)
    gone, half, malformed = (running.connect() for _ in range(3))
    gone.send(post([RECORD]))
    assert gate.entered.wait(20)
    gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets, not only ends
    gone.close()
    half.send(post([RECORD])[:-5])
    half.close()
    assert malformed.ask(b"NO WAY\r\n\r\n").code == 400
    while len(log._entries) < 3:
        running.call(asyncio.sleep(0))
    gate.opened.set()
    while not running.meter.calls.count(("records", 200)):
        running.call(asyncio.sleep(0))
    running.call(log.flush())
    lines = _lines(tmp_path / "logs" / "access.log")
    told = [(line["method"], line["path"], line["status"]) for line in lines]
    assert sorted(told, key=str) == [("POST", "/predict", 400), ("POST", "/predict", None), (None, "", 400)]


def test_ray_serves_http_notes_the_same(
    call_app: Any, mixed_package: Path, tmp_path: Path, log: AccessLog, guard: Any, token: str
) -> None:
    endpoint = Endpoint(Predictor(open_package(mixed_package)), "demo", Limits(max_request_bytes=1000), NoMeter())
    client = call_app(asgi_app(Front.of(Variant(endpoint, Batcher(endpoint, SHORT, 10)), guard), log))
    headers = {"authorization": f"Bearer {token}", "x-request-id": "job-7"}
    answers = [
        client.post("/predict", json=[RECORD] * 2, headers=headers),
        client.post("/predict", json=[RECORD]),
        client.request("HEAD", "/v2/health/live?a=b"),
        client.post("/predict", content=b" " * 1001, headers=headers),
        client.post("/predict", json=[RECORD], headers={**headers, "accept": "text/event-stream"}),
    ]
    assert "event: end" in answers[4].text
    _write(log)
    lines = _lines(tmp_path / "logs" / "access.log")
    assert [line["answer_bytes"] for line in lines] == [len(answer.content) for answer in answers]
    assert [line["version"] for line in lines] == [endpoint.version, None, None, None, endpoint.version]
    size = len(answers[0].request.content)
    assert [_facts(line) for line in lines] == [
        ("job-7", "POST", "/predict", 200, size, 2, "mobile-app"),
        ("", "POST", "/predict", 401, 0, 0, None),
        ("", "HEAD", "/v2/health/live", 200, 0, 0, None),
        ("job-7", "POST", "/predict", 413, 1001, 0, "mobile-app"),
        ("job-7", "POST", "/predict", 200, len(json.dumps([RECORD], separators=(",", ":"))), 1, "mobile-app"),
    ]


def test_a_client_that_leaves_ray_serves_http_is_noted(mixed_package: Path, tmp_path: Path, log: AccessLog) -> None:
    endpoint = Endpoint(Predictor(open_package(mixed_package)), "demo", Limits(), NoMeter())
    app = asgi_app(Front.of(Variant(endpoint, Batcher(endpoint, SHORT, 10))), log)
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}

    async def leave() -> None:
        reading = asyncio.Event()

        async def receive() -> Any:
            reading.set()
            await asyncio.Event().wait()

        request = asyncio.create_task(app(scope, receive, None))  # type: ignore[arg-type]  # nothing is sent
        await reading.wait()
        request.cancel()
        await asyncio.wait([request])
        await log.flush()

    asyncio.run(leave())
    (line,) = _lines(tmp_path / "logs" / "access.log")
    assert (line["path"], line["status"]) == ("/predict", None)


def test_more_than_may_wait_are_dropped_and_counted(
    tmp_path: Path, log: AccessLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_MAX_WAITING", 100)
    for number in range(103):
        log.add(_entry(rows=number))
    assert log.dropped == 3
    _write(log)
    log.add(_entry(rows=7))
    _write(log)
    assert [line["rows"] for line in _lines(tmp_path / "logs" / "access.log")] == [*range(100), 7]
    assert log.dropped == 3


def test_a_full_file_is_put_aside_and_the_oldest_forgotten(
    tmp_path: Path, log: AccessLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_MAX_FILE_BYTES", 3 * len(format_line(_entry())))
    for number in range(9):
        log.add(_entry(rows=number))
        log.add(_entry(rows=number))
        _write(log)
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == ["access.log", *(f"access.log.{number}" for number in range(1, 5))]
    assert [[line["rows"] for line in _lines(file)] for file in files] == [[number] * 2 for number in (8, 7, 6, 5, 4)]


def test_a_log_that_cannot_be_written_is_said_once_and_costs_no_answer(
    tmp_path: Path, log: AccessLog, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file, where a folder should be")
    for _ in range(3):
        log.add(_entry())
        _write(log)
    assert log.dropped == 3
    assert len(caplog.records) == 1
    (tmp_path / "logs").unlink()
    log.add(_entry())
    _write(log)
    assert len(_lines(tmp_path / "logs" / "access.log")) == 1


def test_the_last_flush_waits_for_the_one_under_way(tmp_path: Path, log: AccessLog) -> None:
    """As the task that flushes is then cancelled."""

    async def end() -> None:
        for _ in range(1000):
            log.add(_entry())
        first = asyncio.create_task(log.flush())
        await asyncio.sleep(0)
        log.add(_entry(rows=9))
        await log.flush()
        assert first.done()

    asyncio.run(end())
    assert [line["rows"] for line in _lines(tmp_path / "logs" / "access.log")] == [3] * 1000 + [9]
