"""What a listener and its connections know of each other, whichever protocol they speak: a request's place, clocks and bounds."""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Protocol

from lepton_ray.serve.access import AccessLog, Entry
from lepton_ray.serve.endpoint import Call, Response
from lepton_ray.serve.events import Parts
from lepton_ray.serve.front import Front
from lepton_ray.spec.release import LARGEST_JOB, ListenerSpec

MAX_HEAD_BYTES = 16 << 10
BUFFERED_REQUESTS = LARGEST_JOB  # of the largest size, in all connections together
IDLE_DRAIN_S = 2.0  # an idle connection stays this long when the replica leaves: a request may be on its way
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Slot:
    """The place of one response in its connection."""

    started: float = field(default_factory=time.perf_counter)
    """With the first byte of the request."""
    request_id: bytes | None = None
    method: str = ""
    path: str = ""
    """Decoded; empty if the request was refused before."""
    is_http_10: bool = False
    keep_alive: bool = False
    caller: str = ""
    """Id of its token."""
    request_bytes: int = 0
    """Of the body."""
    rows: int = 0
    response: Response | None = None
    sending: "Sending | None" = None
    """Of an answer in parts."""


@dataclass(slots=True)
class Sending:
    """How far an answer in parts is."""

    task: asyncio.Task[None]
    """Sends the parts."""
    turn: asyncio.Future[None]
    """Done once the head is sent."""
    sent_bytes: int = 0


class Waiting(Protocol):
    """What waits for the answer to a call."""

    def flush(self) -> None:
        """Send what can be sent: the answer is in its slot."""


class Client(Protocol):
    """What a listener needs of a connection."""

    def sweep(self, now: float) -> None:
        """See to the clocks."""

    def start_draining(self) -> None:
        """Let the client go."""

    def abort(self) -> None:
        """Cut the connection."""


class Sender(Client, Protocol):
    """A connection that can send an answer in parts."""

    async def send_parts(self, call: Call, slot: Slot, parts: Parts) -> None:
        """Send them as fast as the client takes them."""


class Owner(Protocol):
    """What a connection needs of its listener."""

    endpoint: Front
    limits: ListenerSpec
    is_draining: bool
    date: bytes
    buffered_bytes: int
    """Of bodies that are not answered yet, in all connections."""
    access_log: AccessLog | None

    def now(self) -> float:
        """Return the time of the event loop."""

    def next_id(self) -> bytes:
        """Return an id for a request that brings none."""

    def submit(self, call: Call, slot: Slot, waiting: Waiting) -> None:
        """Have a call answered into its slot, which is then flushed."""

    def stream(self, call: Call, slot: Slot, connection: Sender) -> None:
        """Have a call answered in events, which the connection sends."""

    def opened(self, connection: Client) -> None:
        """Know a connection."""

    def closed(self, connection: Client) -> None:
        """Forget a connection."""


def entry_of(slot: Slot, response: Response | None) -> Entry:
    """Return what the access log keeps of a request; without a response its client has gone."""
    code, size, headers = (None, 0, ()) if response is None else (response.code, len(response.body), response.headers)
    if slot.sending is not None:
        size = slot.sending.sent_bytes
    return Entry(
        time.time(),
        slot.request_id or b"",
        slot.method,
        slot.path,
        code,
        time.perf_counter() - slot.started,
        slot.request_bytes,
        0 if slot.method == "HEAD" else size,
        slot.rows,
        headers,
        slot.caller,
    )


def checked_id(value: bytes | None) -> bytes | None:
    """Return the id that a request brings, None if it brings none that can be kept."""
    return value if value is not None and _REQUEST_ID.fullmatch(value) else None
