"""The client against the listener, and against servers that stall, break off, ask to wait and close what was kept open."""

import ast
import asyncio
import concurrent.futures
import gc
import inspect
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lepton_ray.client
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.client import AnswerError, AsyncClient, CallError, Client, DeadlineError, Options, UnavailableError
from lepton_ray.client.tensors import decode, encode
from tests.unit.serve.conftest import OLD

_RECORDS = [{"age": 30, "income": 1200.5, "colour": "red", "size": "S"}, {"age": 45, "size": "L"}]
_TENSORS = {
    "numbers": np.array([[30, 1200.5], [45, np.nan]]),
    "categories": np.array([["red", "S"], [None, "L"]], object),
}
_QUICK = Options(deadline_s=20, try_s=5, first_wait_s=0.001, longest_wait_s=0.01)
_PATIENT = Options(deadline_s=40, try_s=20)
_ANSWER = b'{"predictions": [1]}'


class Awaited:
    """An ``AsyncClient`` in an event loop of this thread, called as a ``Client`` is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __repr__(self) -> str:
        return repr(self._client)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        ask = getattr(self._client, name)
        return lambda *arguments, **options: self._runner.run(ask(*arguments, **options))

    def predict_in_parts(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        parts = self._client.predict_in_parts(*arguments, **options)

        async def next_one() -> Any:
            return await anext(parts, None)

        try:
            while (part := self._runner.run(next_one())) is not None:
                yield part
        finally:
            self._runner.run(parts.aclose())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=[Client, Awaited], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(*arguments: Any, **options: Any) -> Any:
        made.append(request.param(*arguments, **{"options": _QUICK, **options}))
        return made[-1]

    yield make
    for client in made:
        client.close()


def _said(status: str, body: bytes = b'{"error": "no"}', *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


_FINE = _said("200 OK", _ANSWER)
_CLOSE, _STALL = b"close", b"stall"


class Fake:
    """A server that answers each request with the next line of its script, and then well; keeps what it was sent."""

    def __init__(self, *script: bytes, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.script = list(script)
        self.requests: list[bytes] = []
        self.times: list[float] = []
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        if self._context is not None:
            try:
                connection = self._context.wrap_socket(connection, server_side=True)
            except OSError:  # the client does not trust it
                connection.close()
                return
        with connection:
            while request := self._read(connection):
                self.requests.append(request)
                self.times.append(time.monotonic())
                said = self.script.pop(0) if self.script else _FINE
                if said == _STALL:
                    connection.recv(1)  # until the client goes
                    return
                if said == _CLOSE:
                    return
                connection.sendall(said.removesuffix(_CLOSE))
                if said.endswith(_CLOSE):
                    return

    def _read(self, connection: socket.socket) -> bytes:
        data = b""
        try:
            while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < _length(data):
                if not (part := connection.recv(1 << 16)):
                    return b""
                data += part
        except OSError:
            return b""
        return data

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _length(request: bytes) -> int:
    head = request.partition(b"\r\n\r\n")[0].lower()
    return int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)


@pytest.fixture
def fake() -> Iterator[Callable[..., Fake]]:
    made: list[Fake] = []

    def start(*script: bytes, **options: Any) -> Fake:
        made.append(Fake(*script, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


def test_the_listener_answers_records_and_arrays(
    listen: Callable[..., Any], connect: Callable[..., Any], mixed_package: Path
) -> None:
    running = listen()
    client = connect(f"http://127.0.0.1:{running.port}/")
    wanted = Predictor(open_package(mixed_package)).predict(_RECORDS)
    answers = client.predict(_RECORDS)
    assert [answer["label"] for answer in answers] == wanted["label"].tolist()
    outputs = client.infer("demo", _TENSORS)
    assert outputs.keys() == wanted.keys()
    assert outputs["label"].tolist() == wanted["label"].tolist()
    np.testing.assert_allclose(outputs["probabilities"], wanted["probabilities"], rtol=1e-6)
    assert outputs["probabilities"].dtype == np.float32
    assert list(client.infer("demo", _TENSORS, outputs=["label"])) == ["label"]


def test_what_the_listener_refuses_is_told_and_not_sent_again(
    listen: Callable[..., Any], connect: Callable[..., Any]
) -> None:
    running = listen()
    client = connect(f"http://127.0.0.1:{running.port}")
    with pytest.raises(AnswerError, match=r"age must be") as caught:
        client.predict([{"age": -1, "size": "S"}])
    assert caught.value.status == 422
    assert len(caught.value.request_id) == 32
    with pytest.raises(AnswerError, match="the model must be 'demo'"):
        client.infer("other", _TENSORS)
    assert running.meter.calls == [("records", 422)]
    with pytest.raises(ValueError, match="must be numbers or texts"):
        client.infer("demo", {"numbers": np.array(["2020-01-01"], "datetime64[s]")})


def test_a_full_queue_is_waited_for(
    listen: Callable[..., Any], connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = listen(max_waiting=0)
    observe = running.meter.observe

    def make_room(*facts: Any) -> None:
        running.batcher._max_waiting = 10
        observe(*facts)

    monkeypatch.setattr(running.meter, "observe", make_room)
    assert len(connect(f"http://127.0.0.1:{running.port}").predict(_RECORDS)) == 2
    assert running.meter.calls == [("records", 503), ("records", 200)]


def test_connections_that_the_listener_closes_at_their_age_lose_nothing(
    listen: Callable[..., Any], connect: Callable[..., Any]
) -> None:
    running = listen(connections=OLD)
    client = connect(f"http://127.0.0.1:{running.port}", options=Options(max_tries=1))
    for _ in range(20):
        assert len(client.predict(_RECORDS)) == 2


def test_a_connection_is_used_again(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    server = fake()
    client = connect(server.url)
    assert [client.predict([{}]) for _ in range(5)] == [[1]] * 5
    assert server.connections == 1


def test_a_kept_connection_that_is_closed_is_no_failure(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    """The server takes the second request on a kept connection and closes it without an answer; one try is allowed."""
    server = fake(_FINE, _CLOSE)
    client = connect(server.url, options=Options(max_tries=1))
    assert [client.predict([{}]) for _ in range(3)] == [[1]] * 3
    assert (server.connections, len(server.requests)) == (2, 4)


def test_a_request_that_ends_its_connections_is_a_failure_soon(fake: Callable[..., Fake]) -> None:
    """However many connections are kept: such a request may end a replica with each."""
    server = fake()

    async def ask() -> int:
        async with AsyncClient(server.url, options=Options(max_tries=3, first_wait_s=0.001)) as client:
            await asyncio.gather(*(client.predict([{}]) for _ in range(20)))
            before, server.script = len(server.requests), [_CLOSE] * 100
            with pytest.raises(UnavailableError, match="within 3 tries"):
                await client.predict([{}])
            return len(server.requests) - before

    assert asyncio.run(ask()) == 4
    assert server.connections > 4


_PASSING = {
    "closed": _CLOSE,
    "half a head": b"HTTP/1.1 200 OK\r\nContent-" + _CLOSE,
    "half a body": _FINE[:-3] + _CLOSE,
    "no HTTP": b"what\r\n\r\n" + _CLOSE,
    "429": _said("429 Too Many Requests"),
    "502": _said("502 Bad Gateway", b"<html>"),
    "503": _said("503 Service Unavailable"),
    "504": _said("504 Gateway Timeout", b""),
}


@pytest.mark.parametrize("fault", _PASSING)
def test_what_passes_is_tried_again_a_bounded_number_of_times(
    fake: Callable[..., Fake], connect: Callable[..., Any], fault: str
) -> None:
    server = fake(*[_PASSING[fault]] * 4)
    assert connect(server.url).predict([{}]) == [1]
    assert len(server.requests) == 5
    assert len(set(server.requests)) == 1  # also the request id
    server = fake(*[_PASSING[fault]] * 9)
    with pytest.raises(UnavailableError, match="within 3 tries") as caught:
        connect(server.url, options=Options(max_tries=3, first_wait_s=0.001)).predict([{}])
    assert len(server.requests) == 3
    assert caught.value.status == (int(fault) if fault.isdigit() else None)


@pytest.mark.parametrize("status", ["301 Moved", "400 Bad", "401 Who", "404 Not", "422 Bad", "500 Broken"])
def test_other_statuses_are_final(fake: Callable[..., Fake], connect: Callable[..., Any], status: str) -> None:
    server = fake(_said(status, b'{"error": "so it is"}', "X-Request-Id: theirs", "Location: http://127.0.0.1:9/"))
    with pytest.raises(AnswerError, match="so it is") as caught:
        connect(server.url).predict([{}])
    assert (caught.value.status, caught.value.request_id) == (int(status[:3]), "theirs")
    assert len(server.requests) == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status) == (str(caught.value), caught.value.status)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"predictions": 3}', b'{"outputs": [{}]}'])
def test_an_answer_that_is_none_is_told(fake: Callable[..., Fake], connect: Callable[..., Any], body: bytes) -> None:
    for ask in (lambda client: client.predict([{}]), lambda client: client.infer("m", _TENSORS)):
        with pytest.raises(AnswerError, match="must be of the protocol"):
            ask(connect(fake(_said("200 OK", body)).url))


@pytest.mark.parametrize("raw", [b"\2", b"\2\0\0\0", b"\2\0\0\0a", b"\1\0\0\0a\1"])
def test_texts_that_are_not_whole_are_told(fake: Callable[..., Fake], connect: Callable[..., Any], raw: bytes) -> None:
    parameters = f'"parameters": {{"binary_data_size": {len(raw)}}}'
    head = f'{{"outputs": [{{"name": "label", "datatype": "BYTES", "shape": [1], {parameters}}}]}}'.encode()
    said = _said("200 OK", head + raw, f"Inference-Header-Content-Length: {len(head)}")
    with pytest.raises(AnswerError, match="must be of the protocol"):
        connect(fake(said).url).infer("m", _TENSORS)


def test_retry_after_is_honoured(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    server = fake(_said("503 Busy", b"{}", "Retry-After: 1"))
    assert connect(server.url).predict([{}]) == [1]
    assert server.times[1] - server.times[0] >= 1


@pytest.mark.parametrize("value", ["\u00b2", "soon", "1 Jan 99999999999999999999 00:00:00 GMT", "-1", ""])
def test_a_retry_after_that_is_none_is_ignored(
    fake: Callable[..., Fake], connect: Callable[..., Any], value: str
) -> None:
    server = fake(_said("503 Busy", b"{}", f"Retry-After: {value}"))
    assert connect(server.url).predict([{}]) == [1]
    assert len(server.requests) == 2


@pytest.mark.parametrize("script", [[_STALL], [_said("503 Busy", b"{}", "Retry-After: 3600")]], ids=["stall", "later"])
def test_the_deadline_ends_a_call(fake: Callable[..., Fake], connect: Callable[..., Any], script: list[bytes]) -> None:
    server = fake(*script)
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 1 s"):
        connect(server.url, options=_PATIENT).predict([{}], deadline_s=1.0)
    assert time.monotonic() - begun < _PATIENT.try_s / 2, "the deadline ends it, not the end of its try"
    assert len(server.requests) == 1


def test_a_wait_that_is_too_long_is_told(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    server = fake(_said("429 Too Many", b'{"error": "too many"}', "Retry-After: 60"))
    with pytest.raises(DeadlineError, match=r"within 5 s; the last: .*: too many, asks to wait 60 s"):
        connect(server.url).predict([{}], deadline_s=5.0)


def test_a_server_that_stalls_is_left_for_another_try(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    server = fake(_STALL)
    assert connect(server.url, options=Options(try_s=1.0, first_wait_s=0.001)).predict([{}]) == [1]
    assert len(server.requests) == 2


def test_another_address_answers_in_the_place_of_one_that_does_not(
    fake: Callable[..., Fake], connect: Callable[..., Any]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        busy, fine = fake(*[_said("503 Busy", b"{}", "Retry-After: 3600")] * 99), fake()
        client = connect([nowhere, busy.url, fine.url])
        assert [client.predict([{}]) for _ in range(30)] == [[1]] * 30
        assert len(fine.requests) == 30
        with pytest.raises(UnavailableError, match="Connect"):
            connect(nowhere, options=Options(max_tries=2, first_wait_s=0.001)).predict([{}])


def test_addresses_share_the_calls(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    servers = [fake(), fake()]
    client = connect([server.url for server in servers])
    for _ in range(10):
        client.predict([{}])
    assert [len(server.requests) for server in servers] == [5, 5]


def test_a_fallback_answers_only_while_no_address_does(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    server, fallback = fake(_FINE, _CLOSE, _said("503 Busy")), fake()
    client = connect(server.url, fallback=fallback.url)
    assert client.predict([{}]) == [1]
    assert len(fallback.requests) == 0
    assert client.predict([{}]) == [1], "a kept connection that is closed, then a fault"
    assert (len(server.requests), len(fallback.requests)) == (3, 1)
    give_up = time.monotonic() + 20
    while len(server.requests) == 3:
        assert time.monotonic() < give_up
        assert client.predict([{}]) == [1]
    assert server.times[3] - server.times[2] >= 1, "an address that failed rests"
    before = len(fallback.requests)
    assert [client.predict([{}]) for _ in range(5)] == [[1]] * 5
    assert len(fallback.requests) == before


def test_a_fallback_that_fails_too_is_tried_in_turn(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    busy = _said("503 Busy")
    server, fallback = fake(busy, busy, busy), fake(busy, busy)
    assert connect(server.url, fallback=[fallback.url]).predict([{}]) == [1]
    assert len(server.requests) + len(fallback.requests) >= 5
    with pytest.raises(ValueError, match="urls must be http"):
        connect(server.url, fallback="ftp://a")


@pytest.mark.parametrize("source", ["argument", "environment"])
def test_a_token_is_sent_and_never_shown(
    fake: Callable[..., Fake], connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("LEPTON_RAY_TOKEN", "other" if source == "argument" else "s3cret")
    server = fake(_FINE, _said("401 Unauthorized"))
    client = connect(server.url, token="s3cret" if source == "argument" else None)
    client.predict([{}])
    assert b"authorization: bearer s3cret\r\n" in server.requests[0].lower()
    with pytest.raises(CallError) as caught:
        client.predict([{}])
    assert "s3cret" not in f"{client!r} {caught.value!r} {caught.value}"
    for wrong in ("s3cret\r\nx: y", "s3cret\u00fc", "s3cret y"):
        with pytest.raises(ValueError, match="visible ASCII") as refused:
            AsyncClient(server.url, token=wrong)
        assert "s3cret" not in str(refused.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key, pem = tmp_path / "key.pem", tmp_path / "ca.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=test",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    return pem, key


def test_https_is_trusted_by_the_given_certificates_alone(
    fake: Callable[..., Fake], connect: Callable[..., Any], certificate: tuple[Path, Path]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = fake(context=context)
    assert connect(server.url, ca_file=certificate[0]).predict([{}]) == [1]
    with pytest.raises(UnavailableError, match="must be one to trust"):
        connect(server.url).predict([{}])
    assert len(server.requests) == 1


def test_an_address_with_the_other_scheme_is_told(
    fake: Callable[..., Fake],
    listen: Callable[..., Any],
    connect: Callable[..., Any],
    certificate: tuple[Path, Path],
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    quick = Options(max_tries=2, first_wait_s=0.001)
    for call in ("predict", "predict_in_parts"):
        with pytest.raises(UnavailableError, match=r"must speak TLS .* it begins with http \(status"):
            list(getattr(connect(f"https://127.0.0.1:{listen().port}"), call)([{}]))
        plain = fake(context=context).url.replace("https", "http")
        with pytest.raises(UnavailableError, match="If it speaks TLS, its address begins with https"):
            list(getattr(connect(plain, options=quick), call)([{}]))


def test_certificates_that_are_none_are_refused_with_their_file(connect: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for file in (tmp_path / "gone.pem", tmp_path / "empty.pem"):
        with pytest.raises(
            ValueError, match=rf"ca_file must be a file of certificates in PEM, got '{re.escape(str(file))}'"
        ):
            connect("https://127.0.0.1:1", ca_file=file)


_NO_ADDRESSES = [
    "",
    "localhost:80",
    "ftp://a",
    "http://",
    "http://user:pass@a",
    "http://a?b",
    [],
    "http://a b",
    "http://[::1",
]
_NO_PORTS = [
    "http://a:99999",
    "http://a:b",
    "http://a:0",
    "http://a:80 ",
    "http://user:pass@a:b",
    "http://u:pass/x@a",
    "http://u:pass#x@a",
]
_NO_NAMES = ["http://a..b:80", f"http://{'a' * 64}"]


@pytest.mark.parametrize("url", [*_NO_ADDRESSES, *_NO_PORTS, *_NO_NAMES])
def test_an_address_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(ValueError, match="urls must") as caught:
        AsyncClient(url)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1]:80/", "http://a_b", "HTTPS://a.:1/base", "http://ü.example"])
def test_other_addresses_are_taken(url: str) -> None:
    assert repr(AsyncClient(url)) == f"AsyncClient({url.rstrip('/')})"


def test_options_must_be_positive() -> None:
    with pytest.raises(ValueError, match="try_s must be greater than 0"):
        Options(try_s=0)


def test_a_closed_client_says_so() -> None:
    client = Client("http://127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(ValueError, match="is closed"):
        client.predict([{}])


def test_a_closed_async_client_says_so(fake: Callable[..., Fake]) -> None:
    """To those who ask later, before its first use too, and to those who wait."""
    server = fake(_STALL)

    async def ask(*, is_used: bool) -> None:
        client = AsyncClient(server.url, options=Options(deadline_s=600, try_s=600))
        if is_used:
            waiting = asyncio.create_task(client.predict([{}]))
            while not server.requests:
                await asyncio.sleep(0.01)
        await client.close()
        if is_used:
            with pytest.raises(ValueError, match="is closed"):
                await waiting
        with pytest.raises(ValueError, match="is closed"):
            await client.predict([{}])
        with pytest.raises(ValueError, match="is closed"):
            await anext(client.predict_in_parts([{}]))

    asyncio.run(asyncio.wait_for(ask(is_used=False), 60))
    asyncio.run(asyncio.wait_for(ask(is_used=True), 60))


def test_an_async_client_of_another_loop_says_so(fake: Callable[..., Fake]) -> None:
    client = AsyncClient(fake().url)

    async def ask(*, is_last: bool) -> Any:
        try:
            return await client.predict([{}])
        finally:
            if is_last:
                await client.close()

    with asyncio.Runner() as first:
        assert first.run(ask(is_last=False)) == [1]
        with (
            concurrent.futures.ThreadPoolExecutor() as pool,
            pytest.raises(ValueError, match=r"in one event loop, and was in another\. Make one"),
        ):
            pool.submit(asyncio.run, ask(is_last=False)).result()
        assert first.run(ask(is_last=True)) == [1]


def test_a_client_that_is_closed_ends_the_calls_of_other_threads(fake: Callable[..., Fake]) -> None:
    server = fake(_STALL)
    client = Client(server.url, options=Options(deadline_s=600, try_s=600))
    faults: list[BaseException] = []

    def ask() -> None:
        try:
            client.predict([{}])
        except ValueError as error:
            faults.append(error)

    caller = threading.Thread(target=ask, daemon=True)
    caller.start()
    deadline = time.monotonic() + 20
    while not server.requests:
        assert time.monotonic() < deadline
    client.close()
    caller.join(20)
    assert not caller.is_alive()
    assert [str(fault) for fault in faults] == ["the client must be open, and is closed. Make another"]


def test_parts_that_are_left_when_a_client_is_closed_end_with_it(fake: Callable[..., Fake]) -> None:
    client = Client(fake(_events(_part(0, 1, 2))).url, options=_QUICK)
    parts = client.predict_in_parts([{}] * 9)
    assert next(parts) == [1, 2]
    client.close()
    parts.close()  # type: ignore[attr-defined]  it is a generator, and garbage collection does the same


@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", ">u4", "i1", "<i8", ">i2", "<f2", ">f4", "<f8"])
def test_arrays_come_back_as_they_went(dtype: str) -> None:
    values = np.arange(12).reshape(4, 3).astype(dtype)
    body, length = encode({"a": values, "t": np.array(["", "é", None], object)}, None)
    back = decode(body.replace(b'"inputs":', b'"outputs":'), length + 1)
    np.testing.assert_array_equal(back["a"], values)
    assert back["t"].tolist() == ["", "é", ""]
    assert back["a"].shape == (4, 3)


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT], ids=repr)
def test_what_is_missing_in_arrays_is_what_the_protocol_has_for_it(missing: Any) -> None:
    given = {"n": np.array([[1, missing], [2.5, True]], object), "t": np.array([["a", missing]], object)}
    body, length = encode(given, None)
    back = decode(body.replace(b'"inputs":', b'"outputs":'), length + 1)
    np.testing.assert_array_equal(back["n"], [[1, np.nan], [2.5, 1]])
    assert back["t"].tolist() == [["a", ""]]
    with pytest.raises(ValueError, match="must hold texts or numbers of one type, got 1"):
        encode({"t": np.array(["a", missing, 1], object)}, None)


def test_outputs_are_a_list(connect: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"outputs must be a list of names, got 'label'\. Give \['label'\]"):
        connect("http://127.0.0.1:1").infer("m", _TENSORS, outputs="label")


_JOB = b'{"id": "j", "state": "done", "rows": 1, "rows_done": 1}'
_RAW = b'{"outputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": [1.5]}]}'
_CALLS: dict[str, tuple[bytes, bytes, Callable[..., Any]]] = {
    "predict": (b"POST /predict", _ANSWER, lambda client, **own: client.predict([{}], **own)),
    "predict of a model": (
        b"POST /v2/models/a%2Fb/predict",
        _ANSWER,
        lambda client, **own: client.predict([{}], model="a/b", **own),
    ),
    "infer": (b"POST /v2/models/m/infer", _RAW, lambda client, **own: client.infer("m", _TENSORS, **own)),
    "infer of a version": (
        b"POST /v2/models/m/versions/12/infer",
        _RAW,
        lambda client, **own: client.infer("m", _TENSORS, version="12", **own),
    ),
    "outcome": (
        b"POST /v2/models/m/outcomes",
        b'{"counted": true}',
        lambda client, **own: client.report_outcome("m", 1, key="7", **own),
    ),
    "submit": (b"POST /jobs", _JOB, lambda client, **own: client.submit_job([{}], "k", **own)),
    "job": (b"GET /jobs/j", _JOB, lambda client, **own: client.job("j", **own)),
    "result": (b"GET /jobs/j/result", _ANSWER, lambda client, **own: client.job_result("j", **own)),
    "cancel": (b"DELETE /jobs/j", b"{}", lambda client, **own: client.cancel_job("j", **own)),
}


@pytest.mark.parametrize("call", _CALLS)
def test_a_call_carries_the_headers_that_it_is_given(
    fake: Callable[..., Fake], connect: Callable[..., Any], call: str
) -> None:
    line, answer, ask = _CALLS[call]
    server = fake(_said("503 Busy", b"{}", "Retry-After: 0"), _said("200 OK", answer), _said("200 OK", answer))
    client = connect(server.url)
    ask(client, headers={"X-User-Id": "user 7", "X-Request-ID": "mine"})
    ask(client)
    assert len(server.requests) == 3
    for request in server.requests[:2]:
        assert request.startswith(line + b" HTTP/1.1\r\n")
        assert b"\r\nx-user-id: user 7\r\n" in request
        assert request.count(b"\r\nx-request-id: mine\r\n") == 1
    assert b"x-user-id" not in server.requests[2]
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{32}\r\n", server.requests[2])


def test_parts_carry_the_headers_that_they_are_given(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    server = fake(_CLOSE, _events(_part(0, 1), _END))
    parts = connect(server.url).predict_in_parts([{}], model="m", headers={"x-user-id": "7", "x-request-id": "mine"})
    assert [(part, part.request_id) for part in parts] == [([1], "mine")]
    for request in server.requests:
        assert request.startswith(b"POST /v2/models/m/predict HTTP/1.1\r\n")
        assert b"\r\nx-user-id: 7\r\n" in request
        assert b"\r\nx-request-id: mine\r\n" in request


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("Authorization", "Bearer a", "must be none that the client sets, got 'Authorization'"),
        ("content-length", "1", "must be none that the client sets"),
        ("Host", "a", "must be none that the client sets"),
        ("x-a", "1\r\nx-b: 2", r"\['x-a'\] must be a text of one line"),
        ("x-a", "1\0", "must be a text of one line"),
        ("x-a", " 1", "must be a text of one line without spaces around it"),
        ("x-a", 7, "must be a text of one line"),
        ("x-a\n", "1", "must have names of letters"),
        ("", "1", "must have names of letters"),
        ("x-request-id", "a b", "must be 1 to 128 visible ASCII characters, got 'a b'"),
        ("x-request-id", "a" * 129, "must be 1 to 128 visible ASCII characters"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused(
    fake: Callable[..., Fake], connect: Callable[..., Any], name: str, value: Any, told: str
) -> None:
    server = fake()
    client = connect(server.url)
    for ask in (client.predict, lambda *given, **own: list(client.predict_in_parts(*given, **own))):
        with pytest.raises(ValueError, match=rf"headers.*{told}"):
            ask([{}], headers={name: value})
    assert server.requests == []


def test_an_answer_knows_its_version_and_its_request(
    listen: Callable[..., Any], connect: Callable[..., Any], mixed_package: Path
) -> None:
    client = connect(f"http://127.0.0.1:{listen().port}")
    version = open_package(mixed_package).version
    mine = {"x-request-id": "mine"}
    parts = list(client.predict_in_parts(_RECORDS * 20, headers=mine))
    answers = [client.predict(_RECORDS, headers=mine), client.infer("demo", _TENSORS, headers=mine), *parts]
    assert [(answer.version, answer.request_id) for answer in answers] == [(version, "mine")] * len(answers)
    for answer in answers[:2]:
        again = pickle.loads(pickle.dumps(answer))
        assert (again.version, again.request_id) == (version, "mine")
    assert (type(answers[0] + []), answers[0] == [*answers[0]]) == (list, True)
    assert client.infer("demo", _TENSORS, version=version).version == version
    with pytest.raises(AnswerError) as caught:
        client.infer("demo", _TENSORS, version="other")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    "said",
    [
        _CLOSE,
        _FINE[:-3] + _CLOSE,
        _said("502 Bad Gateway"),
        _said("503 Service Unavailable"),  # of a proxy that lost the server's answer
        _said("504 Gateway Timeout"),
        _STALL,
    ],
    ids=["closed", "half", "502", "503", "504", "stall"],
)
def test_an_outcome_that_may_have_been_counted_is_not_sent_again(
    fake: Callable[..., Fake], connect: Callable[..., Any], said: bytes
) -> None:
    server = fake(_FINE, said)
    client = connect(server.url, options=Options(try_s=0.5 if said is _STALL else 5.0, first_wait_s=0.001))
    client.report_outcome("m", 1, key="7")  # also on a connection that was kept
    with pytest.raises(UnavailableError, match="may have been: it is not sent again"):
        client.report_outcome("m", 0.5, version="12")
    assert _sent(server) == [b'{"value":1.0,"key":"7"}', b'{"value":0.5,"version":"12"}']


def test_an_outcome_that_was_not_taken_is_sent_again(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        busy = [_said(status, b"{}", "Retry-After: 0") for status in ("503 Busy", "429 Too Many Requests")]
        server = fake(*busy)
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        connect([server.url, nowhere]).report_outcome("m", True, key="7")  # begins with the second
    assert _sent(server) == [b'{"value":1.0,"key":"7"}'] * 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"value": 1}, "either key or version, got None and None"),
        ({"value": 1, "key": "a", "version": "b"}, "either key or version, got 'a' and 'b'"),
        ({"value": float("nan"), "key": "a"}, "value must be a finite number, got nan"),
    ],
)
def test_an_outcome_that_is_none_is_refused(connect: Callable[..., Any], given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        connect("http://127.0.0.1:1").report_outcome("m", **given)


@pytest.mark.parametrize("given", [1, 3])
def test_an_answer_must_have_a_prediction_for_each_record(
    fake: Callable[..., Fake], connect: Callable[..., Any], given: int
) -> None:
    told = f"a prediction for each of {given} records, got 2"
    for said in (_said("200 OK", b'{"predictions": [1, 2]}'), _events(_part(0, 1, 2), _END)):
        client = connect(fake(said).url)
        with pytest.raises(AnswerError, match=told):
            client.predict([{}] * given) if b"event" not in said else list(client.predict_in_parts([{}] * given))


def test_many_records_are_sent_in_slices(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    """The second breaks off, the third, with its last part, misses only its end."""
    server = fake(
        _events(_part(0, 0, 1), _END), _events(_part(0, 2)), _events(_part(0, 3, 4)), _events(_part(0, 5), _END)
    )
    client = connect(server.url)
    given = [{"a": row} for row in range(6)]
    assert [one for part in client.predict_in_parts(given, max_rows=2) for one in part] == list(range(6))
    assert [re.findall(rb"\d", body) for body in _sent(server)] == [[b"0", b"1"], [b"2", b"3"], [b"3", b"4"], [b"5"]]
    with pytest.raises(ValueError, match=r"records\[3\]\.a must be finite"):
        list(
            connect(fake(_events(_part(0, 0, 1), _END)).url).predict_in_parts(
                [*given[:3], {"a": float("inf")}], max_rows=2
            )
        )
    with pytest.raises(ValueError, match="max_rows must be greater than 0, got 0"):
        list(client.predict_in_parts(given, max_rows=0))


def _told(state: str, rows_done: int = 0, more: str = "") -> bytes:
    body = f'{{"id": "j", "state": "{state}", "rows": 1, "rows_done": {rows_done}{more}}}'
    return _said("202 Accepted" if state == "queued" else "200 OK", body.encode())


def _lines(server: Fake) -> list[str]:
    return [request.partition(b" HTTP")[0].decode() for request in server.requests]


def test_a_job_that_was_taken_is_asked_about_until_its_deadline(
    fake: Callable[..., Fake], connect: Callable[..., Any]
) -> None:
    """Far more often than a call may fail; one that is lost is sent again as long."""
    away = [_CLOSE, _said("503 Busy")] * 4
    lost = _said("404 Not Found")
    script = [_told("queued"), *away, lost, *away, _told("queued"), *away, _told("done", 1), *away, _FINE]
    server = fake(*script, _said("200 OK", b"{}"))
    options = Options(max_tries=3, first_wait_s=0.001, longest_wait_s=0.002)
    assert connect(server.url, options=options).predict_as_job([{"a": 1}], deadline_s=20) == [1]
    assert set(_lines(server)) == {"POST /jobs", "GET /jobs/j", "GET /jobs/j/result", "DELETE /jobs/j"}
    assert len({key for request in server.requests for key in re.findall(rb"idempotency-key: \w+", request)}) == 1
    server = fake(*away)
    with pytest.raises(UnavailableError, match="within 3 tries"):
        connect(server.url, options=options).predict_as_job([{"a": 1}], deadline_s=20)


def test_all_requests_of_a_job_have_the_id_of_its_error(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    failed = _told("failed", 0, ', "status": 422, "error": "records[0].a must be b"')
    for own in (None, {"x-request-id": "mine"}):
        server = fake(_told("queued"), failed, _said("200 OK", b"{}"))
        with pytest.raises(AnswerError, match=r"records\[0\]\.a must be b") as caught:
            connect(server.url).predict_as_job([{"a": 1}], deadline_s=20, headers=own)
        assert _lines(server) == ["POST /jobs", "GET /jobs/j", "DELETE /jobs/j"]
        sent = {re.findall(rb"x-request-id: (\w+)", request)[0].decode() for request in server.requests}
        assert sent == {caught.value.request_id}
        assert own is None or sent == {"mine"}


def test_a_job_that_is_late_tells_how_far_it_is_and_what_was_last(
    fake: Callable[..., Fake], connect: Callable[..., Any]
) -> None:
    server = fake(_told("queued"), _told("running", 1), *[_said("503 Busy", b'{"error": "full"}')] * 9999)
    with pytest.raises(DeadlineError, match=r"within 2 s; the last: .*full; of the job 1 of 1 rows are done"):
        connect(server.url).predict_as_job([{"a": 1}], deadline_s=2.0)
    with pytest.raises(DeadlineError, match=r"within 0\.2 s; .*; the job is not taken yet"):
        connect(fake(_STALL).url).predict_as_job([{"a": 1}], deadline_s=0.2)


def test_the_client_loads_no_engine() -> None:
    command = [sys.executable, "-c", "import sys, lepton_ray.client; print(*sys.modules)"]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert {"aiohttp", "numpy"} <= set(loaded)
    assert {"ray", "onnxruntime", "pyarrow", "pydantic"} & set(loaded) == set()


def test_both_clients_have_the_same_methods_and_the_document_calls_them_as_they_are() -> None:
    text = (Path(__file__).parents[3] / "docs/client.md").read_text(encoding="utf-8")
    called = set()
    for node in ast.walk(ast.parse("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "client"
        ):
            named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(getattr(Client, node.func.attr)).bind(None, *node.args, **named)
            called.add(node.func.attr)
    assert {"predict", "infer", "predict_in_parts", "predict_as_job", "report_outcome"} <= called
    methods = {name for name in vars(Client) if not name.startswith("_")}
    for name in methods:
        taken = [list(inspect.signature(getattr(kind, name)).parameters.values()) for kind in (Client, AsyncClient)]
        assert taken[0] == taken[1]
    assert [name for name in {*methods, *lepton_ray.client.__all__} if name not in text] == []


def test_the_client_names_the_extra_that_it_needs() -> None:
    code = "import sys; sys.modules['aiohttp'] = None; import lepton_ray.client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = "the client needs the package 'aiohttp', which is not installed. Run: pip install 'lepton-ray[client]'."
    assert done.stderr.splitlines()[-1] == f"lepton_ray.core.errors.MissingExtraError: {told}"


def test_parts_are_those_of_the_whole(
    listen: Callable[..., Any], connect: Callable[..., Any], mixed_package: Path
) -> None:
    running = listen()
    client = connect(f"http://127.0.0.1:{running.port}")
    parts = list(client.predict_in_parts(_RECORDS * 200))
    assert len(parts) > 3
    assert [one for part in parts for one in part] == client.predict(_RECORDS * 200)
    seen: list[Any] = []
    with pytest.raises(AnswerError, match=r"records\[200\]\.age must be") as caught:
        seen.extend(client.predict_in_parts([*_RECORDS * 100, {"age": -1, "size": "S"}]))
    assert (caught.value.status, 0 < len(seen) <= 200) == (422, True)
    with pytest.raises(AnswerError) as caught:
        list(client.predict_in_parts([]))
    assert caught.value.status == 400


def _events(*parts: str, end: bytes = b"") -> bytes:
    body = "".join(f"{part}\n\n" for part in parts).encode() + end
    return _said("200 OK", body, "Content-Type: text/event-stream")


def _part(row: int, *predictions: int) -> str:
    return f'event: predictions\nid: {row}\ndata: {{"predictions":{list(predictions)}}}'


_END = 'event: end\nid: 9\ndata: {"rows":9}'


def _sent(server: Fake) -> list[bytes]:
    return [request.partition(b"\r\n\r\n")[2] for request in server.requests]


@pytest.mark.parametrize(
    "broken",
    [
        _events(_part(0, 1, 2)),  # without an end
        _events(_part(0, 1, 2), end=b"event: predictions\nid: 2\nda"),
        _events(_part(0, 1, 2), _part(2, 3))[:-20] + _CLOSE,
    ],
)
def test_parts_that_break_off_go_on_with_the_rest(
    fake: Callable[..., Fake], connect: Callable[..., Any], broken: bytes
) -> None:
    server = fake(_said("503 Busy"), broken, _CLOSE, _events(_part(0, 3), _END))
    given = [{"a": row} for row in range(3)]
    assert list(connect(server.url).predict_in_parts(given)) == [[1, 2], [3]]
    assert _sent(server) == [b'[{"a":0},{"a":1},{"a":2}]'] * 2 + [b'[{"a":2}]'] * (len(server.requests) - 2)
    assert b"accept: text/event-stream\r\n" in server.requests[0].lower()


def test_parts_that_break_off_before_their_end_are_whole_all_the_same(
    fake: Callable[..., Fake], connect: Callable[..., Any]
) -> None:
    server = fake(_events(_part(0, 1, 2)), _said("400 Bad Request", b'{"error":"the body must have records"}'))
    assert list(connect(server.url).predict_in_parts([{"a": 0}, {"a": 1}])) == [[1, 2]]
    assert _sent(server) == [b'[{"a":0},{"a":1}]']


def test_a_later_part_is_named_by_its_place_among_all(fake: Callable[..., Fake], connect: Callable[..., Any]) -> None:
    fault = 'event: error\nid: 1\ndata: {"status":422,"error":"records[1].a must be b"}'
    for last in (_events(_part(0, 3), fault), _said("422 No", b'{"error":"records[1].a must be b"}')):
        server = fake(_events(_part(0, 1, 2)), last)
        with pytest.raises(AnswerError, match=r"records\[3\]\.a must be b") as caught:
            list(connect(server.url).predict_in_parts([{}] * 5))
        assert caught.value.status == 422


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_parts_go_on_after_a_full_queue(fake: Callable[..., Fake], connect: Callable[..., Any], status: int) -> None:
    full = f'event: error\nid: 2\ndata: {{"status":{status},"error":"at most 9 requests may wait"}}'
    server = fake(_events(_part(0, 1, 2), full), _events(_part(0, 3), _END))
    assert list(connect(server.url).predict_in_parts([{"a": row} for row in range(3)])) == [[1, 2], [3]]
    assert _sent(server)[1:] == [b'[{"a":2}]']


def test_parts_that_are_refused_again_and_again_end_at_the_last_try(
    fake: Callable[..., Fake], connect: Callable[..., Any]
) -> None:
    full = 'event: error\nid: 0\ndata: {"status":503,"error":"at most 9 requests may wait"}'
    server = fake(*[_events(full)] * 9)
    quick = Options(max_tries=2, first_wait_s=0.001)
    with pytest.raises(UnavailableError, match=r"within 2 tries; the last: .*at most 9 requests may wait") as caught:
        list(connect(server.url, options=quick).predict_in_parts([{}]))
    assert (caught.value.status, len(server.requests)) == (503, 2)


@pytest.mark.parametrize(
    "said", [_FINE, _events("event: predictions\nid: 0\ndata: {"), _events("what"), _events("data: []")]
)
def test_events_that_are_none_are_told(fake: Callable[..., Fake], connect: Callable[..., Any], said: bytes) -> None:
    with pytest.raises(AnswerError, match="must be of the protocol"):
        list(connect(fake(said).url).predict_in_parts([{}]))


def test_parts_that_do_not_come_end_at_the_deadline_or_at_the_last_try(
    fake: Callable[..., Fake], connect: Callable[..., Any]
) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        list(connect(fake(_STALL).url, options=_PATIENT).predict_in_parts([{}], deadline_s=0.2))
    assert time.monotonic() - begun < _PATIENT.try_s / 2
    quick = Options(try_s=0.5, max_tries=2, first_wait_s=0.001)
    server = fake(_STALL, _STALL, _STALL)
    with pytest.raises(UnavailableError, match=r"within 2 tries; the last: nothing came within 0\.5 s"):
        list(connect(server.url, options=quick).predict_in_parts([{}]))
    assert len(server.requests) == 2


def test_who_takes_no_more_parts_ends_the_work(listen: Callable[..., Any], connect: Callable[..., Any]) -> None:
    running = listen()
    parts = connect(f"http://127.0.0.1:{running.port}").predict_in_parts(_RECORDS * 2000)
    next(parts)
    parts.close()
    deadline = time.monotonic() + 20
    while running.front.num_streams:
        assert time.monotonic() < deadline


def test_a_client_says_so_after_a_fork(fake: Callable[..., Fake]) -> None:
    client = Client(fake(_FINE, _FINE).url, options=_PATIENT)
    assert client.predict([{}]) == [1]
    said, says = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
        child = os.fork()
    if not child:
        signal.alarm(10)  # ends a child that waits for ever
        try:
            client.predict([{}])
        except ValueError as error:
            client.close()
            message = str(error).encode()
        del client
        gc.collect()
        os.write(says, message)
        os._exit(0)
    os.close(says)
    with open(said, "rb") as pipe:
        assert b"was before a fork. Make another" in pipe.read()
    os.waitpid(child, 0)
    begun = time.monotonic()
    assert client.predict([{}]) == [1], "the parent's goes on"
    assert time.monotonic() - begun < _PATIENT.try_s / 2, "by the connection that it has"
    client.close()


def test_parts_that_garbage_collection_ends_hold_nobody(fake: Callable[..., Fake]) -> None:
    """It runs in whichever thread comes to it, such as that of the client's loop."""
    client = Client(fake(_events(_part(0, 1, 2)), _FINE).url, options=_QUICK)
    gc.disable()
    try:
        parts = client.predict_in_parts([{}] * 9)
        assert next(parts) == [1, 2]
        cycle: list[Any] = [parts]
        cycle.append(cycle)
        del parts, cycle
        client._loop.call_soon_threadsafe(gc.collect)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(client.predict([{}])), daemon=True)
        asking.start()
        asking.join(20)
        assert answers == [[1]]
    finally:
        gc.enable()
    client.close()


