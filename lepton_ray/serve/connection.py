"""One HTTP/1.1 connection, small and strict: no ASGI, no task for a request.

llhttp (through httptools) parses, and refuses what invites smuggling: two lengths, bad chunk sizes, folded headers, bare line
feeds. A malformed request is answered and its connection ended, as nobody can know where the next one begins. Requests may be
pipelined; they are answered in their order.
"""

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from lepton_ray.core.status import (
    HTTP_BAD_REQUEST,
    HTTP_EXPECTATION,
    HTTP_HEAD_TOO_LARGE,
    HTTP_NOT_IMPLEMENTED,
    HTTP_OK,
    HTTP_TIMEOUT,
    HTTP_UNAVAILABLE,
    HTTP_VERSION,
)
from lepton_ray.serve.bodies import accepts_events
from lepton_ray.serve.endpoint import Call, Response
from lepton_ray.serve.events import Parts
from lepton_ray.serve.exchange import (
    BUFFERED_REQUESTS,
    IDLE_DRAIN_S,
    MAX_HEAD_BYTES,
    Owner,
    Sending,
    Slot,
    checked_id,
    entry_of,
)
from lepton_ray.serve.front import Headers

_MAX_HEADERS = 100
_MAX_PIPELINED = 32
_COPIED_BYTES = 16 << 10  # a smaller body is sent in one piece with its head
_KNOWN_HEADS, _MAX_KNOWN_HEAD_BYTES = 8, 1 << 10  # that a connection keeps, and of each
_TAKEN_BYTES = 1 << 20  # of a larger answer must be taken in the time that a smaller one has
_LINGER_S = 2.0  # how long a client may go on sending after the last answer, before the connection is cut
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
STATUS_OK = _STATUS[HTTP_OK]
_HEAD_RULE = f"target and headers must be at most {MAX_HEAD_BYTES} bytes"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD = b"%bcontent-length: %d\r\nx-request-id: %b\r\ndate: %b\r\n%b"
_CLOSED, _KEPT_OPEN = b"connection: close\r\n\r\n", b"connection: keep-alive\r\n\r\n"


@dataclass(frozen=True, slots=True)
class _Head:
    """What a request's head says, once it is held to be well-formed."""

    method: str
    path: str
    """Decoded."""
    headers: Headers
    request_id: bytes | None
    is_http_10: bool
    keep_alive: bool
    body_bytes: int | None
    """As announced; None if chunked or none."""


@dataclass(slots=True)
class _Incoming:
    """The request that is being received."""

    url: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    head: _Head | None = None
    """Once it is whole."""
    num_headers: int = 0
    num_hosts: int = 0
    num_codings: int = 0
    head_bytes: int = 0
    is_in_head: bool = True
    slot: Slot = field(default_factory=Slot)
    call: Call | None = None
    """Of a prediction."""
    body: bytes | bytearray = b""
    """Of a prediction; most come in one piece, which is then not copied."""


