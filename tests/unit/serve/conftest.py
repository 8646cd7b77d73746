"""A listener in a thread of its own, on a port of loopback, and raw clients of it."""

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from lepton_ray.artifacts.package import ModelPackage, open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve.access import AccessLog
from lepton_ray.serve.batching import Batcher, Cost
from lepton_ray.serve.connection import Connection
from lepton_ray.serve.endpoint import Endpoint, Limits, Meter, NoMeter
from lepton_ray.serve.front import Front, Variant
from lepton_ray.serve.guard import Guard
from lepton_ray.serve.http import AsgiApp, asgi_app
from lepton_ray.serve.listener import Listener
from lepton_ray.serve.rollout.holding import Holding, Serving
from lepton_ray.serve.shelf import Shelf, take
from lepton_ray.spec.release import ListenerSpec

RECORD = {"age": 30, "income": 10.5, "colour": "red", "size": "S"}
"""One of the mixed package."""
SHORT, LONG = Cost(0.0, 0.0), Cost(1.0, 1.0)
"""With these all parsed calls run on the event loop, or all in the thread."""


OLD = ListenerSpec().model_copy(update={"connection_age_s": 0.0})
"""Every connection is old at once: a clock of milliseconds does not see the least age that a spec may have."""


class CountingMeter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def observe(self, protocol_name: str, code: int, seconds: Sequence[float], outputs: Any) -> None:
        assert min(seconds) >= 0
        self.calls += [(protocol_name, code)] * len(seconds)


def make_holding() -> Holding:
    """What a replica holds, open to everybody and watched by nobody."""
    serving = Serving(lambda ref: open_package(Path(ref.uri)), "demo", 1, Limits(), 1000)
    return Holding(serving, lambda version: NoMeter(), guard=None, watch=lambda predictor: predictor)


@dataclass
class Answer:
    """A response as a client reads it; names of headers are lower case."""

    code: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def read(self, method: str = "GET") -> Answer:
        """Read one response; never a byte beyond it."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.fp.close()
        response.fp = _Unbuffered(self.socket)  # type: ignore[assignment]
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def ask(self, raw: bytes) -> Answer:
        self.send(raw)
        return self.read()

    def is_closed(self) -> bool:
        """Wait for the end of the stream; whether nothing came before it."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()


class _Unbuffered:
    """Reads a socket a byte at a time, so that the next response stays in it."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source

    def readline(self, limit: int = -1) -> bytes:
        line = b""
        while not line.endswith(b"\n") and (byte := self._source.recv(1)):
            line += byte
        return line

    def read(self, size: int = -1) -> bytes:
        data = b""
        while len(data) < size and (part := self._source.recv(size - len(data))):
            data += part
        return data

    def close(self) -> None:
        pass

    def flush(self) -> None:
        pass


def build_http_app(
    predictor: Predictor, name: str, limits: Limits, meter: Meter, guard: Guard | None = None
) -> AsgiApp:
    """Return the ASGI application that serves ``predictor`` as the model ``name``."""
    endpoint = Endpoint(predictor, name, limits, meter)
    return asgi_app(Front.of(Variant(endpoint, Batcher(endpoint, SHORT, 1000)), guard))


class Running:
    """A listener, its loop and its clients."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        self.meter = CountingMeter()
        self.loop = loop
        self.endpoint = Endpoint(Predictor(open_package(folder)), "demo", options.get("limits", Limits()), self.meter)
        self.batcher = Batcher(self.endpoint, options.get("cost", SHORT), options.get("max_waiting", 1000))
        self.front = Front.of(Variant(self.endpoint, self.batcher), options.get("guard"))
        self.access_log: AccessLog | None = options.get("access_log")
        connect = options.get("connect", Connection)
        self.listener = Listener(self.front, options.get("connections", ListenerSpec()), self.access_log, connect)
        self.listener.tls = options.get("tls")
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()
        loop.call_soon_threadsafe(self.listener.start, self.socket)
        self._clients = contextlib.ExitStack()

    def connect(self) -> Client:
        return self._clients.enter_context(contextlib.closing(Client(self.port)))

    def ask(self, raw: bytes) -> Answer:
        return self.connect().ask(raw)

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def shelve(self, name: str, package: ModelPackage, meter: Meter) -> Shelf:
        """Have a further model."""
        shelf = self.front.shelf = Shelf(
            {name: package}, Limits(), lambda *_: meter, 1000, 100, lambda one: take(one, 1)
        )

        async def switch() -> None:
            self.front.switch(Variant(self.endpoint, self.batcher), None)

        self.call(switch())
        return shelf

    def sweep(self, after_s: float) -> None:
        """See to the clocks as in so many seconds."""

        async def sweep() -> None:
            for connection in list(self.listener._connections):
                connection.sweep(self.listener.now() + after_s)

        self.call(sweep())

    def stop(self) -> None:
        self._clients.close()
        self.call(self.listener.drain(5))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.batcher.close()
        self.socket.close()
        self.loop.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Ray's workers run uvloop where there is one."""
    return uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop


@pytest.fixture
def listen(mixed_package: Path, new_loop: Callable[[], Any]) -> Iterator[Callable[..., Running]]:
    """``listen(folder, limits=, cost=, max_waiting=, connections=, connect=)`` starts a listener, of the mixed package if of no other."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path = mixed_package, **options: Any) -> Running:
            running = Running(folder, new_loop(), **options)
            stack.callback(running.stop)
            return running

        yield start
