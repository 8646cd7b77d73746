"""gRPC at a listener: what grpcio's own client is told, and what clients do that are none."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import Frame, GoAwayFrame, PingFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.package import open_package
from lepton_ray.core.status import HTTP_LATE, HTTP_NO_ROOM
from lepton_ray.serve.access import AccessLog
from lepton_ray.serve.endpoint import Endpoint, Limits, NoMeter, error_response
from lepton_ray.serve.grpc_connection import GrpcConnection
from lepton_ray.serve.grpc_messages import ASKING, CLASSES, SERVICE, peek_model
from lepton_ray.serve.guard import Guard
from lepton_ray.serve.tokens import create_token, read_tokens
from lepton_ray.spec.release import ListenerSpec, RateLimitSpec

from .conftest import LONG, RECORD, Running

_TIMEOUT_S = 60
_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    (":path", SERVICE + "ModelInfer"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


@pytest.fixture
def serve(listen: Callable[..., Running]) -> Callable[..., Running]:
    """``listen``, for gRPC."""
    return lambda **options: listen(connect=GrpcConnection, **options)


class Caller:
    """grpcio's client."""

    def __init__(self, port: int, *options: tuple[str, int]) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1), *options])

    def start(self, method: str, message: Any, *metadata: tuple[str, str], path: str | None = None) -> Any:
        ask = self.channel.unary_unary(
            path or SERVICE + method,
            request_serializer=lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
            response_deserializer=CLASSES.get(f"{method}Response", CLASSES["ServerLiveResponse"]).FromString,
        )
        return ask.future(message, timeout=_TIMEOUT_S, metadata=metadata)

    def ask(self, method: str, *metadata: tuple[str, str], **fields: Any) -> Any:
        return self.start(method, CLASSES[f"{method}Request"](**fields), *metadata).result()

    def refusal(self, method: str, *metadata: tuple[str, str], **fields: Any) -> tuple[str, str]:
        """Return the code and the words of a call that must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(method, *metadata, **fields)
        return caught.value.code().name, caught.value.details()


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []

    def make(port: int, *options: tuple[str, int]) -> Caller:
        callers.append(Caller(port, *options))
        return callers[-1]

    yield make
    for caller in callers:
        caller.channel.close()


def tensors(rows: int = 1, raw: bool = True, **more: Any) -> dict[str, Any]:
    """Fields of a request for ``rows`` rows of the mixed package."""
    numbers, texts = np.tile([30.0, 10.5], rows), [b"red", b"S"] * rows
    shape = [rows, 2]
    if raw:
        raw_texts = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        inputs = [
            dict(name=name, datatype=datatype, shape=shape)
            for name, datatype in (("numbers", "FP64"), ("categories", "BYTES"))
        ]
        return {"model_name": "demo", "inputs": inputs, "raw_input_contents": [numbers.tobytes(), raw_texts], **more}
    inputs = [
        dict(name="numbers", datatype="FP64", shape=shape, contents=dict(fp64_contents=numbers)),
        dict(name="categories", datatype="BYTES", shape=shape, contents=dict(bytes_contents=texts)),
    ]
    return {"model_name": "demo", "inputs": inputs, **more}


def predictions_of(running: Running, rows: int = 1) -> list[dict[str, Any]]:
    answer = running.endpoint.ask("POST", "/predict", json.dumps([RECORD] * rows).encode())
    return list(json.loads(answer.body)["predictions"])


def test_a_further_model_answers_itself(serve: Any, call: Any, rival_package: Path) -> None:
    running = serve()
    rival = open_package(rival_package)
    running.shelve("other", rival, NoMeter())
    caller = call(running.port)
    for model, told in (("other", rival.version), ("demo", running.endpoint.version)):
        for version in ("", told):
            answer = caller.ask("ModelInfer", **{**tensors(), "model_name": model, "model_version": version})
            assert (answer.model_name, answer.model_version) == (model, told)
    for model, version in (("nobody", ""), ("other", running.endpoint.version)):
        fields = {**tensors(), "model_name": model, "model_version": version}
        assert caller.refusal("ModelInfer", **fields)[0] == "NOT_FOUND"


def test_what_is_told_is_what_http_tells(serve: Any, call: Any) -> None:
    running = serve(limits=Limits(max_rows=9))
    caller = call(running.port)
    assert caller.ask("ServerLive").live
    assert caller.ask("ServerReady").ready
    assert caller.ask("ModelReady", name="demo").ready
    server = caller.ask("ServerMetadata")
    assert (server.name, "statistics" in server.extensions) == ("lepton_ray", True)
    metadata = caller.ask("ModelMetadata", name="demo", version=running.endpoint.version)
    told = json.loads(running.endpoint.ask("GET", "/v2/models/demo").body)
    assert list(metadata.versions) == told["versions"]
    for kind in ("inputs", "outputs"):
        given = [dict(name=one.name, datatype=one.datatype, shape=list(one.shape)) for one in getattr(metadata, kind)]
        assert given == [{key: one[key] for key in ("name", "datatype", "shape")} for one in told[kind]]
    config = caller.ask("ModelConfig", name="demo").config
    assert (config.max_batch_size, [list(one.dims) for one in config.input]) == (9, [[2], [2]])
    assert (config.output[0].data_type, list(config.output[0].dims)) == (13, [1])
    (entry,) = caller.ask("RepositoryIndex").models
    assert (entry.name, entry.version, entry.state) == ("demo", running.endpoint.version, "READY")
    caller.ask("ModelInfer", **tensors(3))
    every, one = caller.ask("ModelStatistics").model_stats, caller.ask("ModelStatistics", name="demo").model_stats
    assert every == one
    assert (one[0].inference_count, one[0].inference_stats.success.count) == (3, 1)
    assert one[0].inference_stats.compute_infer.ns > 0
    assert running.meter.calls == [("grpc", 200)]


@pytest.mark.parametrize("raw", [True, False])
def test_answers_are_those_of_http(serve: Any, call: Any, raw: bool) -> None:
    running = serve()
    answer = call(running.port).ask("ModelInfer", **tensors(2, raw, id="seven"))
    expected = predictions_of(running, 2)
    assert (answer.model_name, answer.model_version, answer.id) == ("demo", running.endpoint.version, "seven")
    outputs = {one.name: (index, one) for index, one in enumerate(answer.outputs)}
    index, probabilities = outputs["probabilities"]
    assert list(probabilities.shape) == [2, 3]
    values = np.frombuffer(answer.raw_output_contents[index], "<f4") if raw else probabilities.contents.fp32_contents
    flat = [value for one in expected for value in one["probabilities"].values()]
    assert np.abs(np.array(values) - flat).max() < 1e-6
    index, label = outputs["label"]
    texts = [one["label"].encode() for one in expected]
    if raw:
        assert answer.raw_output_contents[index] == b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    else:
        assert list(label.contents.bytes_contents) == texts
        assert not answer.raw_output_contents
    one = call(running.port).ask("ModelInfer", **tensors(1, raw, outputs=[dict(name="label")]))
    assert [output.name for output in one.outputs] == ["label"]
    assert running.listener.buffered_bytes == 0


def test_pictures_come_through(listen: Any, call: Any, picture_package: Path) -> None:
    running = listen(picture_package, connect=GrpcConnection)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
    head = dict(name="image", datatype="UINT8", shape=[2, 2, 3, 1])
    fields = (
        {"inputs": [head], "raw_input_contents": [pixels.tobytes()]},
        {"inputs": [{**head, "contents": {"uint_contents": pixels.ravel()}}]},
    )
    raw, typed = (call(running.port).ask("ModelInfer", model_name="demo", **one) for one in fields)
    index = [one.name for one in raw.outputs].index("label")
    assert raw.raw_output_contents[index] == b"\4\0\0\0even" * 2
    assert list(typed.outputs[index].contents.bytes_contents) == [b"even"] * 2


def test_refusals_have_the_codes_of_grpc(serve: Any, call: Any) -> None:
    running = serve(limits=Limits(max_rows=4, max_request_bytes=2000))
    caller = call(running.port)
    code, words = caller.refusal("ModelInfer", **tensors(model_name="other"))
    assert (code, words[:24]) == ("NOT_FOUND", "the model must be 'demo'")
    assert caller.refusal("ModelInfer", **tensors(model_version="1"))[0] == "NOT_FOUND"
    code, words = caller.refusal("ModelInfer", **tensors(5))
    assert (code, "1 to 4 rows, got 5" in words) == ("INVALID_ARGUMENT", True)
    code, words = caller.refusal("ModelInfer", **tensors(100))
    assert (code, "at most 2000 bytes" in words) == ("RESOURCE_EXHAUSTED", True)
    assert caller.refusal("ModelInfer", model_name="demo")[0] == "INVALID_ARGUMENT"
    bad = tensors()
    bad["raw_input_contents"][1] = b"\4\0\0\0\xff\xff\xff\xff" * 2
    code, words = caller.refusal("ModelInfer", **bad)
    assert (code, "UTF-8" in words) == ("INVALID_ARGUMENT", True)
    code, words = caller.refusal("ModelInfer", **tensors(raw=False) | {"raw_input_contents": [b"", b""]})
    assert (code, "must not stand beside" in words) == ("INVALID_ARGUMENT", True)
    code, words = caller.refusal("ModelInfer", **tensors() | {"raw_input_contents": [b""]})
    assert (code, "as many as inputs (2)" in words) == ("INVALID_ARGUMENT", True)
    for method, fields, expected in (
        ("ModelMetadata", {"name": "other"}, "NOT_FOUND"),
        ("ModelMetadata", {"name": "stats"}, "INVALID_ARGUMENT"),
        ("ModelMetadata", {"name": "demo/stats"}, "INVALID_ARGUMENT"),
        ("ModelReady", {"name": "demo", "version": "0"}, "NOT_FOUND"),
        ("ModelStatistics", {"name": "other"}, "NOT_FOUND"),
        ("ModelReady", {"name": "x" * 20_000}, "RESOURCE_EXHAUSTED"),
    ):
        assert caller.refusal(method, **fields)[0] == expected, (method, fields)
    for path in (SERVICE + "ModelStreamInfer", "/other.Service/ModelInfer", SERVICE):
        with pytest.raises(grpc.RpcError) as caught:
            caller.start("ServerLive", b"", path=path).result()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        caller.start("ModelInfer", b"\xff\xff\xff").result()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caller.ask("ModelInfer", **tensors()).outputs
    assert running.listener.buffered_bytes == 0


def test_many_tensors_of_few_bytes_are_refused_before_they_are_made(serve: Any, call: Any) -> None:
    asked = call(serve().port).start("ModelInfer", b"\x0a\x04demo" + b"\x2a\x00" * (1 << 20))
    assert asked.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 256 fields" in asked.details()


def test_a_name_that_is_given_a_million_times_is_looked_at_a_few_times() -> None:
    """On the event loop, which everybody waits for."""
    body = b"\x0a\x01a" * (1 << 20)
    begun = time.process_time()
    assert peek_model(body) == ("a", "")
    assert time.process_time() - begun < 0.05


def test_a_model_that_is_named_last_is_checked_all_the_same(serve: Any, call: Any) -> None:
    caller = call(serve().port)
    fields = tensors()
    rest = CLASSES["ModelInferRequest"](**{**fields, "model_name": ""}).SerializeToString()
    for name, is_answered in ((b"demo", True), (b"other", False)):
        running = caller.start("ModelInfer", rest + b"\x0a%c%b" % (len(name), name))
        assert (running.code() is grpc.StatusCode.OK) == is_answered


def test_tokens_and_rates_count_here_too(serve: Any, call: Any, tmp_path: Path) -> None:
    secret = create_token(tmp_path / "tokens.json", "app", ("predict",), None, None)
    guard = Guard(RateLimitSpec(requests_per_second=4, burst=2))
    guard.use(read_tokens(tmp_path / "tokens.json"))
    running = serve(guard=guard)
    caller = call(running.port)
    good = ("authorization", f"Bearer {secret}")
    assert caller.refusal("ModelInfer", **tensors())[0] == "UNAUTHENTICATED"
    assert caller.refusal("ModelInfer", ("authorization", "Bearer no"), **tensors())[0] == "UNAUTHENTICATED"
    assert caller.refusal("ModelInfer", good, good, **tensors())[0] == "UNAUTHENTICATED"
    assert caller.refusal("ModelMetadata", good, name="demo")[0] == "PERMISSION_DENIED"
    assert caller.ask("ServerReady").ready
    assert caller.refusal("ModelInfer", good, **tensors())[0] == "RESOURCE_EXHAUSTED"
    guard.purses[""].units = 5.0
    assert caller.ask("ModelInfer", good, **tensors()).outputs
    assert [code for _, code in running.meter.calls] == [401, 401, 401, 429, 200]


def test_ids_come_back_and_the_log_has_the_call(serve: Any, call: Any, tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    running = serve(access_log=log)
    caller = call(running.port)
    asked = caller.start("ModelInfer", CLASSES["ModelInferRequest"](**tensors(2)), ("x-request-id", "job-7"))
    asked.result()
    metadata = dict(asked.initial_metadata())
    assert (metadata["x-request-id"], metadata["x-model-version"]) == ("job-7", running.endpoint.version)
    given = [dict(caller.start("ServerLive", b"").initial_metadata())["x-request-id"] for _ in range(2)]
    assert len(set(given)) == 2
    caller.refusal("ModelInfer", **tensors(model_name="other"))
    running.call(log.flush())
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 200, 404]
    assert (lines[0]["id"], lines[0]["path"], lines[0]["rows"]) == ("job-7", SERVICE + "ModelInfer", 2)
    assert lines[0]["version"] == running.endpoint.version


def test_many_calls_of_one_connection_are_answered_each(serve: Any, call: Any) -> None:
    for options in ({}, {"cost": LONG}):
        running = serve(**options)
        caller = call(running.port)
        under_way = [
            caller.start("ModelInfer", CLASSES["ModelInferRequest"](**tensors(1 + n % 7, id=str(n))))
            for n in range(300)
        ]
        for n, one in enumerate(under_way):
            answer = one.result()
            assert (answer.id, answer.outputs[0].shape[0]) == (str(n), 1 + n % 7)
        assert running.listener.buffered_bytes == 0


def test_a_full_queue_says_so(serve: Any, call: Any) -> None:
    running = serve(max_waiting=0)
    asked = call(running.port, ("grpc.enable_retries", 0)).start(
        "ModelInfer", CLASSES["ModelInferRequest"](**tensors())
    )
    assert asked.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(asked.trailing_metadata())["retry-after"] == "1"


def test_large_messages_go_both_ways(serve: Any, call: Any) -> None:
    """Larger than every window: what does not fit waits for the client's updates."""
    running = serve(limits=Limits(max_request_bytes=64 << 20, max_rows=1 << 20))
    caller = call(running.port, ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    rows = 150_000
    answer = caller.ask("ModelInfer", **tensors(rows))
    assert len(answer.raw_output_contents[0]) > 1 << 20
    assert answer.outputs[0].shape[0] == rows
    assert running.listener.buffered_bytes == 0


def test_leaving_loses_no_call(serve: Any, call: Any) -> None:
    """Calls that come while a listener drains are answered, by it or by another one of the same socket."""
    leaving = serve()
    staying = serve()
    staying.call(staying.listener.drain(5))  # of its own socket; it goes on at the other's
    staying.listener.is_draining = False
    failures: list[Any] = []
    counts = [0, 0, 0, 0]
    stop = threading.Event()

    def ask_on(number: int, caller: Caller) -> None:
        while not stop.is_set():
            try:
                caller.ask("ModelInfer", **tensors())
            except grpc.RpcError as error:
                failures.append(error)
                return
            counts[number] += 1

    threads = [threading.Thread(target=ask_on, args=(n, call(leaving.port))) for n in range(len(counts))]
    for thread in threads:
        thread.start()
    _wait_until(lambda: min(counts) > 5)
    staying.loop.call_soon_threadsafe(staying.listener.start, leaving.socket)
    before = list(counts)
    leaving.call(leaving.listener.drain(20))
    _wait_until(lambda: all(now > then + 20 for now, then in zip(counts, before, strict=True)) or bool(failures))
    stop.set()
    for thread in threads:
        thread.join(_TIMEOUT_S)
    assert not failures
    assert staying.meter.calls
    assert {code for _, code in leaving.meter.calls + staying.meter.calls} == {200}


def _wait_until(is_so: Callable[[], bool]) -> None:
    condition = threading.Condition()
    with condition:
        assert condition.wait_for(is_so, 0) or any(condition.wait(0.02) or is_so() for _ in range(_TIMEOUT_S * 50))


class Raw:
    """A client of h2's own, that does as it likes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.h2 = H2Connection(H2Configuration(validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.events: list[Any] = []
        self.is_open = True

    def send(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def open(self, *more: tuple[str, str]) -> int:
        id = self.h2.get_next_available_stream_id()
        headers = dict([*_HEADERS, *more])
        self.h2.send_headers(id, list(headers.items()))
        self.send()
        return id

    def ask(self, message: bytes) -> int:
        """Send a whole message, as the windows allow, and return its stream."""
        id = self.open()
        body = memoryview(b"\0%b%b" % (len(message).to_bytes(4, "big"), message))
        while body:
            size = min(self.h2.local_flow_control_window(id), self.h2.max_outbound_frame_size, len(body))
            if size == 0:
                self.events += self.h2.receive_data(self.socket.recv(1 << 16))
                continue
            self.h2.send_data(id, bytes(body[:size]), end_stream=size == len(body))
            body = body[size:]
            self.send()
        return id

    def read_until(self, kind: Any, id: int | None = None) -> Any:
        """Return the first event of a kind, or None if the connection ends before."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and (id is None or getattr(event, "stream_id", None) == id):
                    return event
            data = self.socket.recv(1 << 16)
            if not data:
                self.is_open = False
                return None
            try:
                self.events += self.h2.receive_data(data)
            except ProtocolError:  # h2 takes nothing after a GOAWAY, though it may be one that leaves time
                self.events.append(ConnectionTerminated())
                continue
            self.send()

    def status(self, id: int) -> str:
        event = self.read_until(ResponseReceived, id)
        return dict(event.headers).get(b"grpc-status", b"").decode()


@pytest.fixture
def connect() -> Iterator[Callable[[int], Raw]]:
    raws: list[Raw] = []

    def make(port: int) -> Raw:
        raws.append(Raw(port))
        return raws[-1]

    yield make
    for raw in raws:
        raw.socket.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "3"),
        (b"\0\0\0", "3"),
        (b"\0\0\0\0\x05abc", "3"),
        (b"\0\0\0\0\x01abc", "3"),
        (b"\1\0\0\0\x03abc", "12"),
        (b"\0\xff\xff\xff\xff", "8"),
        (b"\0\0\0\0\x00", "3"),
    ],
)
def test_frames_that_are_none_are_refused(serve: Any, connect: Any, body: bytes, status: str) -> None:
    running = serve()
    client = connect(running.port)
    id = client.open()
    client.h2.send_data(id, body, end_stream=True)
    client.send()
    assert client.status(id) == status
    assert client.read_until(StreamEnded, id)
    assert running.listener.buffered_bytes == 0
    assert [name for name, _ in running.meter.calls] == ["grpc"]