def test_a_client_that_nobody_has_any_more_ends_its_thread_and_connections(fake: Callable[..., Fake]) -> None:
    server = fake()
    client = Client(server.url, options=_QUICK)
    thread = client._thread
    assert client.predict([{}]) == [1]
    del client
    thread.join(20)
    assert not thread.is_alive()
    unused = Client(server.url)
    thread = unused._thread
    del unused
    thread.join(20)
    assert not thread.is_alive()


def test_a_client_that_has_ended_before_its_end_is_waited_for_ends_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall of this thread: the loop, which waits for its sockets again, must be woken to stop."""

    def run_and_stall(call: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
        future = run(call, loop)
        future.result(20)
        run(asyncio.sleep(0.05), loop).result(20)
        return future

    client = Client("http://127.0.0.1:1")
    thread, run = client._thread, asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", run_and_stall)
    del client
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("place", ["here", "loop"])
def test_a_client_that_is_collected_with_parts_that_are_half_taken_ends(fake: Callable[..., Fake], place: str) -> None:
    """Both in one cycle, found in this thread or in that of another client's loop, which must not wait for an end that never comes."""
    server, other = fake(_events(_part(0, 1, 2)), _FINE), Client(fake().url, options=_QUICK)
    gc.disable()
    try:
        client = Client(server.url, options=_QUICK)
        thread, parts = client._thread, client.predict_in_parts([{}] * 9)
        assert next(parts) == [1, 2]
        client.kept = parts  # type: ignore[attr-defined]
        del client, parts
        if place == "here":
            gc.collect()
        else:
            other._loop.call_soon_threadsafe(gc.collect)
        thread.join(20)
        assert not thread.is_alive()
        assert other.predict([{}]) == [1]
    finally:
        gc.enable()
    other.close()


