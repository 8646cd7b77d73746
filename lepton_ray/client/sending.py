"""How requests get their answers through what passes: lost connections, full queues, replicas and nodes that leave.

A request that fails goes to another address at
once, and to the same one after a wait that grows, with chance in it; 4xx but 429 is never sent again. All of a call, waits too,
ends at its deadline. A connection that was kept open and turns out to be closed is no failure the first time: the request goes out on
another one at once. The next time it may be this request that ends them.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import aiohttp

from lepton_ray.client.addresses import checked_urls, trusting
from lepton_ray.client.answers import Answer, Predictions
from lepton_ray.client.errors import AnswerError, DeadlineError, UnavailableError
from lepton_ray.client.events import read_events
from lepton_ray.client.headers import JSON, REQUEST_ID, authorization
from lepton_ray.core import settings
from lepton_ray.core.status import HTTP_ACCEPTED, HTTP_BAD_GATEWAY, HTTP_LATE, HTTP_OK, HTTP_TOO_MANY, HTTP_UNAVAILABLE
from lepton_ray.core.web import retry_after_s

_WAITS = frozenset({HTTP_TOO_MANY, HTTP_UNAVAILABLE})  # with Retry-After
_PASSING = frozenset({*_WAITS, HTTP_BAD_GATEWAY, HTTP_LATE})
CLOSED = "the client must be open, and is closed. Make another"
_JITTER = 0.5  # of a wait: clients that failed together do not come back together
LONG_AFTER = 99  # failures, of which the wait is the longest
_REST_S = 1.0  # an address that has failed is asked last for so long

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How far a call goes; times in seconds."""

    deadline_s: float = 30.0
    """For a whole call, with its tries and waits."""
    try_s: float = 10.0
    """For one try, from connecting to the last byte; then it has failed."""
    max_tries: int = 10
    """That failed, of one call."""
    first_wait_s: float = 0.05
    """Before the second try of an address; it doubles with each."""
    longest_wait_s: float = 2.0
    """A longer ``Retry-After`` is waited for all the same."""
    max_connections: int = 100
    """Of a client, to all addresses together; further calls wait for one, as a part of their try."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0, got {value}")


class Fault(NamedTuple):
    """A try that failed in a way that may pass."""

    message: str
    status: int | None = None
    retry_after_s: float = 0.0
    was_kept: bool = False
    """A connection that was kept open is closed: as it may be for a time already, or over this request."""
    is_unread: bool = False
    """Nobody has taken the request: no connection came about, or the server asks to come later. Else it may have been taken."""


class Sender:
    """Knows the addresses of one endpoint, and the connections to them; belongs to the event loop that it is first used in."""

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None,
        ca_file: str | Path | None,
        options: Options | None,
        fallback: str | Sequence[str],
    ) -> None:
        """Connect to nothing yet; arguments and errors are those of ``AsyncClient``."""
        self.urls = checked_urls(urls)
        if not self.urls:
            raise ValueError("urls must hold an address, got none")
        self._fallback = checked_urls(fallback)
        self._headers = authorization(settings.endpoint_token() if token is None else token)
        self._ssl = trusting(ca_file) if ca_file is not None else True
        self.options = options or Options()
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """That of the connections."""
        self._is_closed = False
        self._resting: dict[str, float] = {}
        self._turn = 0

    async def close(self) -> None:
        """Close the connections; calls under way, after a wait that has begun, and those made later, end with ``ValueError``."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    async def call(
        self, path: str, body: bytes, headers: Mapping[str, str], tries: "Tries", method: str = "POST"
    ) -> Answer:
        """Return the answer with status 200 or 202.

        Raises:
            AnswerError: If the server refuses the request.
            UnavailableError: If no address answers.
            DeadlineError: If there is no answer in time.
        """
        sent = {**headers, **self._headers}
        answer = await tries.within(self._persist(method, path, body, sent, tries), is_try=False)
        tries.faults.clear()
        return answer

    async def _persist(self, method: str, path: str, body: bytes, headers: Mapping[str, str], tries: "Tries") -> Answer:
        """Send until there is an answer."""
        while True:
            url = await self.next_url(tries)
            found = await self._try(method, url, path, body, headers)
            if isinstance(found, Answer):
                self._resting.pop(url, None)
                return found
            self.take_note(tries, url, found)

    async def next_url(self, tries: "Tries") -> str:
        """Return which address to ask, when that may be.

        Raises:
            ValueError: If the client is closed, or of another event loop.
            DeadlineError: If the call's time would be over by then.
        """
        url = self._choose(tries.ready)
        if (until := tries.ready.get(url, 0.0)) >= tries.deadline:
            raise tries.late()
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        if self._is_closed:
            raise ValueError(CLOSED)
        if self._loop not in (None, asyncio.get_running_loop()):
            raise ValueError("the client must be used in one event loop, and was in another. Make one in each")
        return url

    def take_note(self, tries: "Tries", url: str, fault: Fault) -> None:
        """Add a fault of an address, which is asked last for a while; but none for the call's first connection that was closed.

        Raises:
            ValueError: If the client is closed.
            UnavailableError: If there are as many as are allowed, or the request must not be received twice and may have been.
        """
        if self._is_closed and tries.may_repeat:
            raise ValueError(CLOSED)
        if not tries.may_repeat and not fault.is_unread:
            message = (
                f"the request must be received once, and may have been: it is not sent again; the last: {fault.message}"
            )
            raise UnavailableError(message, fault.status, tries.request_id)
        if fault.was_kept and not tries.has_found_closed:
            tries.has_found_closed = True
            return
        tries.faults.append(fault)
        if len(tries.faults) >= tries.max_tries:
            message = f"an address must answer within {len(tries.faults)} tries; the last: {fault.message}"
            raise UnavailableError(message, fault.status, tries.request_id)
        now = time.monotonic()
        self._resting[url] = now + _REST_S
        tries.ready[url] = now + max(self.wait_s(len(tries.faults)), fault.retry_after_s)

    async def stream(
        self, url: str, body: bytes, headers: Mapping[str, str], request_id: str
    ) -> AsyncGenerator[Predictions, None]:
        """Yield the parts of one try.

        Raises:
            BrokenError: If it fails in a way that may pass.
            AnswerError: If the server refuses a record.
        """
        sent = {**JSON, **headers, **self._headers, "accept": "text/event-stream"}
        facts = SimpleNamespace(is_reused=False)
        try:
            async with self._opened().post(
                url, data=body, headers=sent, allow_redirects=False, trace_request_ctx=facts
            ) as response:
                if response.status != HTTP_OK or response.content_type != "text/event-stream":
                    answer = await _read(response, request_id)
                    judged = self._judge(url, answer)
                    raise BrokenError(judged) if isinstance(judged, Fault) else answer.strange()
                facts.is_reused = False
                request_id = response.headers.get(REQUEST_ID, request_id)
                async for name, data in read_events(response.content.iter_any()):
                    if name == "end":
                        return
                    if name == "error" and data["status"] in _PASSING:  # as the first part would be told it
                        raise BrokenError(Fault(f"{url}: {data['error']}", data["status"]))
                    if name == "error":
                        raise AnswerError(data["error"], data["status"], request_id)
                    yield Predictions(data["predictions"], data.get("version"), request_id)
        except aiohttp.ClientSSLError as error:
            raise _untrusted(url, error, request_id) from error
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenError(_fault_of(url, error, facts.is_reused)) from error
        except (ValueError, LookupError, TypeError) as error:
            raise AnswerError(f"the events must be of the protocol, got {error!r}", HTTP_OK, request_id) from error
        raise BrokenError(Fault(f"{url}: the events broke off"))

    def _choose(self, ready: Mapping[str, float]) -> str:
        """The address whose turn it is, of those that this call may ask soonest; those that failed others come last."""
        self._turn += 1
        turn = self._turn % len(self.urls)
        now = time.monotonic()
        ranks = {url: 2 * (self._resting.get(url, 0.0) > now) for url in (*self.urls[turn:], *self.urls[:turn])}
        ranks |= {url: 1 + 2 * (self._resting.get(url, 0.0) > now) for url in self._fallback}
        return min(ranks, key=lambda url: (ready.get(url, 0.0), ranks[url]))

    def wait_s(self, failures: int) -> float:
        """Return how long to wait after so many failures."""
        longest = min(self.options.longest_wait_s, self.options.first_wait_s * 2.0 ** min(failures - 1, LONG_AFTER))
        return longest * random.uniform(1 - _JITTER, 1)  # noqa: S311  no secret

    async def _try(self, method: str, url: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer | Fault:
        """Send once."""
        facts = SimpleNamespace(is_reused=False)
        request_id = headers[REQUEST_ID]
        try:
            answer = await self._send(method, url + path, body, headers, facts)
        except aiohttp.ClientSSLError as error:
            raise _untrusted(url, error, request_id) from error
        except (aiohttp.ClientError, OSError, _TryTimeoutError) as error:
            return _fault_of(url, error, facts.is_reused)
        return self._judge(url, answer)

    def _judge(self, url: str, answer: Answer) -> Answer | Fault:
        """Return an answer that is good, or the fault that may pass.

        Raises:
            AnswerError: If it is neither.
        """
        if answer.status in (HTTP_OK, HTTP_ACCEPTED):
            return answer
        message = f"{url}: {answer.message()}"
        if answer.status not in _PASSING:
            raise AnswerError(message, answer.status, answer.request_id)
        wait_s = _wait_s(answer)
        return Fault(message, answer.status, wait_s or 0.0, is_unread=wait_s is not None)

    async def _send(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], facts: SimpleNamespace
    ) -> Answer:
        try:
            async with asyncio.timeout(self.options.try_s) as limit:
                async with self._opened().request(
                    method, url, data=body or None, headers=headers, allow_redirects=False, trace_request_ctx=facts
                ) as response:
                    return await _read(response, headers[REQUEST_ID])
        except TimeoutError as error:
            if limit.expired():
                raise _TryTimeoutError(f"no whole answer within {self.options.try_s:g} s") from error
            raise

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_note_reuse)
            connector = aiohttp.TCPConnector(limit=self.options.max_connections, ssl=self._ssl)
            timeout = aiohttp.ClientTimeout(total=None)  # ours are around it
            self._loop = asyncio.get_running_loop()
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[trace])
        return self._session