def test_what_is_no_grpc_is_refused(serve: Any, connect: Any) -> None:
    client = connect(serve().port)
    for more in ((("content-type", "application/json"),), ((":method", "GET"),)):
        id = client.open(*more)
        assert dict(client.read_until(ResponseReceived, id).headers)[b":status"] == b"415"
    with socket.create_connection(("127.0.0.1", client.socket.getpeername()[1]), timeout=20) as other:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        while other.recv(1 << 16):
            pass


def test_a_frame_that_is_too_long_is_not_gathered(serve: Any, connect: Any) -> None:
    client = connect(serve().port)
    id = client.open()
    client.send()
    client.socket.sendall((1 << 23).to_bytes(3, "big") + b"\0\0" + id.to_bytes(4, "big"))
    with contextlib.suppress(OSError):
        for _ in range(8):
            client.socket.sendall(bytes(1 << 20))
    with contextlib.suppress(ConnectionResetError):
        while client.socket.recv(1 << 16):
            pass


def _header_block() -> bytes:
    return bytes(Encoder().encode(_HEADERS))


def _frame(kind: int, id: int, body: bytes = b"", flags: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + id.to_bytes(4, "big") + body


def _setting(code: int, value: int = 0) -> bytes:
    return code.to_bytes(2, "big") + value.to_bytes(4, "big")


_RST, _SETTINGS_FRAME, _CONTINUATION = 3, 4, 9


@pytest.mark.parametrize(
    "sent",
    [
        _frame(_SETTINGS_FRAME, 0) * 1_100,
        _frame(_SETTINGS_FRAME, 0, b"".join(_setting(code) for code in range(9, 9 + 1_100))),
        b"".join(_frame(1, id, _header_block(), 4) + _frame(_RST, id, b"\0\0\0\x08") for id in range(1, 2_400, 2)),
        _frame(1, 1, _header_block()) + _frame(_CONTINUATION, 1, bytes(16_000)) * 3,
    ],
    ids=["settings", "unknown settings", "rapid reset", "a head without an end"],
)
def test_what_costs_more_than_it_is_worth_ends_the_connection(serve: Any, connect: Any, sent: bytes) -> None:
    running = serve()
    client = connect(running.port)
    client.send()
    with contextlib.suppress(OSError):
        client.socket.sendall(sent)
    with contextlib.suppress(ConnectionResetError):
        while client.socket.recv(1 << 16):
            pass
    _wait_until(lambda: not running.listener._connections)


def test_a_client_that_gives_up_on_some_calls_goes_on(serve: Any, connect: Any) -> None:
    client = connect(serve().port)
    client.send()
    client.socket.sendall(_frame(_SETTINGS_FRAME, 0, _setting(0xF00D, 1)))
    for _ in range(300):
        client.h2.reset_stream(client.open())
        client.send()
    id = client.open()
    client.h2.send_data(id, b"\0\0\0", end_stream=True)
    client.send()
    assert client.status(id) == "3"


def test_an_answer_of_which_a_byte_is_taken_now_and_then_is_dropped(serve: Any, connect: Any) -> None:
    """Each window opens by a byte: what counts is that a MiB goes in the time, or all that is left."""
    running = serve(limits=Limits(max_rows=1 << 20))
    client = connect(running.port)
    message = CLASSES["ModelInferRequest"](**tensors(5_000)).SerializeToString()
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1})
    id = client.ask(message)
    assert client.read_until(DataReceived, id)
    for second in range(15, 40, 5):
        client.h2.increment_flow_control_window(1, id)
        client.send()
        running.sweep(second)
    assert client.read_until(StreamReset, id).error_code == 8


