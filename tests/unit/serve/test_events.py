"""Server-sent events at ``POST /predict``: the answers that come whole otherwise, as they are done, and no faster than they are read."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.core.errors import RecordError
from lepton_ray.core.status import HTTP_OK
from lepton_ray.serve.access import AccessLog
from lepton_ray.serve.endpoint import Call, Limits, NoMeter
from lepton_ray.serve.events import answer_in_events
from lepton_ray.spec.rollout import ModelRef, TrafficPlan
from tests.unit.serve.conftest import make_holding

from .conftest import LONG, OLD, Client, Running, build_http_app
from .test_listener import get, post

_ACCEPT = b"Accept: text/event-stream"
_SIZES = "SML"
_TIMEOUT_S = 60


def records(count: int) -> list[dict[str, Any]]:
    return [{"age": row % 120, "income": 10.0 * row, "colour": "red", "size": _SIZES[row % 3]} for row in range(count)]


def parse(text: bytes) -> list[tuple[str, int, Any]]:
    """Return name, id and data of each event."""
    events = []
    for block in text.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert list(fields) == ["event", "id", "data"]
        events.append((fields["event"], int(fields["id"]), json.loads(fields["data"])))
    return events


def whole_of(events: list[tuple[str, int, Any]]) -> list[Any]:
    """Return the predictions of a whole stream."""
    *parts, (name, rows, data) = events
    assert (name, data) == ("end", {"rows": rows})
    predictions: list[Any] = []
    for name, first_row, data in parts:
        assert (name, first_row) == ("predictions", len(predictions))
        predictions += data["predictions"]
    assert len(predictions) == rows
    return predictions


def expected(running: Running, given: Any) -> list[Any]:
    return list(json.loads(running.endpoint.ask("POST", "/predict", json.dumps(given).encode()).body)["predictions"])


def _wait_until(is_so: Callable[[], bool]) -> None:
    condition = threading.Condition()
    with condition:
        assert any(is_so() or condition.wait(0.02) for _ in range(_TIMEOUT_S * 50))


@pytest.mark.parametrize("count", [1, 16, 17, 500])
def test_events_hold_what_comes_whole_otherwise(listen: Any, count: int) -> None:
    running = listen()
    client = running.connect()
    answer = client.ask(post(records(count), _ACCEPT))
    assert (answer.code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert (answer.headers["transfer-encoding"], answer.headers["cache-control"]) == ("chunked", "no-store")
    assert answer.headers["x-model-version"] == running.endpoint.version
    events = parse(answer.body)
    assert len(events) > (2 if count > 16 else 1)
    assert whole_of(events) == expected(running, records(count))
    assert client.ask(get(b"/v2/health/live")).code == 200
    _wait_until(lambda: (running.front.num_streams, running.listener.buffered_bytes) == (0, 0))


def test_a_table_is_answered_in_events_too(listen: Any) -> None:
    running = listen(cost=LONG)
    rows = [f"{one['age']},{one['income']},red,{one['size']}" for one in records(40)]
    body = "\n".join(["age,income,colour,size", *rows]).encode()
    answer = running.ask(post(body, _ACCEPT, b"Content-Type: text/csv"))
    assert whole_of(parse(answer.body)) == expected(running, records(40))


@pytest.mark.parametrize(
    "raw",
    [
        post([{"age": -1, "size": "S"}], _ACCEPT),
        post(b"[", _ACCEPT),
        post([], _ACCEPT),
        post({"inputs": []}, _ACCEPT, path=b"/v2/models/demo/infer"),
    ],
)
def test_what_refuses_the_first_rows_is_an_ordinary_answer(listen: Any, raw: bytes) -> None:
    running = listen()
    client = running.connect()
    answer = client.ask(raw)
    plain = client.ask(raw.replace(_ACCEPT, b"Accept: application/json"))
    assert (answer.code, answer.body) == (plain.code, plain.body)
    assert answer.code in (400, 422)
    assert running.front.num_streams == 0


def test_a_later_fault_is_an_event_that_counts_from_the_first_row(listen: Any) -> None:
    given = records(200)
    given[150]["age"] = -1
    *parts, (name, _, fault) = parse(listen().ask(post(given, _ACCEPT)).body)
    assert name == "error"
    assert fault["status"] == 422
    assert fault["error"].startswith("records[150].age must be")
    assert 0 < sum(len(data["predictions"]) for _, _, data in parts) <= 150


def test_only_who_likes_events_most_gets_them(listen: Any) -> None:
    client = listen().connect()
    for accept in (
        b"application/json, text/event-stream",
        b"text/event-stream;q=0.5, text/csv",
        b"text/event-stream;q=0",
    ):
        assert client.ask(post(records(1), b"Accept: " + accept)).headers["content-type"] != "text/event-stream"
    old = b"POST /predict HTTP/1.0\r\nAccept: text/event-stream\r\nContent-Length: 2\r\n\r\n[]"
    assert client.ask(old).headers["content-type"] == "application/json"


def test_answers_keep_their_order(listen: Any) -> None:
    running = listen()
    client = running.connect()
    client.send(get(b"/v2") + post(records(100), _ACCEPT) + post(records(50), _ACCEPT) + get(b"/nothing"))
    assert client.read().code == 200
    assert len(whole_of(parse(client.read().body))) == 100
    assert len(whole_of(parse(client.read().body))) == 50
    assert client.read().code == 404


def test_a_client_that_sends_no_more_gets_all(listen: Any) -> None:
    client = listen().connect()
    client.send(post(records(300), _ACCEPT))
    client.socket.shutdown(socket.SHUT_WR)
    assert len(whole_of(parse(client.read().body))) == 300
    assert client.is_closed()


def test_a_client_that_asks_for_the_end_gets_it_behind_the_events(listen: Any) -> None:
    client = listen().connect()
    answer = client.ask(post(records(100), _ACCEPT, b"Connection: close"))
    assert answer.headers["connection"] == "close"
    assert len(whole_of(parse(answer.body))) == 100
    assert client.is_closed()


@pytest.fixture
def slow(listen: Any) -> Iterator[tuple[Running, Client]]:
    """A client whose system takes little in advance, and a server whose system keeps little."""
    running = listen(limits=Limits(max_rows=1 << 20, max_request_bytes=64 << 20))
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", running.port))
    raw.settimeout(_TIMEOUT_S)
    client = Client.__new__(Client)
    client.socket = raw
    yield running, client
    raw.close()


def test_rows_are_not_computed_before_the_last_are_read(slow: tuple[Running, Client]) -> None:
    running, client = slow
    client.send(post(records(30_000), _ACCEPT))
    _wait_until(lambda: any(one._send_by is not None for one in running.listener._connections))
    running.call(asyncio.sleep(0))
    (sums,) = [sum(batch.rows for batch in running.endpoint.statistics._batches.values())]
    assert sums < 15_000
    answer = client.read()
    assert len(whole_of(parse(answer.body))) == 30_000


def test_a_client_that_goes_ends_the_work(slow: tuple[Running, Client]) -> None:
    running, client = slow
    client.send(post(records(30_000), _ACCEPT))
    _wait_until(lambda: any(one._send_by is not None for one in running.listener._connections))
    client.socket.close()
    _wait_until(lambda: running.front.num_streams == 0 and not running.listener._connections)
    _wait_until(lambda: running.listener.buffered_bytes == 0)


def test_a_client_that_takes_nothing_is_cut_off(listen: Any) -> None:
    running = listen(limits=Limits(max_rows=1 << 20, max_request_bytes=64 << 20))
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = running.connect()
    client.send(post(records(60_000), _ACCEPT))
    _wait_until(lambda: any(one._send_by is not None for one in running.listener._connections))
    assert running.front.num_streams == 1
    running.sweep(40)
    running.call(asyncio.sleep(0.01))
    assert not running.listener._connections
    _wait_until(lambda: running.front.num_streams == 0)


def test_streams_are_bounded(listen: Any) -> None:
    running = listen()
    running.front.num_streams = 32
    answer = running.ask(post(records(1), _ACCEPT))
    assert (answer.code, answer.headers["retry-after"]) == (503, "1")
    assert running.front.num_streams == 32


def test_the_log_has_one_line_with_all_that_was_sent(listen: Any, tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    running = listen(access_log=log)
    answer = running.ask(post(records(100), _ACCEPT, b"X-Request-Id: job-7"))
    assert answer.headers["x-request-id"] == "job-7"
    running.call(log.flush())
    (line,) = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert (line["id"], line["status"], line["rows"], line["answer_bytes"]) == ("job-7", 200, 100, len(answer.body))
    assert line["version"] == running.endpoint.version


def test_ray_serves_http_gives_them_too(call_app: Any, mixed_package: Path) -> None:
    app = call_app(build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(), NoMeter()))
    given = json.dumps(records(100)).encode()
    plain = app.post("/predict", content=given).json()["predictions"]
    answer = app.post("/predict", content=given, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"] == "text/event-stream"
    assert whole_of(parse(answer.content)) == plain
    refused = app.post("/predict", content=b"[]", headers={"accept": "text/event-stream"})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")


@pytest.fixture
def further(listen: Any, mixed_package: Path, rival_package: Path) -> Running:
    """A listener with the rival as the further model ``other``."""
    running: Running = listen(mixed_package)
    running.shelve("other", open_package(rival_package), NoMeter())
    return running


def test_a_further_model_answers_in_events_itself(further: Running, rival_package: Path) -> None:
    path = b"/v2/models/other/predict"
    client = further.connect()
    whole = json.loads(client.ask(post(records(40), path=path)).body)
    assert (whole["model"], whole["version"]) == ("other", open_package(rival_package).version)
    for body, *headers in ((records(40),), (_table(40), b"Content-Type: text/csv")):
        answer = client.ask(post(body, _ACCEPT, *headers, path=path))
        assert answer.headers["x-model-version"] == whole["version"]
        events = parse(answer.body)
        assert {data["model"] for name, _, data in events if name == "predictions"} == {"other"}
        assert whole_of(events) == whole["predictions"]


def _table(count: int) -> bytes:
    rows = [",".join(map(str, record.values())) for record in records(count)]
    return "\n".join([",".join(records(1)[0]), *rows]).encode()


def test_nothing_is_taken_behind_events_that_end_a_connection(listen: Any, caplog: Any) -> None:
    """The head of an answer in events says that it is the last; who sends more sends it to another replica."""
    running = listen(cost=LONG, connections=OLD)
    client = running.connect()
    client.send(post(records(2000), _ACCEPT))
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.socket.recv(1)
    assert b"connection: close" in head.lower()
    client.send(post({"x": 1}))
    while client.socket.recv(1 << 16):
        pass
    _wait_until(lambda: not running.listener._under_way)
    assert ("records", 400) not in running.meter.calls
    assert [one.getMessage() for one in caplog.records if one.exc_info] == []


@pytest.mark.parametrize("sticky", [{"sticky_field": "colour"}, {}])
def test_a_challenger_that_fails_costs_no_rows(
    mixed_package: Path, rival_package: Path, monkeypatch: pytest.MonkeyPatch, sticky: dict[str, str]
) -> None:
    """The champion is given the rows again, which stand in no body."""
    one, other = (ModelRef(uri=str(path), digest=open_package(path).digest) for path in (mixed_package, rival_package))
    plan = TrafficPlan(model=one, challenger=other, mode="canary", share=1.0, rollout="r", **sticky)
    run = Predictor.run

    def run_or_fail(self: Predictor, feeds: Any) -> Any:
        if self.package.digest == other.digest:
            raise RecordError("no")
        return run(self, feeds)

    async def ask() -> list[Any]:
        held = make_holding()
        await held.follow(plan)
        monkeypatch.setattr(Predictor, "run", run_or_fail)
        call = Call("records", json.dumps(records(50)).encode(), key=b"anybody")
        return [part async for part in answer_in_events(held.front, call)]

    head, *rest = asyncio.run(ask())
    assert head.code == HTTP_OK
    assert len(whole_of(parse(b"".join(part.body for part in (head, *rest))))) == 50