class Tries:
    """What has become of a call so far, and how long it may go on."""

    def __init__(self, options: Options, request_id: str, deadline_s: float | None, may_repeat: bool = True) -> None:
        self.request_id = request_id
        self.max_tries: float = options.max_tries
        self.may_repeat = may_repeat
        """Whether the request may be received twice."""
        self.faults: list[Fault] = []
        self.ready: dict[str, float] = {}
        """When an address that has failed may be tried again."""
        self.has_found_closed = False
        """A connection that was kept open."""
        self.seconds = options.deadline_s if deadline_s is None else deadline_s
        self.deadline = time.monotonic() + self.seconds
        self._try_s = options.try_s

    async def within(self, waited: Awaitable[T], is_try: bool = True) -> T:
        """Return what is waited for.

        Raises:
            DeadlineError: If the call's time is over before.
            BrokenError: If that of one try is.
        """
        rest_s = self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(self._try_s, rest_s) if is_try else rest_s):
                return await waited
        except TimeoutError as error:
            if is_try and self._try_s < rest_s:
                raise BrokenError(Fault(f"nothing came within {self._try_s:g} s")) from error
            raise self.late() from None

    def late(self) -> DeadlineError:
        """Return the error of a call whose time is over."""
        last = self.faults[-1] if self.faults else Fault("the server has not answered")
        asked = f", asks to wait {last.retry_after_s:g} s" if last.retry_after_s else ""
        message = f"the call must be answered within {self.seconds:g} s; the last: {last.message}{asked}"
        return DeadlineError(message, last.status, self.request_id)


