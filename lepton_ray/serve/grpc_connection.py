"""One gRPC connection: HTTP/2 by h2, calls of one message each way, under the rules of the HTTP listener.

A stream that is refused has its answer before its message has come, and is then reset. A client is let go as gRPC has it: a first
GOAWAY asks it to open no more streams, a ping says when it has read that, and the streams that are there are answered. What came
together with the ping's answer is among them; what comes later is not, as the last GOAWAY tells, and the client's to send again.
The client closes: whoever closes before he has read all that was sent takes back what he has written. So no call is lost, whoever
takes the next one.

Source: https://github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md, and RFC 9113.
"""

import asyncio
from typing import Any
from urllib.parse import quote

import orjson
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import DenialOfServiceError, H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame, SettingsFrame

from lepton_ray.core.status import (
    HTTP_BAD_REQUEST,
    HTTP_FAILED,
    HTTP_FORBIDDEN,
    HTTP_LATE,
    HTTP_NO_ROOM,
    HTTP_NOT_FOUND,
    HTTP_NOT_IMPLEMENTED,
    HTTP_OK,
    HTTP_TIMEOUT,
    HTTP_TOO_LARGE,
    HTTP_TOO_MANY,
    HTTP_UNAUTHORIZED,
    HTTP_UNAVAILABLE,
    HTTP_UNPROCESSABLE,
)
from lepton_ray.serve.endpoint import GRPC, Call, Response, error_response
from lepton_ray.serve.exchange import (
    BUFFERED_REQUESTS,
    IDLE_DRAIN_S,
    MAX_HEAD_BYTES,
    Owner,
    Slot,
    checked_id,
    entry_of,
)
from lepton_ray.serve.grpc_messages import ASKING, INFER, SERVICE, peek_model, read_path, write_answer
from lepton_ray.serve.protocol import ProtocolError
from lepton_ray.serve.tokens import digest_of

_PATIENCE, _PATIENCE_AGAIN = 1000, 2  # resets of streams and settings, at first and for each answer
_KNOWN_SETTINGS = frozenset(int(code) for code in SettingCodes)
_TAKEN_BYTES = 1 << 20  # of a larger answer must be taken in the time that a smaller one has
_MAX_STREAMS = 100  # of one connection, with those that were reset and are still computed
_WINDOW_BYTES = 1 << 20  # that a client may send ahead, on a stream and on all together
_FRAME_BYTES, _FRAME_HEAD_BYTES = 256 << 10, 9
_SETTINGS = {
    SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
    SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES,
    SettingCodes.MAX_FRAME_SIZE: _FRAME_BYTES,
    SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
}
_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_outbound_headers=False,  # ours are as they should be, and looking at each costs time
    normalize_outbound_headers=False,
)
_MAX_ASKING_BYTES = 16 << 10  # of a message that asks for no prediction
_MAX_MESSAGE_CHARACTERS = 1000
_PREFIX_BYTES = 5  # whether a message is compressed, and its length in four bytes
_EVERY_STREAM = 2**31 - 1
_PING = b"goingon?"
_UNKNOWN = 2
_CODES = {
    HTTP_BAD_REQUEST: 3,  # INVALID_ARGUMENT
    HTTP_UNAUTHORIZED: 16,  # UNAUTHENTICATED
    HTTP_FORBIDDEN: 7,  # PERMISSION_DENIED
    HTTP_NOT_FOUND: 5,  # NOT_FOUND
    HTTP_TIMEOUT: 4,  # DEADLINE_EXCEEDED
    HTTP_TOO_LARGE: 8,  # RESOURCE_EXHAUSTED
    HTTP_UNPROCESSABLE: 3,  # INVALID_ARGUMENT
    HTTP_TOO_MANY: 8,  # RESOURCE_EXHAUSTED
    HTTP_FAILED: 13,  # INTERNAL
    HTTP_NOT_IMPLEMENTED: 12,  # UNIMPLEMENTED
    HTTP_UNAVAILABLE: 14,  # UNAVAILABLE
    HTTP_LATE: 4,  # DEADLINE_EXCEEDED
    HTTP_NO_ROOM: 8,  # RESOURCE_EXHAUSTED
}
"""What gRPC says for a status of HTTP."""
_GRPC_HEADER = (b"content-type", b"application/grpc")
_SAFE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # what grpc-message has as it is

