"""Calls of endpoints that go on through what passes: lost connections, full queues, replicas and nodes that leave.

Predictions change nothing on the server, so that any request may be sent again. A request that fails goes to another address at
once, and to the same one after a wait that grows, with chance in it; 4xx but 429 is never sent again. All of a call, waits too,
ends at its deadline. A connection that was kept open and turns out to be closed is no failure: the request goes out on another
one at once.
"""

import asyncio
import email.utils
import random
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from numpy.typing import NDArray

from lepton_ray.client import tensors as protocol
from lepton_ray.client.errors import AnswerError, DeadlineError, UnavailableError
from lepton_ray.core import settings

_OK = 200
_WAITS = frozenset({429, 503})  # with Retry-After
_PASSING = frozenset({*_WAITS, 502, 504})
_SHOWN_CHARACTERS = 500
_JITTER = 0.5  # of a wait: clients that failed together do not come back together
_REST_S = 1.0  # an address that has failed is asked last for so long


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


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Fault(NamedTuple):
    """A try that failed in a way that may pass."""

    message: str
    status: int | None = None
    retry_after_s: float = 0.0


class AsyncClient:
    """Asks the endpoint at one or several addresses; belongs to the event loop that it is first used in."""

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        ca_file: str | Path | None = None,
        options: Options | None = None,
        fallback: str | Sequence[str] = (),
    ) -> None:
        """Connect to nothing yet.

        Args:
            urls: Base addresses of the same endpoint, such as one of each node.
            token: Bearer token; the environment's LEPTON_RAY_TOKEN if not given.
            ca_file: Certificates (PEM) to trust for https instead of the system's.
            options: Deadline, tries and waits.
            fallback: Base addresses that are asked only while none of ``urls`` answers, such as Ray Serve's own.

        Raises:
            ValueError: If an address is none of http or https, or the token no header can carry.
        """
        self._urls = _all_checked(urls)
        if not self._urls:
            raise ValueError("urls must hold an address, got none")
        self._fallback = _all_checked(fallback)
        self._headers = _authorization(settings.endpoint_token() if token is None else token)
        self._ssl = ssl.create_default_context(cafile=str(ca_file)) if ca_file is not None else True
        self._options = options or Options()
        self._session: aiohttp.ClientSession | None = None
        self._resting: dict[str, float] = {}
        self._turn = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._urls)})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def predict(self, records: Sequence[Mapping[str, Any]], deadline_s: float | None = None) -> list[Any]:
        """Return a prediction for each raw record, as ``POST /predict`` answers.

        Raises:
            AnswerError: If the server refuses the request; says which record and why.
            UnavailableError: If no address answers.
            DeadlineError: If there is no answer in time.
        """
        body = orjson.dumps(list(records), option=orjson.OPT_SERIALIZE_NUMPY)
        request_id = uuid.uuid4().hex
        answer = await self._call("/predict", body, {"content-type": "application/json"}, request_id, deadline_s)
        try:
            return list(orjson.loads(answer.body)["predictions"])
        except (ValueError, LookupError, TypeError) as error:
            raise _strange(answer, request_id) from error

    async def infer(
        self,
        model: str,
        tensors: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        deadline_s: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the model's outputs, or those that are named, for arrays; both travel as raw bytes.

        Args:
            model: Its name in the protocol.
            tensors: An array for each input, rows first: numbers with NaN, texts with None, for what is missing.
            outputs: Which ones to answer; None for all.
            deadline_s: In the place of the client's.

        Raises:
            ValueError: If an array has no type of the protocol.
            AnswerError, UnavailableError, DeadlineError: As ``predict``.
        """
        body, json_bytes = protocol.encode(tensors, outputs)
        headers = {"content-type": "application/octet-stream", protocol.LENGTH_HEADER: str(json_bytes)}
        request_id = uuid.uuid4().hex
        answer = await self._call(f"/v2/models/{quote(model, safe='')}/infer", body, headers, request_id, deadline_s)
        length = answer.headers.get(protocol.LENGTH_HEADER)
        try:
            return protocol.decode(answer.body, None if length is None else int(length))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _strange(answer, request_id) from error

    async def _call(
        self, path: str, body: bytes, headers: Mapping[str, str], request_id: str, deadline_s: float | None
    ) -> _Answer:
        seconds = self._options.deadline_s if deadline_s is None else deadline_s
        faults: list[_Fault] = []
        sent = {**headers, **self._headers, "x-request-id": request_id}
        try:
            async with asyncio.timeout(seconds):
                return await self._persist(path, body, sent, faults, time.monotonic() + seconds)
        except TimeoutError:
            last = faults[-1] if faults else _Fault("the server has not answered")
            message = f"the call must be answered within {seconds:g} s; the last: {last.message}"
            raise DeadlineError(message, last.status, request_id) from None

    async def _persist(
        self, path: str, body: bytes, headers: Mapping[str, str], faults: list[_Fault], deadline: float
    ) -> _Answer:
        """Send until there is an answer; adds each fault to ``faults``."""
        ready: dict[str, float] = {}  # when an address that has failed may be tried again
        while True:
            url = self._choose(ready)
            if (until := ready.get(url, 0.0)) >= deadline:
                raise TimeoutError
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            found = await self._try(url, path, body, headers)
            if isinstance(found, _Answer):
                self._resting.pop(url, None)
                return found
            if found is None:
                continue
            faults.append(found)
            if len(faults) >= self._options.max_tries:
                message = f"an address must answer within {len(faults)} tries; the last: {found.message}"
                raise UnavailableError(message, found.status, headers["x-request-id"])
            now = time.monotonic()
            self._resting[url] = now + _REST_S
            ready[url] = now + max(self._wait_s(len(faults)), found.retry_after_s)

    def _choose(self, ready: Mapping[str, float]) -> str:
        """The address whose turn it is, of those that this call may ask soonest; those that failed others come last."""
        self._turn += 1
        turn = self._turn % len(self._urls)
        now = time.monotonic()
        ranks = {url: 2 * (self._resting.get(url, 0.0) > now) for url in (*self._urls[turn:], *self._urls[:turn])}
        ranks |= {url: 1 + 2 * (self._resting.get(url, 0.0) > now) for url in self._fallback}
        return min(ranks, key=lambda url: (ready.get(url, 0.0), ranks[url]))

    def _wait_s(self, failures: int) -> float:
        longest = min(self._options.longest_wait_s, self._options.first_wait_s * 2.0 ** (failures - 1))
        return longest * random.uniform(1 - _JITTER, 1)  # noqa: S311  no secret

    async def _try(self, url: str, path: str, body: bytes, headers: Mapping[str, str]) -> _Answer | _Fault | None:
        """Send once: an answer, a fault, or None if a connection that was kept open is closed."""
        facts = SimpleNamespace(is_reused=False)
        request_id = headers["x-request-id"]
        try:
            answer = await self._send(url + path, body, headers, facts)
        except aiohttp.ClientSSLError as error:
            raise UnavailableError(f"{url} must be one to trust, got: {error}", None, request_id) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            return None if facts.is_reused else _Fault(f"{url}: {_shown(error)}")
        except (aiohttp.ClientError, OSError, _TryTimeoutError) as error:
            return _Fault(f"{url}: {_shown(error)}")
        if answer.status == _OK:
            return answer
        message = f"{url}: {_message(answer.body)}"
        if answer.status not in _PASSING:
            raise AnswerError(message, answer.status, answer.headers.get("x-request-id", request_id))
        return _Fault(message, answer.status, _retry_after_s(answer))

    async def _send(self, url: str, body: bytes, headers: Mapping[str, str], facts: SimpleNamespace) -> _Answer:
        try:
            async with asyncio.timeout(self._options.try_s) as limit:
                async with self._opened().post(
                    url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=facts
                ) as response:
                    return _Answer(response.status, response.headers, await response.read())
        except TimeoutError as error:
            if limit.expired():
                raise _TryTimeoutError(f"no whole answer within {self._options.try_s:g} s") from error
            raise

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_note_reuse)
            connector = aiohttp.TCPConnector(limit=self._options.max_connections, ssl=self._ssl)
            timeout = aiohttp.ClientTimeout(total=None)  # ours are around it
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[trace])
        return self._session


class _TryTimeoutError(Exception):
    """One try took too long; no ``TimeoutError``, which is the call's."""


async def _note_reuse(session: aiohttp.ClientSession, context: Any, parameters: Any) -> None:
    context.trace_request_ctx.is_reused = True


def _all_checked(urls: str | Sequence[str]) -> list[str]:
    return [_checked(url) for url in ([urls] if isinstance(urls, str) else urls)]


def _checked(url: str) -> str:
    at = urlsplit(url)
    if at.scheme not in ("http", "https") or not at.hostname:
        raise ValueError(f"urls must be http://HOST:PORT or https://HOST:PORT, got {url!r}")
    if at.username is not None or at.query or at.fragment:
        raise ValueError(f"urls must have no credentials, query or fragment, got one at {at.hostname}. Give a token")
    return url.rstrip("/")


def _authorization(token: str | None) -> dict[str, str]:
    if not token:
        return {}
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("token must be of visible ASCII characters, got others. Check LEPTON_RAY_TOKEN")
    return {"authorization": f"Bearer {token}"}


def _retry_after_s(answer: _Answer) -> float:
    """Seconds that an answer asks to wait, as a number or a date; 0 if it does not."""
    value = answer.headers.get("retry-after", "") if answer.status in _WAITS else ""
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _message(body: bytes) -> str:
    """What the server says is wrong."""
    try:
        return str(orjson.loads(body)["error"])[:_SHOWN_CHARACTERS]
    except (ValueError, LookupError, TypeError):
        return body[:_SHOWN_CHARACTERS].decode(errors="replace") or "an answer without a body"


def _shown(error: Exception) -> str:
    return str(error) or type(error).__name__


def _strange(answer: _Answer, request_id: str) -> AnswerError:
    message = f"the answer must be of the protocol, got {_message(answer.body)!r}"
    return AnswerError(message, answer.status, request_id)
