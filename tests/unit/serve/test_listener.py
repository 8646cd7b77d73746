"""The listener over real sockets: what it answers, what it refuses, what it survives."""

import asyncio
import json
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve import protocol
from lepton_ray.serve.batching import Cost
from lepton_ray.serve.endpoint import Limits
from lepton_ray.spec.release import ListenerSpec

from .conftest import LONG, OLD, RECORD, SHORT, Client, Running

_SMUGGLED = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]"
_CHUNKED = b"Host: x\r\nTransfer-Encoding: chunked\r\n"


def post(body: Any, *headers: bytes, path: bytes = b"/predict") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % len(raw), *headers]
    return b"\r\n".join([*lines, b"", raw])


def get(path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"GET %b HTTP/1.1" % path, b"Host: x", *headers, b"", b""])


def test_answers_are_those_of_the_endpoint(listen: Any) -> None:
    running = listen()
    client = running.connect()
    tensors = {
        "inputs": [
            {"name": "numbers", "datatype": "FP64", "shape": [1, 2], "data": [30, None]},
            {"name": "categories", "datatype": "BYTES", "shape": [1, 2], "data": ["red", "S"]},
        ]
    }
    for path, body in ((b"/predict", [RECORD]), (b"/v2/models/demo/infer", tensors), (b"/predict", {"x": 1})):
        expected = running.endpoint.ask("POST", path.decode(), json.dumps(body).encode())
        answer = client.ask(post(body, path=path))
        assert (answer.code, answer.body) == (expected.code, expected.body)
        assert answer.headers["content-type"] == "application/json"
        assert "connection" not in answer.headers
    for path in ("/v2", "/v2/models/demo", "/v2/models/d%65mo/ready", "/v2/health/ready?a=b", "/nothing"):
        answer = client.ask(get(path.encode()))
        expected = running.endpoint.ask("GET", path.partition("?")[0].replace("%65", "e"))
        assert (answer.code, answer.body) == (expected.code, expected.body)
    assert client.ask(get(b"/predict")).headers["allow"] == "POST"
    assert client.ask(get(b"http://x/v2/health/live?a")).body == b'{"live":true}'
    client.send(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = client.read("HEAD")
    assert (answer.code, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 10
    assert client.ask(get(b"/v2/health/live")).code == 200


def test_raw_tensors_come_through_in_pieces(listen: Any) -> None:
    running = listen()
    rows = 3000
    numbers = np.tile(np.array([[30, np.nan], [60.5, 1e3]]), (rows // 2, 1)).tobytes()
    texts = b"".join(len(text).to_bytes(4, "little") + text for text in (b"red", b"S", b"", b"L")) * (rows // 2)
    inputs = [
        {"name": name, "datatype": datatype, "shape": [rows, 2], "parameters": {"binary_data_size": len(data)}}
        for name, datatype, data in (("numbers", "FP64", numbers), ("categories", "BYTES", texts))
    ]
    text = json.dumps({"inputs": inputs, "outputs": [{"name": "label"}]}).encode()
    raw = post(
        text + numbers + texts, b"Inference-Header-Content-Length: %d" % len(text), path=b"/v2/models/demo/infer"
    )
    client = running.connect()
    for start in range(0, len(raw), 10_000):
        client.send(raw[start : start + 10_000])
    answer = client.read()
    pair = [{"age": 30, "colour": "red", "size": "S"}, {"age": 60.5, "income": 1e3, "size": "L"}]
    expected = json.loads(running.endpoint.ask("POST", "/predict", json.dumps(pair).encode()).body)["predictions"]
    labels = [prediction["label"] for prediction in expected]
    assert json.loads(answer.body)["outputs"][0]["data"] == labels * (rows // 2)
    assert running.listener.buffered_bytes == 0


def test_request_ids_come_back_or_are_given(listen: Any) -> None:
    client = listen().connect()
    assert client.ask(get(b"/v2", b"X-Request-Id: job-7/a")).headers["x-request-id"] == "job-7/a"
    given = [client.ask(get(b"/v2", *more)).headers["x-request-id"] for more in ([], [b"X-Request-Id: a b"])]
    given.append(client.ask(get(b"/v2", b"X-Request-Id: " + b"x" * 129)).headers["x-request-id"])
    assert len(set(given)) == 3
    assert all(len(one) < 40 and " " not in one for one in given)
    assert client.ask(post(b"{", b"x-request-id: 5")).headers["x-request-id"] == "5"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0x2\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n 2\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length : 2\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length\t: 2\r\n\r\n[]", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n[]", 501),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\nzz\r\n[]\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n-2\r\n[]\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n0x2\r\n[]\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\nfffffffffffffffff\r\n[]\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2\n[]\n0\n\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2\r\n[]]\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2 \r\n[]\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2;a\nb\r\n[]\r\n0\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX(: a\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /v2 HTTP/1.1\rHost: x\r\r", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.2\r\nHost: x\r\n\r\n", 400),
        (b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /v2\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"get /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"NOTHING /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET\t/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /v\x012 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /v\xff2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
            501,
        ),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: a miracle\r\n\r\n[]", 417),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\0" * 100, 400),
    ],
)
def test_malformed_requests_end_the_connection(listen: Any, raw: bytes, code: int) -> None:
    """And what stands behind them, which a proxy might take for another request, is not looked at."""
    running = listen()
    client = running.connect()
    answer = client.ask(raw + _SMUGGLED)
    assert answer.code == code
    assert answer.headers["connection"] == "close"
    assert list(json.loads(answer.body)) == ["error"]
    assert len(answer.body) < 300
    assert client.is_closed()
    assert [call for call in running.meter.calls if call[1] == 200] == []
    assert len(running.meter.calls) <= 1
    assert running.ask(get(b"/v2/health/live")).code == 200


@pytest.mark.parametrize("rest", [b"Host: y\r\n\r\n", b"X : y\r\n\r\n", b"Content-Length: 2\r\nX\r\n\r\n[]"])
def test_the_refusal_of_a_head_request_has_no_body(listen: Any, rest: bytes) -> None:
    client = listen().connect()
    client.send(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n" + rest)
    answer = client.read("HEAD")
    assert (answer.code, answer.headers["connection"]) == (400, "close")
    assert client.is_closed()


def test_nothing_is_taken_after_connection_close(listen: Any) -> None:
    running = listen()
    client = running.connect()
    answer = client.ask(post([RECORD], b"Connection: close") + _SMUGGLED)
    assert (answer.code, answer.headers["connection"]) == (200, "close")
    assert client.is_closed()
    assert running.meter.calls == [("records", 200)]


def test_old_clients_are_answered(listen: Any) -> None:
    client = listen().connect()
    kept = client.ask(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert kept.headers["connection"] == "keep-alive"
    assert client.ask(b"GET /v2/health/live HTTP/1.0\r\n\r\n").headers["connection"] == "close"
    assert client.is_closed()


def test_chunks_extensions_and_trailers_make_no_difference(listen: Any) -> None:
    running = listen()
    body = json.dumps([RECORD]).encode()
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    raw = b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n" + chunks + b"0\r\nHost: y\r\nX: y\r\n\r\n"
    client = running.connect()
    assert client.ask(raw).body == running.endpoint.ask("POST", "/predict", body).body
    assert client.ask(get(b"/v2/health/live")).code == 200


_WISH = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"


@pytest.mark.parametrize("cut", [1, 40, 130, 200, -1])
def test_a_wish_for_another_protocol_is_ignored(listen: Any, cut: int) -> None:
    """Java's own client sends it with the first request over plain HTTP, and curl with --http2."""
    running = listen()
    client = running.connect()
    for raw in (
        post([RECORD], *_WISH),
        b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n".join(_WISH) + b"\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
    ):
        client.send(raw[:cut])
        client.send(raw[cut:])
        answer = client.read()
        assert answer.code == (200 if b"content-length" in raw.lower() else 400)
        assert client.ask(get(b"/v2/health/live", *_WISH)).code == 200
        assert client.ask(post([RECORD])).code == 200
    large = running.connect().ask(get(b"/v2", *_WISH, b"Content-Length: 1073741824"))
    assert (large.code, large.headers["connection"]) == (413, "close")
    last = client.ask(get(b"/v2/health/live", b"Connection: close, Upgrade", b"Upgrade: h2c"))
    assert (last.code, last.headers["connection"]) == (200, "close")
    assert client.is_closed()


def test_a_client_that_takes_nothing_gets_no_more_answers(listen: Any) -> None:
    """What waits for it is bounded, and it gets the rest when it goes on."""
    running = listen()
    client, num_requests = running.connect(), 1000
    client.send(b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * num_requests)
    answer = client.read()
    (connection,) = running.listener._connections

    async def be_held_up() -> None:
        while connection._send_by is None:
            await asyncio.sleep(0)

    running.call(be_held_up())
    assert connection._transport.get_write_buffer_size() < 100 * len(answer.body)
    got = b""
    while got.count(b"HTTP/1.1 200") < num_requests - 1 or not got.endswith(answer.body):
        part = client.socket.recv(1 << 20)
        assert part
        got += part


_PIPELINE = [
    (post([RECORD]), 200),
    (get(b"/v2/models/demo"), 200),
    (post([{"age": -1, "size": "S"}]), 422),
    (b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2\r\n[]\r\n0\r\n\r\n", 400),
    (get(b"/nothing"), 404),
    (post([RECORD] * 3), 200),
]


@pytest.fixture(scope="module")
def both_lanes(_sealed: Path) -> Any:
    """Listeners that run everything on the loop, and everything in the thread."""
    listeners = [Running(_sealed / "mixed", asyncio.new_event_loop(), cost=cost) for cost in (SHORT, LONG)]
    yield listeners
    for running in listeners:
        running.stop()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(_PIPELINE), min_size=1, max_size=8), st.lists(st.integers(1, 200), max_size=12))
def test_pipelined_requests_are_answered_in_order_however_they_are_cut(
    both_lanes: list[Running], requests: list[tuple[bytes, int]], cuts: list[int]
) -> None:
    raw = b"".join(request for request, _ in requests)
    for running in both_lanes:
        client = running.connect()
        rest = raw
        for cut in cuts:
            client.send(rest[:cut])
            rest = rest[cut:]
        client.send(rest)
        answers = [client.read() for _ in requests]
        assert [answer.code for answer in answers] == [code for _, code in requests]
        assert "connection" not in answers[-1].headers
        client.close()


@pytest.mark.parametrize(
    "raw",
    [
        get(b"/" + b"a" * (17 << 10)),
        get(b"/v2", b"X: " + b"a" * (17 << 10)),
        get(b"/v2", *[b"X%d: a" % number for number in range(101)]),
        get(b"/v2", *[b"X%d: %b" % (number, b"a" * 500) for number in range(40)]),
        b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2\r\n[]\r\n0\r\n" + b"X: abc\r\n" * 200 + b"\r\n",
        b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2\r\n[]\r\n0\r\nX: " + b"a" * (2 << 20),
        b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n2;" + b"a" * (2 << 20),
    ],
)
def test_heads_are_bounded(listen: Any, raw: bytes) -> None:
    client = listen().connect()
    answer = client.ask(raw)
    assert (answer.code, answer.headers["connection"]) == (431, "close")
    assert client.is_closed()


def test_a_head_without_an_end_is_refused_before_its_time_is_up(listen: Any) -> None:
    client = listen().connect()
    client.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: ")
    for _ in range(40):
        client.send(b"a" * 1024)
    assert client.read().code == 431
    assert client.is_closed()


def test_large_bodies_are_refused_and_the_refusal_can_be_read(listen: Any) -> None:
    running = listen(limits=Limits(max_request_bytes=1000))
    body = b"[" + b" " * 3_000_000
    by_length = running.connect()
    by_length.send(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3000001\r\n\r\n")
    by_chunks = running.connect()
    by_chunks.send(b"POST /predict HTTP/1.1\r\n" + _CHUNKED + b"\r\n" + b"%x\r\n" % len(body))
    for client in (by_length, by_chunks):
        client.send(body)  # all of it, before reading
        answer = client.read()
        assert (answer.code, json.loads(answer.body)["error"][:38]) == (413, "the body must be at most 1000 bytes. S")
        assert client.is_closed()
    assert running.meter.calls == [("records", 413)] * 2
    assert running.ask(post(b" " * 1001, path=b"/v2")).code == 413
    assert len(running.meter.calls) == 2
    assert running.listener.buffered_bytes == 0


def test_bodies_of_all_connections_together_are_bounded(listen: Any) -> None:
    running = listen(limits=Limits(max_request_bytes=1000))
    clients = [running.connect() for _ in range(17)]
    for client in clients[:-1]:
        client.send(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b" " * 999)
    assert clients[-1].ask(get(b"/v2/health/live")).code == 200  # by now the others have been read
    answer = clients[-1].ask(post(b" " * 999))
    assert (answer.code, answer.headers["retry-after"]) == (503, "1")
    for client in clients[:-1]:
        client.send(b" ")
        assert client.read().code == 400
    assert running.listener.buffered_bytes == 0
    assert running.ask(post([RECORD])).code == 200


def test_a_body_is_asked_for_only_when_it_is_wanted(listen: Any) -> None:
    running = listen(limits=Limits(max_request_bytes=1000))
    client = running.connect()
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
    client.send(head % 2)
    assert client.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.ask(b"[]").code == 400
    assert client.ask(head % 2000).code == 413


def test_an_old_client_that_expects_to_be_asked_for_a_body_is_not(listen: Any) -> None:
    """HTTP/1.0 knows no interim answers. Source: RFC 9110, section 10.1.1."""
    raw = b"POST /predict HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    client = listen().connect()
    client.send(raw)
    client.send(b"[]")
    assert client.socket.recv(12) == b"HTTP/1.1 400"


def test_slow_requests_time_out_and_idle_connections_close(listen: Any) -> None:
    running = listen(connections=ListenerSpec(receive_timeout_s=0.2))
    slow_head, slow_body = (running.connect() for _ in range(2))
    idle = listen(connections=ListenerSpec(idle_timeout_s=0.2)).connect()
    slow_head.send(b"GET /v2 HTTP/1.1\r\nHo")
    slow_body.send(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n[")
    for client in (slow_head, slow_body):
        assert client.read().code == 408
        assert client.is_closed()
    assert idle.is_closed()
    assert running.meter.calls == [("records", 408)]
    assert running.listener.buffered_bytes == 0


def _begin_one_behind_many(running: Running, monkeypatch: pytest.MonkeyPatch) -> tuple[Client, "Gate", bytes]:
    """Hold 40 requests that a 41st has come behind, but for its end; return its client, what holds them, and that end."""
    gate = Gate(monkeypatch)
    client = running.connect()
    raw = post([RECORD])
    client.send(raw * 40 + raw[:-5])
    assert gate.entered.wait(20)
    return client, gate, raw[-5:]


def test_a_request_that_waits_for_us_is_not_too_slow(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is read while so many are under way; the clock of the one that is half there stands."""
    running = listen(cost=LONG)
    client, gate, rest = _begin_one_behind_many(running, monkeypatch)
    (connection,) = running.listener._connections
    while not connection._is_paused:
        running.call(asyncio.sleep(0))
    running.sweep(40)
    gate.opened.set()
    client.send(rest)
    assert [client.read().code for _ in range(41)] == [200] * 41


def test_the_clock_goes_on_when_we_read_again(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = listen(cost=LONG)
    client, gate, _ = _begin_one_behind_many(running, monkeypatch)
    gate.opened.set()
    assert [client.read().code for _ in range(40)] == [200] * 40
    (connection,) = running.listener._connections
    while connection._receive_by is None or connection._is_paused:
        running.call(asyncio.sleep(0))
    running.sweep(40)
    assert client.read().code == 408


def _send_for_ever(client: Any, raw: bytes) -> None:
    while True:
        client.send(raw)


def test_a_client_that_reads_nothing_is_cut_off(listen: Any) -> None:
    running = listen(connections=ListenerSpec(receive_timeout_s=0.2))
    client = running.connect()
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        _send_for_ever(client, get(b"/v2/models/demo") * 1000)
    assert running.ask(get(b"/v2/health/live")).code == 200


@pytest.mark.parametrize("is_half_closed", [True, False])
def test_a_client_that_does_not_take_the_last_of_its_answers_is_cut_off(listen: Any, is_half_closed: bool) -> None:
    """What is left is too little for the transport to say that it waits, and closing waits for it."""
    running = listen(cost=LONG)
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        client.sendall(post([RECORD] * 500))
        if is_half_closed:
            client.shutdown(socket.SHUT_WR)
        while not running.meter.calls:
            running.call(asyncio.sleep(0.01))
        (connection,) = running.listener._connections
        while not connection._transport.get_write_buffer_size():  # it is counted before it is given to the loop
            running.call(asyncio.sleep(0.01))
        assert connection._transport.get_write_buffer_size() < 64 << 10
        for after_s in (80, 81):
            running.sweep(after_s)
        running.call(asyncio.sleep(0))
        assert running.listener._connections  # it still has its time to take the rest
        running.sweep(120)
        running.call(asyncio.sleep(0.01))
        assert not running.listener._connections


@pytest.mark.parametrize("is_last", [False, True])
def test_a_slow_client_that_goes_on_taking_a_large_answer_has_time(listen: Any, is_last: bool) -> None:
    """It is cut off once it takes no more, however much it has taken before; the answer's size does not count."""
    running = listen(cost=LONG, limits=Limits(max_rows=1 << 17))
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        client.sendall(post([RECORD] * 120_000, *([b"Connection: close"] if is_last else [])))
        while not running.meter.calls:
            running.call(asyncio.sleep(0.01))
        (connection,) = running.listener._connections
        left = connection._transport.get_write_buffer_size
        while not left():
            running.call(asyncio.sleep(0.01))
        assert left() > 8 << 20
        running.sweep(0)
        for after_s in (25, 50, 75, 100, 125):
            wanted = left() - (1 << 20)
            while left() > wanted:
                assert client.recv(1 << 16)
            running.sweep(after_s)
            running.call(asyncio.sleep(0))
            assert running.listener._connections
        for after_s in (200, 240, 280):
            running.sweep(after_s)
            running.call(asyncio.sleep(0.01))
        assert not running.listener._connections


def test_a_client_that_has_said_all_is_still_answered(listen: Any) -> None:
    running = listen(cost=LONG)
    client = running.connect()
    client.send(post([RECORD]))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.read().code == 200
    assert client.is_closed()


def test_a_client_that_goes_away_in_its_body_is_counted_and_forgotten(listen: Any) -> None:
    running = listen()
    client = running.connect()
    client.send(post([RECORD])[:-5])
    client.close()
    while not running.meter.calls:
        running.call(asyncio.sleep(0))
    assert running.meter.calls == [("records", 400)]
    assert running.listener.buffered_bytes == 0


def test_connections_beyond_the_bound_wait_for_their_turn(listen: Any) -> None:
    running = listen(connections=ListenerSpec(max_connections=2))
    first, second, third = (running.connect() for _ in range(3))
    assert first.ask(get(b"/v2")).code == second.ask(get(b"/v2")).code == 200
    third.send(get(b"/v2"))
    third.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        third.read()
    first.close()
    third.socket.settimeout(20)
    assert third.read().code == 200


def test_old_connections_close_with_an_answer(listen: Any) -> None:
    client = listen(connections=OLD).connect()
    answers = [client.ask(get(b"/v2") * 3), client.read(), client.read()]
    assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
    assert client.is_closed()


class Gate:
    """Holds the runs in the thread until it is opened; ``entered`` tells that one has begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.rows: list[int] = []
        run = Predictor.run

        def wait(predictor: Predictor, feeds: Any) -> Any:
            if threading.current_thread().name.startswith("lepton-batch"):
                self.rows.append(len(next(iter(feeds.values()))))
                self.entered.set()
                assert self.opened.wait(20)
            return run(predictor, feeds)

        monkeypatch.setattr(Predictor, "run", wait)


def test_what_arrives_during_a_run_is_the_next_batch(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = listen(cost=LONG)
    gate = Gate(monkeypatch)
    clients = [running.connect() for _ in range(6)]
    clients[0].send(post([RECORD]))
    assert gate.entered.wait(20)
    monkeypatch.setattr(running.batcher, "_cost", Cost(2e-3, 0.0))  # now all fit into one batch
    for client in clients[1:]:
        client.send(post([RECORD]))
    assert running.ask(get(b"/v2/health/live")).code == 200  # the loop is free
    while len(running.batcher._long) < 5:
        running.call(asyncio.sleep(0))
    gate.opened.set()
    assert [client.read().code for client in clients] == [200] * 6
    assert gate.rows == [1, 5]


def test_more_than_may_wait_are_refused(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = listen(cost=LONG, max_waiting=2)
    gate = Gate(monkeypatch)
    clients = [running.connect() for _ in range(3)]
    clients[0].send(post([RECORD]))
    assert gate.entered.wait(20)
    for client in clients[1:]:
        client.send(post([RECORD]))
    while len(running.batcher._long) < 2:
        running.call(asyncio.sleep(0))
    refused = running.ask(post([RECORD]))
    assert (refused.code, refused.headers["retry-after"]) == (503, "1")
    assert running.listener.mean_under_way() > 0
    gate.opened.set()
    assert [client.read().code for client in clients] == [200] * 3
    assert sorted(running.meter.calls) == [("records", 200)] * 3 + [("records", 503)]


def test_a_long_call_keeps_no_short_one_waiting(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = listen()
    gate = Gate(monkeypatch)
    large = running.connect()
    large.send(post(json.dumps([RECORD]).encode() + b" " * (65 << 10)))  # too much to parse on the loop
    assert gate.entered.wait(20)
    assert running.ask(post([RECORD])).code == 200
    gate.opened.set()
    assert large.read().code == 200


@pytest.mark.parametrize("filler", [b"", b" " * (65 << 10)], ids=["loop", "thread"])
def test_a_parser_that_fails_stops_no_queue(listen: Any, monkeypatch: pytest.MonkeyPatch, filler: bytes) -> None:
    running = listen()
    client = running.connect()
    raw = post(json.dumps([RECORD]).encode() + filler)
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "split_body", lambda body, json_bytes: 1 / 0)
        answers = [client.ask(raw), client.ask(raw)]
    assert [(answer.code, "division" in answer.body.decode()) for answer in answers] == [(500, False)] * 2
    assert client.ask(raw).code == 200
    assert (running.listener.buffered_bytes, running.listener._under_way) == (0, 0)
    assert running.meter.calls == [("records", 500)] * 2 + [("records", 200)]


def test_draining_loses_nothing(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = listen(cost=LONG)
    gate = Gate(monkeypatch)
    busy, half, idle, late = (running.connect() for _ in range(4))
    busy.send(post([RECORD]))
    half.send(post([RECORD])[:-5])
    assert idle.ask(get(b"/v2")).code == late.ask(get(b"/v2")).code == 200
    assert gate.entered.wait(20)
    draining = asyncio.run_coroutine_threadsafe(running.listener.drain(20), running.loop)
    while not running.listener.is_draining:
        running.call(asyncio.sleep(0))
    late.send(post([RECORD]))
    half.send(post([RECORD])[-5:])
    gate.opened.set()
    for client in (busy, half, late):
        answer = client.read()
        assert (answer.code, answer.headers["connection"]) == (200, "close")
        assert client.is_closed()
        client.close()
    assert idle.is_closed()
    draining.result(20)


def test_draining_answers_whom_the_kernel_has_let_in(listen: Any) -> None:
    running = listen(connections=ListenerSpec(max_connections=1))
    first, waiting = running.connect(), running.connect()
    assert first.ask(get(b"/v2")).code == 200
    waiting.send(post([RECORD]))
    draining = asyncio.run_coroutine_threadsafe(running.listener.drain(20), running.loop)
    answer = waiting.read()
    assert (answer.code, answer.headers["connection"]) == (200, "close")
    for client in (first, waiting):
        client.close()
    draining.result(20)


def test_the_socket_may_be_closed_once_a_listener_has_left_it(listen: Any) -> None:
    """Nobody else has it: who comes now is refused, not kept waiting; who was there is answered."""
    running = listen(connections=ListenerSpec(max_connections=1))
    first, waiting = running.connect(), running.connect()
    assert first.ask(get(b"/v2")).code == 200
    waiting.send(post([RECORD]))

    async def leave() -> None:
        running.listener.leave()
        running.socket.close()

    running.call(leave())
    with pytest.raises(ConnectionRefusedError):
        running.connect()
    draining = asyncio.run_coroutine_threadsafe(running.listener.drain(20), running.loop)
    first.send(post([RECORD]))
    for client in (first, waiting):
        answer = client.read()
        assert (answer.code, answer.headers["connection"]) == (200, "close")
        client.close()
    draining.result(20)


def test_the_probe_is_answered_and_tells_of_what_is_not(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = listen()
    running.call(running.listener.probe())
    monkeypatch.setattr(running.front, "find", lambda method, path: 1 / 0)
    running.loop.set_exception_handler(lambda loop, context: None)
    with pytest.raises(RuntimeError, match="the listener must answer"):
        running.call(running.listener.probe())
    monkeypatch.undo()


def test_requests_under_way_are_told_as_an_average(listen: Any) -> None:
    running = listen()
    assert running.listener.mean_under_way() == 0
    client = running.connect()
    for _ in range(20):
        client.ask(post([RECORD]))
    assert 0 < running.listener.mean_under_way() < 1
    assert running.listener.mean_under_way() == 0


def test_any_bytes_are_survived(both_lanes: list[Running]) -> None:
    rng = np.random.default_rng(5)
    base = post([RECORD])
    for _ in range(300):
        raw = bytearray(base)
        for _ in range(rng.integers(1, 6)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        client = both_lanes[0].connect()
        client.send(bytes(raw))
        client.socket.shutdown(socket.SHUT_WR)
        while client.socket.recv(4096):
            pass
        client.close()
    assert both_lanes[0].ask(get(b"/v2/health/live")).code == 200
    assert both_lanes[0].listener.buffered_bytes == 0