_Headers = list[tuple[bytes, bytes]]


class _Stream:
    """One call; waits for its answer."""

    __slots__ = (
        "_connection",
        "body",
        "call",
        "deadline",
        "digest",
        "id",
        "is_open",
        "left",
        "method",
        "size",
        "slot",
        "taken_bytes",
    )

    def __init__(self, connection: "GrpcConnection", id: int, deadline: float) -> None:
        self._connection = connection
        self.id = id
        self.deadline: float | None = deadline
        """When its message must have come, or more of its answer must have been taken; None while it is computed."""
        self.slot = Slot()
        self.method = ""
        """Without the service."""
        self.digest: bytes | None = None
        self.call: Call | None = None
        """Of a prediction whose message has not come yet."""
        self.body = bytearray()
        """The prefix and the message, as far as they have come."""
        self.size: int | None = None
        """Of the message."""
        self.is_open = True
        """The client waits for an answer."""
        self.left: memoryview | None = None
        """Of an answer that is being sent."""
        self.taken_bytes = 0
        """Of it, since the deadline was set."""

    def flush(self) -> None:
        """Send the answer."""
        self._connection.answer(self)


class _H2(H2Connection):
    """h2 4.4, but for what strangers could misuse.

    It goes on with the streams that are there when the client says in peace that it opens no more, which h2 takes for the end (RFC 9113,
    section 6.8). It remembers no settings that nobody knows, of which h2 keeps all (section 6.5.2). And it ends a connection that resets
    streams or changes settings over and over: each costs more to do than to send (CVE-2023-44487).
    """

    def __init__(self) -> None:
        super().__init__(_CONFIGURATION)
        self.patience = _PATIENCE
        """What else than calls may still come."""

    def _receive_settings_frame(self, frame: SettingsFrame) -> tuple[list[Frame], list[Event]]:
        self._lose_patience(1 + len(frame.settings))
        frame.settings = {code: value for code, value in frame.settings.items() if code in _KNOWN_SETTINGS}
        return super()._receive_settings_frame(frame)

    def _receive_rst_stream_frame(self, frame: RstStreamFrame) -> tuple[list[Frame], list[Event]]:
        self._lose_patience(1)
        return super()._receive_rst_stream_frame(frame)

    def _lose_patience(self, much: int) -> None:
        self.patience -= much
        if self.patience < 0:
            raise DenialOfServiceError("streams are reset, or settings changed, over and over")

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        if frame.error_code != ErrorCodes.NO_ERROR:
            return super()._receive_goaway_frame(frame)
        event = ConnectionTerminated()
        event.error_code = ErrorCodes.NO_ERROR
        return [], [event]


class GrpcConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._h2 = _H2()
        self._streams: dict[int, _Stream] = {}
        self._transport: Any = None
        self._opened = self._idle_since = owner.now()
        self._send_by: float | None = None
        """Set while the client is slow to take what is sent."""
        self._leaving_since: float | None = None
        self._is_told = False
        """The client opens no more streams: it knows that it is to leave, or has said so itself."""
        self._ended_since: float | None = None
        """Set when all is said, and only the client's close is waited for."""
        self._cut_at: float | None = None
        """Set while the transport closes, for which it waits until all is taken."""
        self._is_write_due = False

    # asyncio's side

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._owner.opened(self)
        self._h2.local_settings = Settings(client=False, initial_values=_SETTINGS)
        self._h2.max_inbound_frame_size = _FRAME_BYTES  # h2 reads this one setting before it is made
        self._h2.decoder.max_header_list_size = MAX_HEAD_BYTES
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        self._write()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._is_gone():
            return
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except H2Error:  # h2 has a GOAWAY ready that says why
            self._end_at_once()
            return
        # h2 4.4 gathers a frame, of up to 16 MiB, before it refuses its size, and 64 frames of one head
        buffer = self._h2.incoming_buffer
        head_bytes = sum(len(frame.data) for frame in buffer._headers_buffer)
        if len(buffer._data) > _FRAME_BYTES + _FRAME_HEAD_BYTES or head_bytes > MAX_HEAD_BYTES:
            self._end_at_once()
        self._write()

    def connection_lost(self, error: Exception | None) -> None:
        """End; what runs for this client runs on, for nobody."""
        self._transport = None
        for id in list(self._streams):
            self._lose(id)
        # what refers to each other is collected rarely: what was buffered goes now
        self._h2.incoming_buffer._data.clear()
        self._h2.incoming_buffer._headers_buffer.clear()
        self._owner.closed(self)

    def pause_writing(self) -> None:
        """Take no more from a client that does not take what is sent."""
        self._send_by = self._owner.now() + self._owner.limits.receive_timeout_s
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._send_by = None
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.resume_reading()
        self._send_rest()
        self._write_soon()

    # the listener's side

    def sweep(self, now: float) -> None:
        """See to the clocks."""
        if self._is_gone():
            self._wait_for_close(now)
            return
        if self._send_by is not None and now >= self._send_by:
            self._transport.abort()
            return
        for stream in [one for one in self._streams.values() if one.deadline is not None and now >= one.deadline]:
            if stream.left is None:
                rule = f"the request must come within {self._owner.limits.receive_timeout_s:g} s"
                self._refuse(stream, HTTP_TIMEOUT, rule)
            else:
                self._h2.reset_stream(stream.id, ErrorCodes.CANCEL)
                self._forget(stream)
        is_idle = not self._streams and now >= self._idle_since + self._owner.limits.idle_timeout_s
        if self._owner.is_draining or is_idle or now >= self._opened + self._owner.limits.connection_age_s:
            self._leave()
        if self._leaving_since is not None and now >= self._leaving_since + IDLE_DRAIN_S:
            self._is_told = True  # or will never be
        self._write()

    def start_draining(self) -> None:
        """Let the client go."""
        self._leave()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def answer(self, stream: _Stream) -> None:
        """Send the answer that is in a stream's slot."""
        response = stream.slot.response
        if response is None or self._is_gone() or not stream.is_open or self._is_closed(stream.id):
            self._note(stream, None)
            self._forget(stream)
            return
        stream.deadline = self._owner.now() + self._owner.limits.receive_timeout_s
        self._h2.patience = min(_PATIENCE, self._h2.patience + _PATIENCE_AGAIN)
        self._note(stream, response)
        slot = stream.slot
        slot.request_id = slot.request_id or self._owner.next_id()
        headers = [(b":status", b"200"), _GRPC_HEADER, (b"x-request-id", slot.request_id)]
        headers += [header for header in response.headers if header[0] != b"content-type"]
        if response.code == HTTP_OK:
            self._h2.send_headers(stream.id, headers)
            stream.left = memoryview(b"\0%b%b" % (len(response.body).to_bytes(4, "big"), response.body))
            self._send(stream)
        else:
            self._h2.send_headers(stream.id, [*headers, *_trailers(response)], end_stream=True)
            self._end(stream)
        self._write_soon()

    # h2's side

    def _take(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event.stream_id, event.headers)
            case DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._collect(event.stream_id, event.data)
            case StreamEnded():
                self._complete(event.stream_id)
            case StreamReset():
                self._lose(event.stream_id)
            case WindowUpdated() | RemoteSettingsChanged():
                self._send_rest()
            case PingAckReceived() if event.ping_data == _PING:
                self._is_told = True
            case ConnectionTerminated() if event.error_code == ErrorCodes.NO_ERROR:
                self._is_told = True
            case ConnectionTerminated():
                self._transport.close()

    def _begin(self, id: int, headers: Any) -> None:
        """Find what is asked for, before the message comes."""
        if self._is_closed(id):
            return
        if len(self._streams) >= _MAX_STREAMS:
            self._h2.reset_stream(id, ErrorCodes.REFUSED_STREAM)
            return
        given: dict[bytes, bytes] = {}
        for name, value in headers:
            # which of two is meant nobody can know
            given[name] = b"" if name == b"authorization" and name in given else value
        if given[b":method"] != b"POST" or not given.get(b"content-type", b"").startswith(b"application/grpc"):
            self._h2.send_headers(id, [(b":status", b"415")], end_stream=True)
            self._h2.reset_stream(id, ErrorCodes.NO_ERROR)
            return
        stream = self._streams[id] = _Stream(self, id, self._owner.now() + self._owner.limits.receive_timeout_s)
        slot = stream.slot
        slot.method, slot.path = "POST", given[b":path"].decode("utf-8", "replace")
        slot.request_id = checked_id(given.get(b"x-request-id"))
        stream.digest = digest_of(given.get(b"authorization"))
        stream.method = slot.path.removeprefix(SERVICE)
        if stream.method == INFER:
            self._admit(stream, given)
        elif stream.method not in ASKING:
            self._refuse(
                stream, HTTP_NOT_IMPLEMENTED, f"the method must be {INFER} or {', '.join(ASKING)} of {SERVICE}"
            )

    def _admit(self, stream: _Stream, given: dict[bytes, bytes]) -> None:
        endpoint, slot = self._owner.endpoint, stream.slot
        path = f"/v2/models/{endpoint.champion.name}/infer"  # which model is meant stands in the message
        found, slot.caller = endpoint.admit(GRPC, path, stream.digest)
        if isinstance(found, Response):
            slot.response = found
            self.answer(stream)
            return
        stream.call = Call(found.protocol_name)
        if endpoint.key_header is not None:
            slot.request_id = slot.request_id or self._owner.next_id()
            stream.call.key = given.get(endpoint.key_header) or slot.request_id

    def _collect(self, id: int, data: bytes) -> None:
        """Take a part of the message."""
        stream = self._streams.get(id)
        if stream is None or not stream.is_open:
            return
        stream.body += data
        self._owner.buffered_bytes += len(data)
        stream.slot.request_bytes += len(data)
        if (fault := self._find_fault(stream)) is not None:
            self._refuse(stream, *fault)

    def _find_fault(self, stream: _Stream) -> tuple[int, str] | None:
        """Return the status and the words for what cannot become a message."""
        limit = self._owner.endpoint.limits.max_request_bytes
        if stream.size is None and len(stream.body) >= _PREFIX_BYTES:
            stream.size = int.from_bytes(stream.body[1:_PREFIX_BYTES], "big")
            most = limit if stream.call is not None else _MAX_ASKING_BYTES
            if stream.body[0]:
                return HTTP_NOT_IMPLEMENTED, "the message must come without compression"
            if stream.size > most:
                return HTTP_TOO_LARGE, f"the message must be at most {most} bytes. Split the request"
        if len(stream.body) > _PREFIX_BYTES + (stream.size or 0):
            return HTTP_BAD_REQUEST, "the stream must hold one message"
        if self._owner.buffered_bytes > BUFFERED_REQUESTS * limit:
            return HTTP_UNAVAILABLE, "the bodies that are here must be answered first. Send it again later"
        return None

    def _complete(self, id: int) -> None:
        """Have the call answered."""
        stream = self._streams.get(id)
        if stream is None or not stream.is_open:
            return
        if stream.size is None or len(stream.body) != _PREFIX_BYTES + stream.size:
            self._refuse(stream, HTTP_BAD_REQUEST, "the stream must hold one whole message")
            return
        body = bytes(memoryview(stream.body)[_PREFIX_BYTES:])
        call = self._drop(stream)
        stream.deadline = None
        if call is None:
            self._refuse_response(stream, self._ask(stream, body))
            return
        if (model := peek_model(body)) is not None:
            name, version = model
            found = self._owner.endpoint.find(
                GRPC, f"/v2/models/{name}{f'/versions/{version}' if version else ''}/infer"
            )
            if isinstance(found, Response):
                message = orjson.loads(found.body)["error"]
                self._refuse_response(stream, self._owner.endpoint.refuse(call, found.code, message))
                return
            call.version, call.model = found.version, found.model
        call.body = body
        self._owner.buffered_bytes += len(body)
        self._owner.submit(call, stream.slot, stream)

    def _ask(self, stream: _Stream, body: bytes) -> Response:
        """Return the answer to what is no prediction: that of HTTP, as a message."""
        endpoint = self._owner.endpoint
        try:
            path = read_path(stream.method, body)
            found, stream.slot.caller = endpoint.admit(ASKING[stream.method].method, path, stream.digest)
            if not isinstance(found, Response):
                raise ProtocolError("name must be that of a model")
            if found.code != HTTP_OK:
                return found
            return Response(HTTP_OK, write_answer(stream.method, found.body), (_GRPC_HEADER,))
        except ProtocolError as error:
            return error_response(HTTP_BAD_REQUEST, str(error))

    # the rest

    def _is_gone(self) -> bool:
        return self._transport is None or self._transport.is_closing() or self._ended_since is not None

    def _is_closed(self, id: int) -> bool:
        """Whether h2 has closed a stream: it reads all that has come before it tells what that was."""
        return (known := self._h2.streams.get(id)) is None or known.closed

    def _send(self, stream: _Stream) -> None:
        """Send as much of an answer as the client lets us."""
        if self._is_closed(stream.id):
            return
        while stream.left:
            size = min(
                self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size, len(stream.left)
            )
            if size <= 0 or self._send_by is not None:
                return
            self._h2.send_data(stream.id, bytes(stream.left[:size]))
            stream.left = stream.left[size:]
            stream.taken_bytes += size
            if stream.taken_bytes >= _TAKEN_BYTES:
                stream.taken_bytes = 0
                stream.deadline = self._owner.now() + self._owner.limits.receive_timeout_s
        self._h2.send_headers(stream.id, [(b"grpc-status", b"0")], end_stream=True)
        self._end(stream)

    def _send_rest(self) -> None:
        for stream in [one for one in self._streams.values() if one.left is not None]:
            self._send(stream)

    def _end(self, stream: _Stream) -> None:
        """See to the end of a stream that is answered, whose message may still be coming."""
        if not self._is_closed(stream.id):
            self._h2.reset_stream(stream.id, ErrorCodes.NO_ERROR)
        self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        self._streams.pop(stream.id, None)
        stream.is_open = False
        self._idle_since = self._owner.now()
        self._write_soon()

    def _lose(self, id: int) -> None:
        """Take note that nobody waits for a stream any more; what is computed for it comes, and finds nobody."""
        stream = self._streams.get(id)
        if stream is None:
            return
        stream.is_open = False
        if stream.left is None and stream.deadline is not None:
            response = self._owner.endpoint.refuse(self._drop(stream), HTTP_BAD_REQUEST, "the body must be complete")
            self._note(stream, response)
        if stream.deadline is not None:
            self._streams.pop(id)

    def _refuse(self, stream: _Stream, code: int, message: str) -> None:
        self._refuse_response(stream, self._owner.endpoint.refuse(self._drop(stream), code, message))

    def _refuse_response(self, stream: _Stream, response: Response) -> None:
        stream.slot.response = response
        self.answer(stream)

    def _drop(self, stream: _Stream) -> Call | None:
        """Return the call of a stream whose message is not kept here any longer."""
        call, stream.call = stream.call, None
        self._owner.buffered_bytes -= len(stream.body)
        stream.body = bytearray()
        return call

    def _note(self, stream: _Stream, response: Response | None) -> None:
        if (log := self._owner.access_log) is not None:
            log.add(entry_of(stream.slot, response))

    def _leave(self) -> None:
        """Ask the client to open no more streams."""
        if self._leaving_since is not None or self._is_gone():
            return
        self._leaving_since = self._owner.now()
        self._h2.ping(_PING)
        ping = self._h2.data_to_send()
        self._transport.write(GoAwayFrame(0, last_stream_id=_EVERY_STREAM).serialize() + ping)

    def _wait_for_close(self, now: float) -> None:
        """Close where the client has not for some time, and cut off one that does not take what is left."""
        if self._transport is None:
            return
        if self._transport.is_closing():
            self._cut_at = self._cut_at or now + self._owner.limits.receive_timeout_s
            if now >= self._cut_at:
                self._transport.abort()
        elif self._ended_since is not None and now >= self._ended_since + IDLE_DRAIN_S:
            self._transport.close()

    def _end_at_once(self) -> None:
        self._write()
        self._transport.close()

    def _write_soon(self) -> None:
        """Write what the answers of one moment have become, in one piece."""
        if not self._is_write_due:
            self._is_write_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._is_write_due = False
        if self._is_gone():
            return
        is_done = self._is_told and not self._streams
        if is_done:
            self._h2.close_connection()
        if data := self._h2.data_to_send():
            self._transport.write(data)
        if is_done:
            self._ended_since = self._owner.now()
            if self._transport.can_write_eof():
                self._transport.write_eof()


def _trailers(response: Response) -> _Headers:
    """Return what says why a call is refused."""
    message = str(orjson.loads(response.body)["error"])[:_MAX_MESSAGE_CHARACTERS]
    code = _CODES.get(response.code, _UNKNOWN)
    return [(b"grpc-status", b"%d" % code), (b"grpc-message", quote(message, safe=_SAFE).encode())]
