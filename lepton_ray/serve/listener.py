"""A listener of the replica's own: it accepts connections, keeps their clocks and counts what is under way.

It belongs to one event loop. The listening socket may be shared with the other replicas of the node (``sockets``): whoever is
idle takes the next connection.
"""

import asyncio
import itertools
import logging
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from lepton_ray.serve.access import AccessLog
from lepton_ray.serve.connection import STATUS_OK, Connection
from lepton_ray.serve.endpoint import Call, Response
from lepton_ray.serve.events import answer_in_events
from lepton_ray.serve.exchange import Client, Owner, Sender, Sending, Slot, Waiting
from lepton_ray.serve.front import Front
from lepton_ray.spec.release import ListenerSpec

_logger = logging.getLogger("lepton_ray.serve")

_SWEEP_S = 1.0
_DRAIN_POLL_S = 0.05
_PROBE_TIMEOUT_S = 5.0
_PROBE = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


class Listener:
    """Answers the calls of an endpoint, over HTTP unless ``connect`` makes other connections."""

    def __init__(
        self,
        endpoint: Front,
        limits: ListenerSpec,
        access_log: AccessLog | None = None,
        connect: Callable[[Owner], asyncio.Protocol] = Connection,
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self.access_log = access_log
        self.is_draining = False
        self.tls: ssl.SSLContext | None = None
        """For connections that are opened from now on; None is plain HTTP."""
        self.date = b""
        self.buffered_bytes = 0
        self._connect = connect
        self._connections: set[Client] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._id_prefix = secrets.token_hex(8).encode()
        self._ids = itertools.count()
        self._is_accepting = False
        self._under_way = 0
        self._under_way_s = 0.0
        """Of all requests since the last question; of one that is under way, less the moment at which it began."""
        self._asked = time.perf_counter()

    def start(self, listening: socket.socket) -> None:
        """Accept from a listening socket, which must not block and stays the caller's."""
        self._loop = asyncio.get_running_loop()
        self._socket = listening
        self._sweep()

    def leave(self) -> None:
        """Stop accepting: the caller may close its socket."""
        while not self.is_draining and self._accept():  # what the kernel has already taken for us
            pass
        self.is_draining = True
        self._stop_accepting()

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, answer what is there, let the clients go; what is left after ``timeout_s`` is cut off."""
        self.leave()
        deadline = self._loop.time() + timeout_s
        for connection in self._connections:
            connection.start_draining()
        while (self._connections or self._opening) and self._loop.time() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        for connection in list(self._connections):
            connection.abort()
        self._sweeper.cancel()

    async def probe(self) -> None:
        """Ask the listener whether it lives, as a client would.

        Raises:
            RuntimeError: If it gives no answer.
        """
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.setblocking(False)
            await self._open(theirs, None)
            try:
                await self._loop.sock_sendall(ours, _PROBE)
                answer = await asyncio.wait_for(self._loop.sock_recv(ours, 1024), _PROBE_TIMEOUT_S)
            except (TimeoutError, OSError) as failure:
                raise RuntimeError(
                    f"the listener must answer within {_PROBE_TIMEOUT_S} s, got {failure!r}"
                ) from failure
        if not answer.startswith(STATUS_OK):
            raise RuntimeError(f"the listener must answer {STATUS_OK!r}, got {answer[:100]!r}")

    def mean_under_way(self) -> float:
        """Requests under way since this was last asked, on average over the time.

        A count at one moment would say little: batches of short calls begin and end between two moments of the loop.
        """
        now = time.perf_counter()
        seconds, total = now - self._asked, self._under_way_s + self._under_way * now
        self._asked, self._under_way_s = now, -self._under_way * now
        return total / seconds if seconds > 0 else 0.0

    # the connections' side

    def now(self) -> float:
        """Return the time of the event loop."""
        return self._loop.time()

    def next_id(self) -> bytes:
        """Return an id for a request that brings none."""
        return b"%b-%x" % (self._id_prefix, next(self._ids))

    def submit(self, call: Call, slot: Slot, waiting: Waiting) -> None:
        """Have a call answered into its slot, which is then flushed."""
        self._count(1)

        def done(response: Response) -> None:
            self._count(-1)
            self.buffered_bytes -= len(call.body)
            slot.rows = call.rows
            slot.response = response
            waiting.flush()

        self.endpoint.submit(call, done)

    def stream(self, call: Call, slot: Slot, connection: Sender) -> None:
        """Have a call answered in events, which the connection sends."""
        self._count(1)

        def done(task: asyncio.Task[None]) -> None:
            self._count(-1)
            self.buffered_bytes -= len(call.body)
            if not task.cancelled() and (failure := task.exception()) is not None:
                _logger.error("an answer in events broke off", exc_info=failure)
                connection.abort()

        task = self._loop.create_task(connection.send_parts(call, slot, answer_in_events(self.endpoint, call)))
        task.add_done_callback(done)
        slot.sending = Sending(task, self._loop.create_future())

    def opened(self, connection: Client) -> None:
        """Know a connection."""
        self._connections.add(connection)

    def closed(self, connection: Client) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._resume_accepting()

    def _count(self, change: int) -> None:
        self._under_way += change
        self._under_way_s -= change * time.perf_counter()

    def _resume_accepting(self) -> None:
        if not self._is_accepting and not self.is_draining and not self._is_full():
            self._loop.add_reader(self._socket.fileno(), self._accept)
            self._is_accepting = True

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._loop.remove_reader(self._socket.fileno())
            self._is_accepting = False

    def _is_full(self) -> bool:
        return len(self._connections) + len(self._opening) >= self.limits.max_connections

    def _accept(self) -> bool:
        """Take one connection: the next may go to another replica."""
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError:  # no file descriptors left: the next sweep tries again
            self._stop_accepting()
            return False
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._open(accepted, self.tls))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        if self._is_full():
            self._stop_accepting()
        return True

    async def _open(self, accepted: socket.socket, tls: ssl.SSLContext | None) -> None:
        timeout_s = None if tls is None else self.limits.receive_timeout_s
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._connect(self), accepted, ssl=tls, ssl_handshake_timeout=timeout_s
            )
        except OSError:  # it has gone already, or wants no TLS or another
            accepted.close()

    def _sweep(self) -> None:
        """See to the clocks of all connections."""
        self.date = formatdate(usegmt=True).encode()
        for connection in list(self._connections):
            connection.sweep(self.now())
        self._resume_accepting()
        self._sweeper: Any = self._loop.call_later(_SWEEP_S, self._sweep)
