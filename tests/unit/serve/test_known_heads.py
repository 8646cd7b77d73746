"""A head that came before on a connection is not parsed again: nobody can tell by the answers."""

import hashlib
import re
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_ray.serve.connection import Connection
from lepton_ray.serve.endpoint import Asked, Limits, Response, error_response
from lepton_ray.serve.front import Front
from lepton_ray.spec.release import ListenerSpec

from .test_listener import get, post

_BODY = b"[1]"
_CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\n\r\n"
_PARTS = (
    post(_BODY),
    post(b"[2]"),
    post(b"[3"),
    post(b"\r\n\r\nPOST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n[1]"),
    post(_BODY, b"Authorization: Bearer a"),
    post(_BODY, b"Authorization: Bearer b"),
    post(_BODY, b"Authorization: Bearer a", b"Authorization: Bearer a"),
    post(_BODY, b"Expect: 100-continue"),
    post(_BODY, b"Connection: close"),
    post(_BODY, b"X-Request-Id: 7"),
    post(b"", b"X: 1"),
    post(_BODY, path=b"/nothing"),
    post(_BODY).replace(b"HTTP/1.1", b"HTTP/1.0"),
    post(_BODY, b"Content-Length: 3"),
    get(b"/v2"),
    _CHUNKED,
    b"\r\n",
    b"\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
    b"[1]",
)


class _Transport:
    def __init__(self) -> None:
        self.sent = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.is_closed

    def write_eof(self) -> None:
        self.sent += b"<end>"

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        """Nothing comes by itself."""

    resume_reading = pause_reading


class _Endpoint:
    """Answers at once with what it was asked."""

    limits, key_header = Limits(max_request_bytes=1000), None
    call_of = Front.call_of

    def __init__(self) -> None:
        self.revoked: set[bytes | None] = {b""}

    def admit(self, method: str, path: str, digest: bytes | None) -> tuple[Response | Asked, str]:
        if digest in self.revoked:
            return error_response(401, "who?"), ""
        if (method, path) == ("POST", "/predict"):
            return Asked("records"), "caller"
        return error_response(404, path), ""

    def refuse(self, call: Any, code: int, message: str) -> Response:
        return error_response(code, message)

    def refuse_large(self, call: Any) -> Response:
        return error_response(413, "")


class _Owner:
    """A listener."""

    limits, is_draining, date, access_log = ListenerSpec(), False, b"today", None

    def __init__(self) -> None:
        self.endpoint = _Endpoint()
        self.buffered_bytes = 0

    def now(self) -> float:
        return 0.0

    def next_id(self) -> bytes:
        return b"id"

    def opened(self, connection: Any) -> None:
        """Nobody asks."""

    def submit(self, call: Any, slot: Any, waiting: Any) -> None:
        self.buffered_bytes -= len(call.body)
        slot.response = Response(200, b"<%b %b>" % (call.body, str(call.read and call.read.__name__).encode()))
        waiting.flush()


class _Forgetful(Connection):
    """Parses every head: what llhttp makes of the bytes."""

    def _take_known(self, data: bytes) -> bool:
        return False


class _Counting(Connection):
    known = 0

    def _take_known(self, data: bytes) -> bool:
        is_known = super()._take_known(data)
        self.known += is_known
        return is_known


def _answers(connect: type[Connection], pieces: list[bytes]) -> tuple[bytes, int, Any]:
    owner: Any = _Owner()
    connection, transport = connect(owner), _Transport()
    connection.connection_made(transport)
    for piece in pieces:
        connection.data_received(piece)
    return transport.sent, owner.buffered_bytes, connection


@st.composite
def _streams(draw: st.DrawFn) -> list[bytes]:
    """Requests, good and bad, most of them each in a piece of its own, others cut or joined anywhere."""
    pieces = draw(st.lists(st.sampled_from(_PARTS), max_size=12))
    for _ in range(draw(st.integers(0, 3)) if pieces else 0):
        index = draw(st.integers(0, len(pieces) - 1))
        if draw(st.booleans()):
            cut = draw(st.integers(0, len(pieces[index])))
            pieces[index : index + 1] = [pieces[index][:cut], pieces[index][cut:]]
        else:
            pieces[index : index + 2] = [b"".join(pieces[index : index + 2])]
    return [piece for piece in pieces if piece]


@given(_streams())
@settings(max_examples=400)
@example([_PARTS[0] + _PARTS[1], _PARTS[0], _PARTS[1] + _PARTS[1], _PARTS[1]])
@example([_PARTS[3], _PARTS[3], _PARTS[0]])
@example([_PARTS[7], _PARTS[7]])
@example([b"\r\n\r\n" + _PARTS[0], b"\r\n\r\n" + _PARTS[0]])
@example([_PARTS[0], b"\r", _PARTS[0]])
def test_answers_are_those_of_a_connection_that_parses_every_head(pieces: list[bytes]) -> None:
    assert _answers(Connection, pieces)[:2] == _answers(_Forgetful, pieces)[:2]


def test_a_head_that_came_before_is_taken_with_another_body() -> None:
    sent, _, connection = _answers(_Counting, [post(b"[1]"), post(b"[2]"), post(b"[11]"), post(b"[22]"), post(b"[3]")])
    assert re.findall(rb"<(\[\d+\])", sent) == [b"[1]", b"[2]", b"[11]", b"[22]", b"[3]"]
    assert connection.known == 3


def test_a_token_is_looked_up_again() -> None:
    owner: Any = _Owner()
    connection, transport = _Counting(owner), _Transport()
    connection.connection_made(transport)
    asked = post(_BODY, b"Authorization: Bearer a")
    for _ in range(3):
        connection.data_received(asked)
    owner.endpoint.revoked.add(hashlib.sha256(b"a").digest())
    connection.data_received(asked)
    assert re.findall(rb"HTTP/1.1 (\d+)", transport.sent) == [b"200"] * 3 + [b"401"]
    assert connection.known == 3


def test_few_and_short_heads_are_kept() -> None:
    many = [post(_BODY, b"X: %d" % number) for number in range(1000)] + [post(_BODY, b"X: " + b"y" * 2000)] * 2
    _, _, connection = _answers(_Counting, many)
    assert connection.known == 0
    assert len(connection._known) <= 8
    assert sum(map(len, connection._known)) <= 8 << 10