def test_a_refusal_does_not_wait_for_the_message(serve: Any, connect: Any, tmp_path: Path) -> None:
    guard = Guard()
    create_token(tmp_path / "tokens.json", "app", ("predict",), None, None)
    guard.use(read_tokens(tmp_path / "tokens.json"))
    client = connect(serve(guard=guard).port)
    id = client.open()
    assert client.status(id) == "16"
    assert client.read_until((StreamEnded, StreamReset), id)


def test_streams_are_bounded_also_those_that_are_reset(serve: Any, connect: Any) -> None:
    running = serve(cost=LONG)
    client = connect(running.port)
    held = threading.Event()
    running.call(_hold(running, held))
    message = CLASSES["ModelInferRequest"](**tensors()).SerializeToString()
    opened: list[int] = []
    for _ in range(100):
        id = client.h2.get_next_available_stream_id()
        client.h2.send_headers(id, _HEADERS)
        client.h2.send_data(id, b"\0%b%b" % (len(message).to_bytes(4, "big"), message), end_stream=True)
        opened.append(id)
    client.h2.ping(b"12345678")
    client.send()
    assert client.read_until(PingAckReceived)
    for id in opened:
        client.h2.reset_stream(id)
    id = client.open()
    assert client.read_until(StreamReset, id).error_code == 7
    held.set()
    _wait_until(lambda: len(running.meter.calls) == 100)
    assert client.status(client.open(("content-type", "application/grpc+proto"), (":path", "/x"))) == "12"


