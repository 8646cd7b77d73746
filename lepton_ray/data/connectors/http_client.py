"""One GET after another to one server: bounded in size, time and number, sent again after transient faults.

Credentials go to the origin of the first address only: a redirect or a next page elsewhere is refused.
"""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import IO, Any, NamedTuple

from lepton_ray.core.errors import DataError, LeptonError
from lepton_ray.core.text import show, without_credentials
from lepton_ray.core.web import retry_after_s
from lepton_ray.data.connectors.faults import LONGEST_WAIT_S, PASSING, describe, waits_s

_CHUNK_BYTES = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS
_PORTS = {"http": 80, "https": 443}
_REFUSAL_BYTES = 4096
_SHOWN_CHARACTERS = 200
_MIN_SECRET_LENGTH = 6
_UNQUOTED = "!$%&'()*+,/:;=?@[]~"  # what stays as it is in a path and a query


class Answer(NamedTuple):
    """What the server said."""

    url: str
    shown: str
    """The address that was asked, as messages show it."""
    body: bytes
    headers: Mapping[str, str]


class Limits(NamedTuple):
    """How far to go."""

    requests_per_s: float | None
    timeout_s: float
    deadline_s: float
    max_tries: int
    max_bytes: int


class NotFoundError(DataError):
    """The server says that nothing is at an address."""