class _RefusalError(Exception):
    """A request that ends its connection."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class Connection(asyncio.Protocol):
    """One client; at most one of its requests is being received at a time."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser: Any = httptools.HttpRequestParser(self)
        self._slots: deque[Slot] = deque()
        self._transport: Any = None
        self._opened = self._idle_since = owner.now()
        self._receive_by: float | None = None
        """Set while a request is being received."""
        self._send_by: float | None = None
        """Set while the client is slow to take answers."""
        self._untaken_bytes = 0
        """What was left when that clock was last set."""
        self._linger_until: float | None = None
        """Set once the last answer is sent."""
        self._cut_at: float | None = None
        """Set while the transport closes, for which it waits until all is taken."""
        self._taken: asyncio.Future[None] | None = None
        """Of parts that wait until the client has taken some."""
        self._is_ending = False
        """No more requests are taken."""
        self._is_refusing = False
        """The last answer is a refusal: more may be on its way."""
        self._is_half_closed = False
        """The client sends no more, and waits."""
        self._incoming = _Incoming()
        self._is_parsing = self._is_paused = False
        self._unfinished_bytes = 0
        self._known: dict[bytes, _Head] = {}
        """Heads that came before, by their bytes: a client sends the same ones again and again."""

    # asyncio's side

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._is_ending:
            return
        if self._receive_by is not None or not self._take_known(data):
            self._receive(data)
        if self._slots and self._slots[0].response is not None:
            self.flush()
        if len(self._slots) >= _MAX_PIPELINED:
            self._pause_reading()

    def _receive(self, data: bytes) -> None:
        begun = None if self._receive_by is None else self._incoming
        body_bytes = self._incoming.slot.request_bytes
        try:
            self._parse(data)
        except _RefusalError as refusal:
            self._end(refusal.response)
        except httptools.HttpParserCallbackError as failure:
            if not isinstance(failure.__context__, _RefusalError):
                raise
            self._end(failure.__context__.response)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as failure:
            self._end(self._refuse(HTTP_BAD_REQUEST, f"the request must be well-formed HTTP/1.1: {failure}"))
        else:
            if self._incoming is begun:
                self._count_unfinished(len(data), has_body=begun.slot.request_bytes > body_bytes)

    def _parse(self, data: bytes) -> None:
        begun = None if self._receive_by is not None else self._incoming
        self._is_parsing = True
        try:
            self._feed(data)
            if begun is not None:
                self._learn(data, begun)
        finally:
            self._is_parsing = False

    def _feed(self, data: bytes) -> None:
        """Have data parsed; a wish for another protocol, which h2c clients send with a first request, is ignored (RFC 9110, 7.8)."""
        try:
            self._parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            if self._incoming.is_in_head:  # what the parser itself takes for one
                raise
            again = self._without_wish() + data[upgrade.args[0] :]
        self._parser, self._incoming, self._receive_by = httptools.HttpRequestParser(self), _Incoming(), None
        # Not while an error is handled, which would hide a refusal; nobody sends a second wish at once.
        self._parser.feed_data(again)

    def _without_wish(self) -> bytes:
        """Return the head that has just come without what asks for another protocol."""
        incoming, headers = self._incoming, self._incoming.headers
        kept = [token.strip() for token in headers.pop(b"connection", b"").split(b",")]
        kept = [token for token in kept if token.lower() not in (b"", b"upgrade", b"http2-settings")]
        fields = {**headers, **({b"connection": b", ".join(kept)} if kept else {})}
        lines = [b"%b: %b\r\n" % field for field in fields.items() if field[0] not in (b"upgrade", b"http2-settings")]
        version = self._parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self._parser.get_method(), incoming.url, version, b"".join(lines))

    def _take_known(self, data: bytes) -> bool:
        """Take a whole request without parsing its head again; the parser, which is between two requests, does not see it."""
        end = data.find(b"\r\n\r\n") + 4
        head = self._known.get(data[:end])
        size = len(data) - end
        if head is None or size != head.body_bytes or not self._has_room(size):
            return False
        slot = _slot_of(head)
        slot.request_bytes = size
        call = self._admit(head, slot)
        if call is not None:
            self._owner.buffered_bytes += size
        self._complete(slot, call, data[end:])
        return True

    def _has_room(self, size: int) -> bool:
        limit = self._owner.endpoint.limits.max_request_bytes
        return size <= limit and self._owner.buffered_bytes + size <= BUFFERED_REQUESTS * limit

    def _learn(self, data: bytes, incoming: _Incoming) -> None:
        """Keep the head of a request that was all of ``data``."""
        head = incoming.head
        if head is None or not head.body_bytes or not head.keep_alive or b"expect" in head.headers.given:
            return
        end = len(data) - head.body_bytes
        is_whole = 0 < end <= _MAX_KNOWN_HEAD_BYTES and data.find(b"\r\n\r\n") == end - 4
        if is_whole and self._receive_by is None and data.startswith(head.method.encode()):
            if len(self._known) >= _KNOWN_HEADS:
                self._known.clear()
            self._known[data[:end]] = head

    def eof_received(self) -> bool:
        """Answer what is under way, then close."""
        self._is_ending = True
        self._give_up()
        can_answer = self._transport.can_write_eof()  # TLS ends both directions at once
        self._is_half_closed = can_answer and bool(self._slots) and self._linger_until is None
        return self._is_half_closed

    def connection_lost(self, error: Exception | None) -> None:
        """End; what runs for this client runs on, for nobody."""
        self._is_ending = True
        self._transport = None
        self._give_up()
        for slot in self._slots:
            self._note(slot, None)
            if slot.sending is not None:
                slot.sending.task.cancel()
        self._owner.closed(self)

    def _give_up(self) -> None:
        """Take note that a request that is being received will never be whole."""
        if self._receive_by is not None:
            self._note(self._incoming.slot, self._refuse(HTTP_BAD_REQUEST, "the body must be complete"))
            self._receive_by = None

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not take its answers."""
        self._send_by = self._owner.now() + self._owner.limits.receive_timeout_s
        self._pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._send_by = None
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)
        self.flush()
        self._resume_reading()

    # the listener's side

    def sweep(self, now: float) -> None:
        """See to the clocks."""
        if self._transport is None:
            return
        if self._transport.is_closing() or self._linger_until is not None:
            self._wait_for_end(now)
        elif self._send_by is not None:
            self._send_by = self._again(self._send_by, now)
            if now >= self._send_by:
                self._transport.abort()
        elif self._receive_by is not None and not self._is_paused:
            if now >= self._receive_by:
                rule = f"the request must come within {self._owner.limits.receive_timeout_s:g} s"
                self._end(self._refuse(HTTP_TIMEOUT, rule))
                self.flush()
        elif not self._slots and now >= self._idle_since + self._idle_s():
            self._transport.close()

    def _wait_for_end(self, now: float) -> None:
        """Close when the last answer has had its time, and cut off a client that does not take what is left."""
        if self._transport.is_closing():
            self._cut_at = self._again(self._cut_at or now + self._owner.limits.receive_timeout_s, now)
            if now >= self._cut_at:
                self._transport.abort()
        elif self._linger_until is not None:
            self._linger_until = self._again(self._linger_until, now)
            is_sending = self._transport.get_write_buffer_size() > 0  # of TLS not all that is
            if now >= self._linger_until + (self._owner.limits.receive_timeout_s if is_sending else 0):
                self._transport.close()

    def _again(self, clock: float, now: float) -> float:
        """Return a clock of the client's taking, set anew where it has taken a good part more: a large answer takes a slow one its time."""
        left = self._transport.get_write_buffer_size()
        has_taken = left <= self._untaken_bytes - _TAKEN_BYTES
        self._untaken_bytes = left if has_taken else max(left, self._untaken_bytes)
        return now + self._owner.limits.receive_timeout_s if has_taken else clock

    def _idle_s(self) -> float:
        return (
            min(IDLE_DRAIN_S, self._owner.limits.idle_timeout_s)
            if self._owner.is_draining
            else self._owner.limits.idle_timeout_s
        )

    def start_draining(self) -> None:
        """Count the time that an idle connection stays from now."""
        self._idle_since = self._owner.now()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def flush(self) -> None:
        """Send the answers whose turn it is while the client takes them; not before all that has come is parsed: it may hold more requests."""
        if self._is_parsing or self._transport is None or self._transport.is_closing():
            return
        now = self._owner.now()
        while self._slots and self._send_by is None and (response := self._slots[0].response) is not None:
            if (sending := self._slots[0].sending) is not None:
                self._begin_parts(self._slots[0], sending, response)
                return
            slot = self._slots.popleft()
            must_close = not slot.keep_alive or (not self._slots and self._is_last(now))
            self._send(slot, response, must_close)
            if must_close:
                self._finish()
                return
        self._idle_since = now
        self._resume_reading()

    async def send_parts(self, call: Call, slot: Slot, parts: Parts) -> None:
        """Send an answer in parts, when its turn has come, and no faster than the client takes them."""
        async with contextlib.aclosing(parts):
            head = await anext(parts)
            slot.rows = call.rows
            slot.response = head
            sending = slot.sending
            if head.code != HTTP_OK:
                slot.sending = sending = None
            self.flush()
            if sending is None:
                return
            await sending.turn
            async for part in parts:
                while self._send_by is not None:
                    self._taken = asyncio.get_running_loop().create_future()
                    await self._taken
                if self._transport is None:
                    return
                self._send_part(sending, part.body)
        if self._transport is not None:
            self._end_parts(slot)

    def _can_stream(self, call: Call, slot: Slot) -> bool:
        return call.protocol_name == "records" and not slot.is_http_10

    def _begin_parts(self, slot: Slot, sending: Sending, response: Response) -> None:
        if sending.turn.done():
            return
        slot.request_id = slot.request_id or self._owner.next_id()
        slot.keep_alive = slot.keep_alive and not (len(self._slots) == 1 and self._is_last(self._owner.now()))
        self._is_ending = self._is_ending or not slot.keep_alive
        head = b"transfer-encoding: chunked\r\nx-request-id: %b\r\ndate: %b\r\n" % (slot.request_id, self._owner.date)
        end = b"\r\n" if slot.keep_alive else _CLOSED
        self._transport.write(_head_of(response.code, response.headers) + head + end)
        self._send_part(sending, response.body)
        sending.turn.set_result(None)

    def _send_part(self, sending: Sending, part: bytes) -> None:
        sending.sent_bytes += len(part)
        self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    def _end_parts(self, slot: Slot) -> None:
        self._transport.write(b"0\r\n\r\n")
        self._note(slot, slot.response)
        self._slots.popleft()
        if not slot.keep_alive or (self._is_ending and not self._slots):
            self._finish()
        else:
            self.flush()

    def _is_last(self, now: float) -> bool:
        """Whether the connection is to end and no request is on its way."""
        is_old = now >= self._opened + self._owner.limits.connection_age_s
        return self._receive_by is None and (is_old or self._owner.is_draining or self._is_ending)

    def _pause_reading(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._is_paused and not self._transport.is_closing() and (self._linger_until or self._may_read()):
            self._is_paused = False
            if self._receive_by is not None:  # none of it could come in the meantime
                self._receive_by = self._owner.now() + self._owner.limits.receive_timeout_s
            self._transport.resume_reading()

    def _may_read(self) -> bool:
        return len(self._slots) < _MAX_PIPELINED and self._send_by is None

    # llhttp's side

    def on_message_begin(self) -> None:
        """Begin to receive a request; what is made of it is there since the last one was whole."""
        self._incoming.slot.started = time.perf_counter()
        self._unfinished_bytes = 0
        self._receive_by = self._owner.now() + self._owner.limits.receive_timeout_s

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._incoming.url += url
        self._incoming.slot.method = self._parser.get_method().decode()
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer, which means nothing here."""
        incoming = self._incoming
        incoming.num_headers += 1
        if incoming.num_headers > _MAX_HEADERS:
            raise self._refusal(HTTP_HEAD_TOO_LARGE, f"at most {_MAX_HEADERS} headers may be sent")
        self._count_head(len(name) + len(value))
        if not incoming.is_in_head:
            return
        name = name.lower()
        incoming.num_hosts += name == b"host"
        incoming.num_codings += name == b"transfer-encoding"
        if name == b"authorization" and name in incoming.headers:
            value = b""  # which of two is meant nobody can know
        incoming.headers[name] = value

    def on_headers_complete(self) -> None:
        """Find what is asked for, before the body comes."""
        incoming, headers = self._incoming, self._incoming.headers
        incoming.is_in_head = False
        version = self._parser.get_http_version()
        incoming.slot.request_id = checked_id(headers.get(b"x-request-id"))
        self._check_framing(version)
        if self._parser.should_upgrade():
            return  # it comes again, without the wish
        size = headers.get(b"content-length")
        head = _Head(
            method=incoming.slot.method,
            path=self._path(),
            headers=Headers.of(headers),
            request_id=incoming.slot.request_id,
            is_http_10=version == "1.0",
            keep_alive=self._parser.should_keep_alive(),
            body_bytes=None if size is None else int(size),
        )
        incoming.head, incoming.slot = head, _slot_of(head, incoming.slot.started)
        incoming.call = self._admit(head, incoming.slot)
        if head.body_bytes is not None:
            self._check_size(head.body_bytes)
        if (expected := headers.get(b"expect")) is not None and not head.is_http_10:
            self._answer_expectation(expected)

    def _admit(self, head: _Head, slot: Slot) -> Call | None:
        """Return the call that a head asks for; if there is none, its slot has the response."""

        def own_id() -> bytes:
            slot.request_id = slot.request_id or self._owner.next_id()
            return slot.request_id

        front = self._owner.endpoint
        found, slot.caller = front.admit(head.method, head.path, head.headers.digest)
        if isinstance(found, Response):
            slot.response = found
        elif isinstance(call := front.call_of(found, head.headers, slot.caller, own_id), Response):
            slot.response = call
        else:
            return call
        return None

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""
        incoming = self._incoming
        incoming.slot.request_bytes += len(data)
        self._check_size(incoming.slot.request_bytes)
        if incoming.call is None:
            return  # of a request that needs none
        self._owner.buffered_bytes += len(data)
        if not incoming.body:
            incoming.body = data
        else:
            if isinstance(incoming.body, bytes):
                incoming.body = bytearray(incoming.body)
            incoming.body += data
        if self._owner.buffered_bytes > BUFFERED_REQUESTS * self._owner.endpoint.limits.max_request_bytes:
            raise self._refusal(
                HTTP_UNAVAILABLE, "the bodies that are here must be answered first. Send it again later"
            )

    def on_message_complete(self) -> None:
        """Have the request answered."""
        if self._incoming.head is None:  # it comes again, without its wish
            return
        self._receive_by = None
        whole, self._incoming = self._incoming, _Incoming()
        self._complete(whole.slot, whole.call, whole.body)

    def _complete(self, slot: Slot, call: Call | None, body: bytes | bytearray) -> None:
        self._is_ending = not slot.keep_alive
        self._slots.append(slot)
        if call is not None:
            call.body = body
            if call.accept is not None and accepts_events(call.accept) and self._can_stream(call, slot):
                self._owner.stream(call, slot, self)
            else:
                self._owner.submit(call, slot, self)

    # the rest

    def _count_head(self, num_bytes: int) -> None:
        self._incoming.head_bytes += num_bytes
        if self._incoming.head_bytes > MAX_HEAD_BYTES:
            raise self._refusal(HTTP_HEAD_TOO_LARGE, _HEAD_RULE)

    def _count_unfinished(self, num_bytes: int, *, has_body: bool) -> None:
        """Bound what the parser keeps of a target, header or trailer that does not end; where a part of the body came, none goes on."""
        self._unfinished_bytes = 0 if has_body else self._unfinished_bytes + num_bytes
        if self._unfinished_bytes > MAX_HEAD_BYTES:
            self._end(self._refuse(HTTP_HEAD_TOO_LARGE, _HEAD_RULE))

    def _path(self) -> str:
        try:
            return _path_of(self._incoming.url)
        except httptools.HttpParserInvalidURLError as error:
            raise self._refusal(HTTP_BAD_REQUEST, "the target must be a path or an http URL") from error

    def _check_framing(self, version: str) -> None:
        coding, num_hosts = self._incoming.headers.get(b"transfer-encoding"), self._incoming.num_hosts
        if version not in ("1.0", "1.1"):
            raise self._refusal(HTTP_VERSION, f"the version must be HTTP/1.1, got {version}")
        if self._incoming.slot.method == "CONNECT":
            raise self._refusal(HTTP_NOT_IMPLEMENTED, "the connection must stay HTTP/1.1, got CONNECT")
        if num_hosts != 1 and (num_hosts or version == "1.1"):
            raise self._refusal(HTTP_BAD_REQUEST, f"host must be given once, got {num_hosts}")
        if coding is None:
            return
        if coding.lower() != b"chunked" or self._incoming.num_codings > 1:
            raise self._refusal(HTTP_NOT_IMPLEMENTED, "transfer-encoding must be chunked")
        if version == "1.0":
            raise self._refusal(HTTP_BAD_REQUEST, "HTTP/1.0 must come without transfer-encoding")

    def _check_size(self, size: int) -> None:
        endpoint = self._owner.endpoint
        if size > endpoint.limits.max_request_bytes and size > endpoint.champion.max_bytes(self._incoming.call):
            raise _RefusalError(self._owner.endpoint.refuse_large(self._take_call()))

    def _answer_expectation(self, expected: bytes) -> None:
        if expected.lower() != b"100-continue":
            raise self._refusal(HTTP_EXPECTATION, "expect must be 100-continue")
        if (response := self._incoming.slot.response) is not None:
            raise _RefusalError(response)  # the body is not wanted, and may come or not
        if not self._slots:  # else the answers before it would come after
            self._transport.write(_CONTINUE)

    def _refusal(self, code: int, message: str) -> _RefusalError:
        return _RefusalError(self._refuse(code, message))

    def _refuse(self, code: int, message: str) -> Response:
        """Return what refuses the request that is being received, of which nothing is kept."""
        return self._owner.endpoint.refuse(self._take_call(), code, message)

    def _take_call(self) -> Call | None:
        call, self._incoming.call = self._incoming.call, None
        self._owner.buffered_bytes -= len(self._incoming.body)
        self._incoming.body = b""
        return call

    def _end(self, response: Response) -> None:
        """Answer with a refusal, after what is under way, and take nothing more."""
        if self._is_ending:
            return
        self._is_ending = self._is_refusing = True
        self._receive_by = None
        slot = self._incoming.slot
        slot.response, slot.keep_alive = response, False
        self._slots.append(slot)

    def _note(self, slot: Slot, response: Response | None) -> None:
        """Put a request into the access log; without a response its client has gone."""
        if (log := self._owner.access_log) is not None:
            log.add(entry_of(slot, response))

    def _send(self, slot: Slot, response: Response, must_close: bool) -> None:
        slot.request_id = slot.request_id or self._owner.next_id()
        self._note(slot, response)
        end = _CLOSED if must_close else _KEPT_OPEN if slot.is_http_10 else b"\r\n"
        length, start = len(response.body), _head_of(response.code, response.headers)
        head = _HEAD % (start, length, slot.request_id, self._owner.date, end)
        if slot.method == "HEAD":
            self._transport.write(head)
        elif length <= _COPIED_BYTES:
            self._transport.write(head + response.body)
        else:
            self._transport.writelines([head, response.body])

    def _finish(self) -> None:
        """End after the last answer: a client that still sends must be able to read it, so its bytes are let in for a while."""
        self._is_ending = True
        if self._is_half_closed:
            self._transport.close()
            return
        self._linger_until = self._owner.now() + _LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()
        elif not self._is_refusing:
            self._transport.close()
            return
        self._resume_reading()


def _slot_of(head: _Head, started: float | None = None) -> Slot:
    now = time.perf_counter() if started is None else started
    return Slot(now, head.request_id, head.method, head.path, head.is_http_10, head.keep_alive)


@lru_cache(maxsize=64)
def _head_of(code: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return b"".join([_STATUS[code], *(b"%b: %b\r\n" % header for header in headers)])


@lru_cache(maxsize=64)
def _path_of(url: bytes) -> str:
    """Return the decoded path of a target."""
    if not url.startswith(b"/"):
        url = httptools.parse_url(url).path or b"/"
    path: bytes = url.partition(b"?")[0]
    return unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode("ascii")
