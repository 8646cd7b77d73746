"""A load generator for where there is no wrk: each connection sends its next request when it has its answer.

python benchmarks/serve/load.py URL BODY CONNECTIONS SECONDS

Answers must have a ``content-length``. It takes about as much CPU for a request as the fastest server here.
"""

import asyncio
import json
import statistics
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, latencies_s: list[float]) -> None:
        self._request, self._latencies_s = request, latencies_s
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Send the next request once the answer is whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            return
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"all answers must be 200, got {head!r}")
        self._latencies_s.append(time.perf_counter() - self._sent)
        self._received = b""
        self._send()


async def main() -> None:
    """Print rates and latencies as JSON."""
    url, body, connections, seconds = sys.argv[1:]
    at = urlsplit(url)
    lines = ["POST /predict HTTP/1.1", f"Host: {at.netloc}", "Content-Type: application/json"]
    request = "\r\n".join([*lines, f"Content-Length: {len(body.encode())}", "", body]).encode()
    latencies_s: list[float] = []
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    for _ in range(int(connections)):
        await loop.create_connection(lambda: Client(request, latencies_s), at.hostname, at.port)
    await asyncio.sleep(float(seconds))
    elapsed = time.perf_counter() - start
    cuts = statistics.quantiles(latencies_s, n=100)
    facts = {"requests_per_s": len(latencies_s) / elapsed, "p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000}
    print(json.dumps({**facts, "requests": len(latencies_s)}))


if __name__ == "__main__":
    uvloop.run(main())