@pytest.mark.parametrize(
    ("status", "code"),
    [(HTTP_LATE, grpc.StatusCode.DEADLINE_EXCEEDED), (HTTP_NO_ROOM, grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
def test_a_late_challenger_and_a_model_without_room_have_their_codes(
    serve: Any, call: Any, monkeypatch: pytest.MonkeyPatch, status: int, code: Any
) -> None:
    monkeypatch.setattr(Endpoint, "predict", lambda _, calls: [error_response(status, "so it is")] * len(calls))
    assert call(serve().port).refusal("ModelInfer", **tensors()) == (code.name, "so it is")


def test_a_call_that_comes_with_the_answer_to_the_ping_is_answered(serve: Any, connect: Any) -> None:
    """A client may have begun it before it has read that it is to leave; gRPC's writes the ping's answer first."""
    running = serve()
    client = connect(running.port)
    _be_asked_to_leave(running, client)
    id = _ask(client)
    client.socket.sendall(_PING_ANSWER + client.h2.data_to_send())
    *frames, last = _read_to_the_end(client)
    assert isinstance(last, GoAwayFrame)
    assert last.last_stream_id == id
    assert [frame.stream_id for frame in frames if "END_STREAM" in frame.flags] == [id]
    assert running.meter.calls == [("grpc", 200)]
    client.socket.close()


def test_a_call_that_comes_after_the_last_word_is_told_that_nobody_has_seen_it(serve: Any, connect: Any) -> None:
    running = serve()
    client = connect(running.port)
    _be_asked_to_leave(running, client)
    client.socket.sendall(_PING_ANSWER)
    *_, last = _read_to_the_end(client)
    assert isinstance(last, GoAwayFrame)
    assert last.last_stream_id == 0
    _ask(client)
    client.socket.sendall(client.h2.data_to_send())
    assert running.listener._connections  # a socket that is closed by now resets, and takes back what it has said
    assert running.meter.calls == []
    client.socket.close()
    _wait_until(lambda: not running.listener._connections)


@pytest.mark.parametrize("is_together", [True, False])
def test_calls_of_a_client_that_says_it_opens_no_more_are_answered(serve: Any, connect: Any, is_together: bool) -> None:
    """As gRPC's client in Java does when its channel is shut down in an orderly way."""
    running = serve(cost=LONG)
    client = connect(running.port)
    client.send()
    client.read_until(RemoteSettingsChanged)
    held = threading.Event()
    running.call(_hold(running, held))
    id = _ask(client)
    last_word = GoAwayFrame(0, last_stream_id=0).serialize()
    client.socket.sendall(client.h2.data_to_send() + (last_word if is_together else b""))
    _wait_until(lambda: running.listener.buffered_bytes > 0)
    if not is_together:
        client.socket.sendall(last_word)
        running.call(asyncio.sleep(0.05))
    held.set()
    *frames, last = _read_to_the_end(client)
    assert isinstance(last, GoAwayFrame)
    assert [frame.stream_id for frame in frames if "END_STREAM" in frame.flags] == [id]
    client.socket.close()
    _wait_until(lambda: not running.listener._connections)


def test_a_client_that_complains_is_closed_at_once(serve: Any, connect: Any) -> None:
    client = connect(serve().port)
    client.send()
    client.read_until(RemoteSettingsChanged)
    client.socket.sendall(GoAwayFrame(0, last_stream_id=0, error_code=1).serialize())
    assert client.read_until(ResponseReceived) is None


def test_a_client_that_does_not_take_the_last_that_is_sent_is_cut_off(serve: Any) -> None:
    running = serve()
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = Raw.__new__(Raw)
    with socket.socket() as client.socket:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.connect(("127.0.0.1", running.port))
        client.h2 = H2Connection(H2Configuration(validate_outbound_headers=False))
        client.h2.initiate_connection()
        for _ in range(8):
            id = client.h2.get_next_available_stream_id()
            message = CLASSES["ModelInferRequest"](**tensors(100)).SerializeToString()
            client.h2.send_headers(id, _HEADERS)
            client.h2.send_data(id, b"\0%b%b" % (len(message).to_bytes(4, "big"), message), end_stream=True)
        client.send()
        _wait_until(lambda: len(running.meter.calls) == 8)
        running.call(asyncio.sleep(0.05))
        (connection,) = running.listener._connections
        assert 0 < connection._transport.get_write_buffer_size() < 64 << 10
        client.socket.sendall(b"\0" * 100)  # no frames: the connection ends
        _wait_until(lambda: connection._transport.is_closing())
        for after_s in (1, 40):
            running.sweep(after_s)
        running.call(asyncio.sleep(0.01))
        assert not running.listener._connections


@pytest.mark.slow
def test_a_client_that_never_closes_is_closed(serve: Any, connect: Any) -> None:
    running = serve()
    client = connect(running.port)
    _be_asked_to_leave(running, client)
    client.socket.sendall(_PING_ANSWER)
    _wait_until(lambda: not running.listener._connections)


_PING_ANSWER = PingFrame(0, b"goingon?", flags=["ACK"]).serialize()


def _be_asked_to_leave(running: Running, client: Raw) -> None:
    client.send()
    client.read_until(RemoteSettingsChanged)

    async def leave() -> None:
        for connection in running.listener._connections:
            connection.start_draining()

    running.call(leave())
    data = b""
    while PingFrame(0, b"goingon?").serialize() not in data:
        data += client.socket.recv(1 << 16)


def _ask(client: Raw) -> int:
    id = client.h2.get_next_available_stream_id()
    message = CLASSES["ModelInferRequest"](**tensors()).SerializeToString()
    client.h2.send_headers(id, _HEADERS)
    client.h2.send_data(id, b"\0%b%b" % (len(message).to_bytes(4, "big"), message), end_stream=True)
    return id


def _read_to_the_end(client: Raw) -> list[Frame]:
    """Return the frames that come; h2 reads none after a GOAWAY."""
    data = b""
    while part := client.socket.recv(1 << 16):
        data += part
    frames: list[Frame] = []
    while data:
        frame, size = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + size]))
        frames.append(frame)
        data = data[9 + size :]
    return frames


