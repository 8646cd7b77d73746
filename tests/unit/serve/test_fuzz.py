"""Random and spoilt requests at a listener: no failure, no silence, no growth, and every answer is HTTP to another parser.

A case is made of its number alone: ``_case(number)`` gives a failing one again.
"""

import asyncio
import copy
import json
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h11
import pytest
import uvloop

from lepton_ray.serve.batching import Cost
from lepton_ray.serve.endpoint import Limits

from .conftest import RECORD, SHORT, Running
from .test_listener import get, post

_LIMITS = Limits(max_request_bytes=32 << 10, max_rows=64)
_INFER = b"/v2/models/demo/infer"
_CODES = {200, 400, 404, 405, 408, 413, 417, 422, 431, 501, 505}
"""No 500, and no 503: nothing here is more than may wait."""
_GROWTH_BYTES = 64 << 20
"""A case sends 3.5 kB on average and costs a connection: what is kept of each of 40,000 would be more than 140 MB, while what Python and
malloc hold back levels off in the first ones."""
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, 2**31, 2**63, 2**64 - 1, "", "x", "\0", "\U0001f600", "x" * 300),
    *([], {}, [[]], [1, 2], ["a"], {"name": "numbers"}, "FP64", "BYTES", "red", "S", "records", "inputs"),
    *(
        "@1e999@",
        "@-1e999@",
        "@NaN@",
        "@Infinity@",
        "@" + "9" * 400 + "@",
        "@0x1@",
        "@01@",
        '@"\\ud800"@',
        "@[@",
        "@" + "[" * 900 + "]" * 900 + "@",
    ),
    *("@" + "[" * 2000 + "]" * 2000 + "@", "@" + '{"a":' * 500 + "1" + "}" * 500 + "@", "@" + "[" * 9000 + "@"),
)
"""What stands between @ goes into the JSON as it is."""


class _Case(NamedTuple):
    good: list[bytes]
    """Requests that stand before the spoilt one; each must have its right answer."""
    spoilt: bytes
    raw: bytes
    """All that is sent."""


def _tensors(rng: random.Random) -> dict[str, Any]:
    rows = rng.randint(1, 3)
    return {
        "inputs": [
            {"name": "numbers", "datatype": "FP64", "shape": [rows, 2], "data": [rng.choice([30, 7.5])] * 2 * rows},
            {"name": "categories", "datatype": "BYTES", "shape": [rows, 2], "data": ["red", "S"] * rows},
        ],
        "outputs": [{"name": "label", "parameters": {"binary_data": rng.random() < 0.5}}],
        "id": "a",
    }


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """The containers in a value, each with a key of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _spoil_json(rng: random.Random, body: Any) -> bytes:
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(body))
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(rng.choice(holder)))
        elif kind == 2 and isinstance(holder, dict):
            holder[rng.choice(["data", "shape", "x", "parameters"])] = holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    return text.replace('"@', "").replace('@"', "").replace('\\"', '"').encode()


def _spoilt_records(rng: random.Random) -> bytes:
    records: Any = [RECORD] * rng.choice([1, 2, 65])
    return post(_spoil_json(rng, {"records": records} if rng.random() < 0.5 else records))


def _spoilt_tensors(rng: random.Random) -> bytes:
    return post(_spoil_json(rng, _tensors(rng)), path=_INFER)


def _spoilt_bytes(rng: random.Random) -> bytes:
    """Raw tensors whose sizes, lengths or bytes are wrong, most of them by one."""
    body, offsets = _tensors(rng), rng.choice([[0], [0] * 12 + [1, -1, 4, 2**31, -(2**31)]])
    rows = body["inputs"][0]["shape"][0]
    texts = [text for _ in range(rows) for text in (rng.choice([b"red"] * 6 + [b"\xffed", "süß".encode(), b""]), b"S")]
    blobs = [
        struct.pack(
            f"<{2 * rows}d", *(rng.choice([30.0, float("nan"), float("inf"), 5e-324]) for _ in range(2 * rows))
        ),
        b"".join(struct.pack("<I", (len(text) + rng.choice(offsets)) % 2**32) + text for text in texts),
    ]
    for tensor, blob in zip(body["inputs"], blobs, strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(blob) + rng.choice(offsets)}
        tensor["datatype"] = rng.choice([tensor["datatype"]] * 6 + ["FP32", "BOOL", "INT8", "FP16"])
    text = _spoil_json(rng, body) if rng.random() < 0.3 else json.dumps(body).encode()
    rest = b"".join(blobs)
    rest = (
        rest[: len(rest) + rng.choice(offsets)]
        if rng.random() < 0.5
        else rest + b"\xff" * max(0, min(rng.choice(offsets), 9))
    )
    return post(text + rest, b"Inference-Header-Content-Length: %d" % (len(text) + rng.choice(offsets)), path=_INFER)


def _good(rng: random.Random) -> bytes:
    return rng.choice(
        [
            post([RECORD]),
            post([RECORD] * 3),
            post({"age": 1}),
            get(b"/v2/models/demo"),
            get(b"/v2/health/live"),
            get(b"/nothing?a=b"),
            post(_tensors(random.Random(rng.randrange(4))), path=_INFER),
        ]
    )


def _chunked(rng: random.Random, raw: bytes) -> bytes:
    """The same request in chunks, some of them wrong."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    codings = [b"chunked"] * 6 + [b"Chunked", b"gzip, chunked", b"chunked, chunked", b"\tchunked", b"identity"]
    lines.append(b"Transfer-Encoding: " + rng.choice(codings))
    if rng.random() < 0.1:
        lines.append(b"Content-Length: %d" % len(body))
    parts = []
    while body:
        part, body = body[: (size := rng.randint(1, 40))], body[size:]
        told = len(part) + rng.choice([0] * 30 + [1, -1, 2**40, 2**64])
        extension = rng.choice([b""] * 8 + [b";a=b", b' ;"', b";\n", b";" + b"x" * 300])
        parts.append(b"%x%b\r\n%b%b" % (told, extension, part, rng.choice([b"\r\n"] * 30 + [b"\n", b"", b"x\r\n"])))
    end = rng.choice(
        [b"0\r\n\r\n"] * 8 + [b"", b"0\r\n", b"00000\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nHost: y\r\n" * 60]
    )
    return b"\r\n".join([*lines, b"", b"".join(parts) + end])