class _FaultError(Exception):
    """A try that failed in a way that may pass."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass
class Client:
    """Sends requests to the origin of ``first_url``."""

    first_url: str
    headers: Mapping[str, str]
    limits: Limits
    templates: tuple[str, ...] = ()
    """Texts of the spec that address and headers were made of: what they refer to stays out of messages."""
    _deadline: float = field(init=False)
    _next_start: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Look at what is sent.

        Raises:
            DataError: If the address is none, or a header cannot be sent: a value, which may be a secret, is not shown.
        """
        place = origin(self.first_url)
        if urllib.parse.urlsplit(self.first_url).username is not None:
            raise DataError(
                f"data.source.uri must hold no user, got one for {place}. Send data.source.headers instead, "
                "such as Authorization: Basic ${USER_AND_PASSWORD_IN_BASE64}"
            )
        for name, value in self.headers.items():
            if not value.isprintable() or not value.isascii():
                raise DataError(
                    f"data.source.headers.{name} must be printable ASCII text on one line, got other characters. Look at "
                    "the environment variable it refers to: a line end at its end is one"
                )
        self._deadline = time.monotonic() + self.limits.deadline_s

    def get(self, url: str) -> Answer:
        """Return the server's answer.

        Raises:
            NotFoundError: If it says that nothing is there.
            DataError: If it stays unreachable, refuses, or answers what is too large.
        """
        if origin(url) != origin(self.first_url):
            raise DataError(
                f"data.source.uri must lead to pages of {origin(self.first_url)}, got one at {origin(url)}: credentials are "
                "not sent there. Name that address in data.source.uri if it is right"
            )
        url = _quoted(url)
        waits = waits_s(self.limits.max_tries)
        for number in range(1, self.limits.max_tries + 1):
            self._pace()
            try:
                return self._send(url)
            except _FaultError as error:
                self._wait(url, number, error, next(waits, None))
        raise AssertionError("the last wait raises")

    def shown(self, url: str) -> str:
        """Return an address as messages show it: without user and query, which may hold a key, and without secrets."""
        parts = urllib.parse.urlsplit(url)
        text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return describe(ValueError(text), *self.templates)

    def _pace(self) -> None:
        """Wait until the next request may start."""
        if self.limits.requests_per_s is None:
            return
        now = time.monotonic()
        if now < self._next_start:
            time.sleep(min(self._next_start - now, max(0.0, self._deadline - now)))
        self._next_start = time.monotonic() + 1 / self.limits.requests_per_s

    def _wait(self, url: str, number: int, error: _FaultError, back_off_s: float | None) -> None:
        """Wait before the next try.

        Raises:
            DataError: If there is none left, or no time for it.
        """
        wait_s = back_off_s if error.wait_s is None or back_off_s is None else error.wait_s
        left_s = self._deadline - time.monotonic()
        if wait_s is None or wait_s >= left_s:
            rest = "" if wait_s is None else f", and {max(left_s, 0):.0f} s of data.source.deadline_s are left"
            raise DataError(
                f"{self.shown(url)} must answer within {self.limits.max_tries} tries, got {error} in try {number}{rest}. Try later, "
                "or raise data.source.max_tries or data.source.deadline_s"
            ) from error
        time.sleep(wait_s)

    def _send(self, url: str) -> Answer:
        timeout_s = min(self.limits.timeout_s, self._deadline - time.monotonic())
        if timeout_s <= 0:
            raise DataError(
                f"{self.shown(url)} must be read within data.source.deadline_s ({self.limits.deadline_s:g}). Raise it"
            )
        request = urllib.request.Request(url, headers={"Accept": "application/json", **self.headers})  # noqa: S310
        opener = urllib.request.build_opener(_SameOrigin(self.first_url))
        end = time.monotonic() + timeout_s
        try:
            with opener.open(request, timeout=timeout_s) as response:
                return Answer(response.geturl(), self.shown(url), self._body(response, url, end), response.headers)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, url) from error
        except LeptonError:
            raise
        except (ValueError, http.client.InvalidURL) as error:
            raise DataError(
                f"{self.shown(url)} must be an address that can be asked, got {type(error).__name__}. Check data.source.uri"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _FaultError(_name(error)) from error

    def _body(self, response: Any, url: str, end: float) -> bytes:
        """Read the answer in pieces: a server that sends a byte a second is no better than one that is silent."""
        pieces: list[bytes] = []
        size = 0
        while piece := response.read1(_CHUNK_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > self.limits.max_bytes:
                raise self._too_large(url)
            if time.monotonic() > end:
                raise _FaultError("no whole answer in time")
        if response.length:  # what is left of Content-Length
            raise _FaultError(f"{size} of {size + response.length} bytes")
        body = b"".join(pieces)
        is_gzip = response.headers.get("Content-Encoding", "").strip().lower() == "gzip"
        return self._decompress(body, url) if is_gzip else body

    def _decompress(self, body: bytes, url: str) -> bytes:
        engine = zlib.decompressobj(_GZIP)
        try:
            content = engine.decompress(body, self.limits.max_bytes + 1)
        except zlib.error as error:
            raise _FaultError("an answer that is no gzip") from error
        if len(content) > self.limits.max_bytes:
            raise self._too_large(url)
        if not engine.eof:
            raise _FaultError("a gzip answer that ends early")
        return content

    def _refusal(self, error: urllib.error.HTTPError, url: str) -> Exception:
        reason = describe(ValueError(error.reason), *self.templates)
        if error.code in PASSING:
            return _FaultError(f"{error.code} {reason}", _wait_s(error.headers.get("Retry-After")))
        answer = f"{error.code} {reason}" + (f" ({text})" if (text := self._text(error)) else "")
        kind = NotFoundError if error.code == HTTPStatus.NOT_FOUND else DataError
        return kind(
            f"{self.shown(url)} must answer with 200, got {answer}. Check data.source.uri and data.source.headers"
        )

    def _text(self, error: urllib.error.HTTPError) -> str:
        """Return the start of what a refusal says; a server may say the credentials that it was sent."""
        try:
            body = error.read(_REFUSAL_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException, AttributeError):
            return ""
        for value in self.headers.values():
            for secret in (value, *value.split()):
                body = body.replace(secret, "...") if len(secret) >= _MIN_SECRET_LENGTH else body
        return describe(ValueError(body), *self.templates)[:_SHOWN_CHARACTERS] if body.strip() else ""

    def _too_large(self, url: str) -> DataError:
        return DataError(
            f"{self.shown(url)} must answer with at most {self.limits.max_bytes} bytes, got more. Ask for smaller pages or raise "
            "data.source.max_page_bytes"
        )


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects within an origin."""

    def __init__(self, first_url: str) -> None:
        self._first_url = first_url

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if origin(newurl) != origin(self._first_url):
            raise DataError(
                f"{origin(req.full_url)} must answer itself, got a redirect to {origin(newurl)}: credentials are not sent there. "
                "Name that address in data.source.uri if it is right"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def origin(url: str) -> str:
    """Return scheme, host and port of an address.

    Raises:
        DataError: If it is none.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}:{parts.port or _PORTS.get(parts.scheme, 0)}"
    except ValueError as error:
        place = show(without_credentials(url.partition("?")[0]))
        raise DataError(f"data.source.uri must lead to addresses of pages, got {place} ({error}). Check it") from error


def _quoted(url: str) -> str:
    """Return an address in ASCII but for its host: servers give others too."""
    parts = urllib.parse.urlsplit(url)
    path, query = (urllib.parse.quote(text, safe=_UNQUOTED) for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit(parts._replace(path=path, query=query))


def _wait_s(text: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header names; the longest wait if it cannot be read."""
    if text is None:
        return None
    wait_s = retry_after_s(text)
    return LONGEST_WAIT_S if wait_s is None else wait_s


def _name(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