async def _hold(running: Running, until: threading.Event) -> None:
    """Keep the worker thread of the batches busy."""
    running.batcher._worker.submit(until.wait, _TIMEOUT_S)


def test_a_request_that_does_not_come_is_refused(serve: Any, connect: Any) -> None:
    running = serve(connections=ListenerSpec(receive_timeout_s=0.5))
    client = connect(running.port)
    id = client.open()
    client.h2.send_data(id, b"\0\0\0\1\0" + b"x" * 50)
    client.send()
    assert client.status(id) == "4"
    assert running.listener.buffered_bytes == 0


def test_an_answer_that_is_not_taken_is_dropped(serve: Any, connect: Any) -> None:
    running = serve(limits=Limits(max_rows=1 << 20))
    client = connect(running.port)
    id = client.ask(CLASSES["ModelInferRequest"](**tensors(20_000)).SerializeToString())

    def received() -> int:
        return sum(len(event.data) for event in client.events if isinstance(event, DataReceived))

    while received() < 65_535:
        client.events += client.h2.receive_data(client.socket.recv(1 << 16))
    running.sweep(40)
    assert client.read_until(StreamReset, id).error_code == 8  # the windows of its client stay shut
    assert received() == 65_535


def test_idle_connections_are_let_go(serve: Any, connect: Any) -> None:
    client = connect(serve(connections=ListenerSpec(idle_timeout_s=0.2)).port)
    client.send()
    assert client.read_until(ConnectionTerminated)