def _wrong_length(rng: random.Random, raw: bytes) -> bytes:
    head, _, body = raw.partition(b"\r\n\r\n")
    size = len(body)
    value = rng.choice(
        [str(size + 1), str(size - 1), "0", "-1", "+1", f"{size}, {size}", "1e3", "9" * 30, "", "33000", f"0{size}"]
    )
    lines = [line for line in head.split(b"\r\n") if rng.random() < 0.3 or not line.startswith(b"Content-Length")]
    return b"\r\n".join([*lines, b"Content-Length: " + value.encode(), b"", body])


def _more_headers(rng: random.Random, raw: bytes) -> bytes:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    kind = rng.randrange(3)
    if kind == 0:
        lines.insert(rng.randint(1, len(lines)), rng.choice(lines[1:]))
    elif kind == 1:
        lines += [b"X-%d: %b" % (number, b"a" * rng.choice([1, 30, 300])) for number in range(rng.randint(1, 160))]
    else:
        more = [
            b"Connection: close",
            b"Connection: keep-alive",
            b"Connection: upgrade\r\nUpgrade: h2c",
            b"Expect: 100-continue",
        ]
        more += [
            b"Expect: x",
            b"Authorization: Bearer x",
            b"X-Request-Id: a\tb",
            b"X: a\r\n b",
            b"X : a",
            b"X: \xff\0",
            b"X: " + b"a" * 17000,
        ]
        more += [
            b"Inference-Header-Content-Length: %d" % rng.choice([0, 1, 5, 10**20]),
            b"Host:",
            b": x",
            b"Trailer: X",
        ]
        lines.insert(rng.randint(1, len(lines)), rng.choice(more))
    return b"\r\n".join([*lines, b"", body])


