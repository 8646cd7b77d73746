"""A load generator for where there is no wrk, and for a load that does not wait for answers.

python benchmarks/serve/load.py HOST PORT REQUEST CONNECTIONS SECONDS [PER_S]

REQUEST is a file with the bytes of one HTTP/1.1 request; answers must have a ``content-length``. Each connection sends its next request when
it has its answer; with PER_S requests are due at that rate, whatever is answered, and go out on connections that are free.
It takes about as much CPU for a request as the fastest server here. Prints a line of JSON.
"""

import asyncio
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

_TICK_S = 0.002


@dataclass
class Load:
    """What has come of it."""

    request: bytes
    is_closed_loop: bool
    free: "list[Client]" = field(default_factory=list)
    """Connections without a request."""
    latencies_s: list[float] = field(default_factory=list)
    """Of good answers."""
    errors: int = 0
    """Answers that are not 200, and connections that were lost."""

    def send_due(self, number: int) -> int:
        """Send some requests, as far as connections are free; returns how many."""
        sent = min(number, len(self.free))
        for _ in range(sent):
            self.free.pop().send()
        return sent


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._is_busy = False

    def connection_made(self, transport: Any) -> None:
        """Wait until a request is due."""
        self._transport = transport
        self._load.free.append(self)

    def send(self) -> None:
        """Send one request."""
        self._is_busy = True
        self._sent = time.perf_counter()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        """Count an answer once it is whole, and go on."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            return
        if b" 200 " in head.split(b"\r\n", 1)[0]:
            self._load.latencies_s.append(time.perf_counter() - self._sent)
        else:
            self._load.errors += 1
        self._received, self._is_busy = b"", False
        if self._load.is_closed_loop:
            self.send()
        else:
            self._load.free.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Count a request that gets no answer; ours closes old connections with an answer, which is none."""
        self._load.errors += self._is_busy
        if self in self._load.free:
            self._load.free.remove(self)


async def main() -> None:
    """Print what came of the load."""
    host, port, path, connections, seconds, *rate = sys.argv[1:]
    load = Load(Path(path).read_bytes(), not rate)
    loop = asyncio.get_running_loop()
    for _ in range(int(connections)):
        await loop.create_connection(lambda: Client(load), host, int(port))
    start = time.perf_counter()
    sent = 0
    if not rate:
        load.send_due(int(connections))
    while (elapsed := time.perf_counter() - start) < float(seconds):
        if rate:
            sent += load.send_due(int(float(rate[0]) * elapsed) - sent)
        await asyncio.sleep(_TICK_S)
    cuts = statistics.quantiles(load.latencies_s, n=100) if len(load.latencies_s) > 1 else [math.nan] * 99
    facts = {"requests_per_s": len(load.latencies_s) / elapsed, "p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000}
    print(
        json.dumps({**facts, "answers": len(load.latencies_s), "errors": load.errors, "offered_per_s": sent / elapsed})
    )


if __name__ == "__main__":
    uvloop.run(main())