def test_old_connections_are_let_go_without_loss(serve: Any, call: Any) -> None:
    running = serve(connections=ListenerSpec(connection_age_s=0.1))
    caller = call(running.port)
    seen = set()
    for _ in range(60_000):
        caller.ask("ServerLive")
        seen |= set(running.listener._connections)
        if len(seen) > 2:
            break
    assert len(seen) > 2


def test_a_client_that_goes_leaves_nothing(serve: Any, connect: Any) -> None:
    running = serve(cost=LONG)
    for _ in range(3):
        client = connect(running.port)
        client.open()
        id = client.open()
        client.h2.send_data(id, b"\0\0\0\1\0" + b"x" * 50)
        client.send()
        _wait_until(lambda: running.listener.buffered_bytes > 0)  # closing may take back what has not been read
        client.socket.close()
        _wait_until(lambda: not running.listener._connections)
    assert len(running.meter.calls) == 6
    assert running.listener.buffered_bytes == 0
    assert set(running.meter.calls) == {("grpc", 400)}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nothing_that_is_sent_breaks_a_listener(fuzzed: Running, data: st.DataObject) -> None:
    head = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if data.draw(st.booleans(), "preface") else b""
    frame = st.builds(
        lambda kind, flags, id, body: (
            len(body).to_bytes(3, "big") + bytes([kind, flags]) + id.to_bytes(4, "big") + body
        ),
        st.integers(0, 11),
        st.integers(0, 255),
        st.sampled_from([0, 1, 1, 3, 2, 2**31 - 1]),
        st.one_of(st.binary(max_size=60), st.sampled_from([_header_block(), b"\0\0\0\0\x00", b"\0" * 8])),
    )
    sent = head + b"".join(data.draw(st.lists(frame, max_size=12), "frames"))
    with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        try:
            while client.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
    assert fuzzed.faults == []


@pytest.fixture(scope="module")
def fuzzed(_sealed: Path) -> Iterator[Any]:
    loop = asyncio.new_event_loop()
    running = Running(_sealed / "mixed", loop, connect=GrpcConnection)
    running.faults = []  # type: ignore[attr-defined]
    loop.set_exception_handler(lambda _, context: running.faults.append(context))  # type: ignore[attr-defined]
    yield running
    assert Caller(running.port).ask("ModelInfer", **tensors()).outputs
    assert running.listener.buffered_bytes == 0
    running.stop()


def test_every_method_has_its_messages() -> None:
    assert all(f"{name}{kind}" in CLASSES for name in ASKING for kind in ("Request", "Response"))