def _another_line(rng: random.Random, raw: bytes) -> bytes:
    _, _, rest = raw.partition(b"\r\n")
    method = rng.choice([b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"PRI", b"post", b"X" * 5000])
    target = rng.choice(
        [
            b"/predict",
            b"*",
            b"//",
            b"/%",
            b"/%ff%00%0d%0a",
            b"http://x/v2",
            b"http://[",
            b"x:1",
            b"/" + b"a" * 17000,
            b"",
        ]
    )
    version = rng.choice([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 ", b""])
    return b"%b %b %b\r\n%b" % (method, target, version, rest)


def _cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def _flip(rng: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _splice(rng: random.Random, raw: bytes) -> bytes:
    other = _good(rng)
    return raw[: rng.randrange(len(raw))] + other[rng.randrange(len(other)) :]


def _noise(rng: random.Random, raw: bytes) -> bytes:
    start = rng.randrange(len(raw))
    return raw[:start] + rng.randbytes(rng.randint(1, 200)) + raw[start:]


def _same(rng: random.Random, raw: bytes) -> bytes:
    return raw


_MAKERS: list[Callable[[random.Random], bytes]] = [_good, _spoilt_records, _spoilt_tensors, _spoilt_bytes]
_CHANGES = [_same, _chunked, _wrong_length, _more_headers, _another_line, _cut, _flip, _splice, _noise]


def _case(number: int) -> _Case:
    rng = random.Random(f"case {number}")
    good = [_good(rng) for _ in range(rng.choice([0, 0, 1, 3]))]
    spoilt = rng.choice(_CHANGES)(rng, rng.choice(_MAKERS)(rng))
    after = [_good(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
    return _Case(good, spoilt, b"".join([*good, spoilt, *after]))


def _read_answers(stream: bytes, raw: bytes) -> list[tuple[int, bytes | None, bool]]:
    """Parse all that a listener sent: status, body (None if it has none, as to HEAD) and whether it closes, of each answer."""
    answers = []
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        if head == b"HTTP/1.1 100 Continue":
            stream = rest
            continue
        is_head = b"HEAD" in raw and (not rest or rest.startswith(b"HTTP/1.1 "))
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="HEAD" if is_head else "GET", target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(stream)
        response = parser.next_event()
        assert isinstance(response, h11.Response), response
        body = b""
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data), event
            body += event.data
        headers = dict(response.headers)
        assert {b"content-length", b"content-type", b"date", b"x-request-id"} <= headers.keys()
        if not is_head and headers[b"content-type"] == b"application/json":
            assert (list(json.loads(body)) == ["error"]) == (response.status_code != 200)
        answers.append((response.status_code, None if is_head else body, headers.get(b"connection") == b"close"))
        stream = parser.trailing_data[0]
    return answers


class _Fuzz:
    """A listener and what it must never do."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._failures: list[Any] = []
        running.loop.set_exception_handler(lambda loop, context: self._failures.append(context))
        self._expected: dict[bytes, tuple[int, bytes | None]] = {}

    def run(self, numbers: range) -> int:
        """Run cases; returns how many requests they had answered."""
        answered = 0
        for number in numbers:
            case = _case(number)
            stream = b""
            try:
                stream = self._send(case.raw)
                answered += self._check(case, stream)
            except Exception as error:
                raise AssertionError(f"case {number}: {error!r}\nsent {case.raw!r}\ngot {stream!r}") from error
        return answered

    def _send(self, raw: bytes) -> bytes:
        parts = []
        with socket.create_connection(("127.0.0.1", self._running.port), timeout=60) as client:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)

    def _check(self, case: _Case, stream: bytes) -> int:
        answers = _read_answers(stream, case.raw)
        assert {code for code, _, _ in answers} <= _CODES
        assert not any(closes for _, _, closes in answers[:-1])
        assert len(answers) >= len(case.good)
        for raw, (code, body, _) in zip(case.good, answers, strict=False):
            assert (code, body) == self._answer_of(raw)
        if case.spoilt.startswith(b"HEAD /") and len(answers) > len(case.good):
            assert answers[len(case.good)][1] is None
        assert not self._failures
        return len(answers)

    def _answer_of(self, raw: bytes) -> tuple[int, bytes | None]:
        """What a good request is answered with when it comes alone."""
        if raw not in self._expected:
            ((code, body, _),) = _read_answers(self._send(raw), raw)
            self._expected[raw] = code, body
        return self._expected[raw]

    def check_nothing_is_left(self) -> None:
        """See that all is as it was before the first case."""
        listener = self._running.listener
        while listener._connections:  # a connection ends a moment after its client has read all
            self._running.call(asyncio.sleep(0.01))
        assert (listener.buffered_bytes, listener._under_way, len(listener._opening)) == (0, 0, 0)
        assert not self._failures


@pytest.fixture(params=[SHORT, Cost(1.0, 1.0)], ids=["loop", "thread"])
def fuzz(request: pytest.FixtureRequest, mixed_package: Path) -> Iterator[_Fuzz]:
    running = Running(mixed_package, uvloop.new_event_loop(), limits=_LIMITS, cost=request.param)
    yield _Fuzz(running)
    running.stop()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_spoilt_requests_get_an_answer_and_leave_nothing_behind(fuzz: _Fuzz) -> None:
    assert fuzz.run(range(700)) > 700
    fuzz.check_nothing_is_left()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_spoilt_requests_do_no_harm(fuzz: _Fuzz) -> None:
    fuzz.run(range(10_000))
    before = _resident_bytes()
    fuzz.run(range(10_000, 50_000))
    assert _resident_bytes() - before < _GROWTH_BYTES
    fuzz.check_nothing_is_left()