class BrokenError(Exception):
    """One try of events failed in a way that may pass."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class _TryTimeoutError(Exception):
    """One try took too long; no ``TimeoutError``, which is the call's."""


async def _note_reuse(session: aiohttp.ClientSession, context: Any, parameters: Any) -> None:
    context.trace_request_ctx.is_reused = True


def _wait_s(answer: Answer) -> float | None:
    """Seconds that an answer asks to wait; None if it does not."""
    return retry_after_s(answer.headers.get("retry-after", "")) if answer.status in _WAITS else None


async def _read(response: aiohttp.ClientResponse, request_id: str) -> Answer:
    body = await response.read()
    return Answer(response.status, response.headers, body, response.headers.get(REQUEST_ID, request_id))


def _fault_of(url: str, error: Exception, is_reused: bool) -> Fault:
    """Return what an error on the way to an answer means."""
    message = f"{url}: {str(error) or type(error).__name__}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return Fault(message, is_unread=True)
    if not isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return Fault(message)
    if not is_reused and url.startswith("http:"):  # as one does that waits for TLS
        message += ". If it speaks TLS, its address begins with https"
    return Fault(message, was_kept=is_reused)


def _untrusted(url: str, error: aiohttp.ClientSSLError, request_id: str) -> UnavailableError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return UnavailableError(f"{url} must be one to trust, got: {error}", None, request_id)
    rule = "must speak TLS as its address says"
    return UnavailableError(f"{url} {rule}, got: {error}. If it does not, it begins with http", None, request_id)