@pytest.mark.parametrize(
    ("use", "script"),
    [
        ("client.predict([{}])", [_FINE]),
        ("next(client.predict_in_parts([{}] * 2))", [_events(_part(0, 1), _part(1, 2))[:-9]]),
        ("client.predict_as_job([{}], 1.0)", [_told("queued"), _told("done", 1), _FINE, _STALL]),
        ("[1]", []),
    ],
    ids=["used", "parts", "deleting", "unused"],
)
def test_a_client_that_is_kept_until_the_process_ends_ends_with_it(
    fake: Callable[..., Fake], use: str, script: list[bytes]
) -> None:
    """Without a word, and soon: also where parts are half taken, or a job's deletion is not answered."""
    code = f"""import sys
from lepton_ray.client import Client, Options
client = Client(sys.argv[1], options=Options(try_s=600))
kept = {use}
print(kept)
sys.exit(3)"""
    command = [sys.executable, "-c", code, fake(*script).url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("[1]\n", "", 3)


def test_a_client_is_there_as_long_as_a_thread_asks_it(fake: Callable[..., Fake]) -> None:
    server = fake(_said("503 Busy", b"{}", "Retry-After: 0"), _FINE)
    client = Client(server.url, options=_QUICK)
    thread, answers = client._thread, []
    ask = client.predict
    asking = threading.Thread(target=lambda ask: answers.append(ask([{}])), args=(ask,), daemon=True)
    asking.start()
    del client, ask
    asking.join(20)
    del asking
    assert answers == [[1]]
    thread.join(20)
    assert not thread.is_alive()
