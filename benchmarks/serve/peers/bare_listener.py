"""The least that can stand between a socket and onnxruntime: python bare_listener.py PACKAGE PORT.

uvloop, httptools, orjson; what is queued runs as one batch. No limits, tokens, ids, logs or checks: it is what ours is held against.
"""

import asyncio
import sys
from typing import Any

import httptools
import orjson
import uvloop
from model import Model  # beside this file

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class Queue:
    """What waits for the next run."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._waiting: list[tuple[Any, list[dict[str, Any]]]] = []

    def add(self, transport: Any, records: list[dict[str, Any]]) -> None:
        """Answer records in the next moment of the loop, with all that came until then."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append((transport, records))

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        tensor = self._model.read_records([record for _, records in waiting for record in records])
        predictions = iter(self._model.predict(tensor))
        for transport, records in waiting:
            answer(transport, orjson.dumps({"predictions": [next(predictions) for _ in records]}))


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._body = b""

    def on_body(self, data: bytes) -> None:
        """Take a part of its body."""
        self._body += data

    def on_message_complete(self) -> None:
        """Queue it; one without a body asks whether we are there."""
        if self._body:
            self._queue.add(self._transport, orjson.loads(self._body))
        else:
            answer(self._transport, b"{}")


def answer(transport: Any, body: bytes) -> None:
    """Write an answer."""
    transport.write(_HEAD % len(body) + body)


async def main() -> None:
    """Serve for ever."""
    package, port = sys.argv[1:]
    queue = Queue(Model(package))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(queue), "127.0.0.1", int(port))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
