"""The front of a replica: what both ways in ask, whichever package answers.

With one package its ``find`` and ``submit`` are that package's own, so a rollout costs nothing while there is none.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from lepton_ray.core.status import HTTP_OK, HTTP_UNSUPPORTED
from lepton_ray.serve.batching import Batcher, Done
from lepton_ray.serve.bodies import Read, reader_of
from lepton_ray.serve.endpoint import JOB_KEY_HEADER, RAW_HEADER, Asked, Call, Endpoint, Limits, Response, parse_length
from lepton_ray.serve.guard import Denial, Guard, ResponseHeaders
from lepton_ray.serve.jobs.desk import Desk
from lepton_ray.serve.page import PATHS as PAGE_PATHS
from lepton_ray.serve.shelf import Shelf
from lepton_ray.serve.tokens import digest_of

_OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready")) | PAGE_PATHS
"""Answered without a token: who asks for health often cannot have one, and the page, which tells nothing, asks for one."""


@dataclass(frozen=True, slots=True)
class Headers:
    """What the headers of a request say of its caller, body and answer: read once where a client sends the same again and again."""

    given: Mapping[bytes, bytes]
    """By their names in lower case; ``authorization`` is empty if it came more than once."""
    digest: bytes | None
    """Of the token, by ``tokens.digest_of``."""
    coding: bytes | None
    """How the body is packed; None if it is not."""
    json_bytes: int | None
    read: Read | None
    accept: bytes | None
    """These three as ``Call`` has them."""

    @classmethod
    def of(cls, given: Mapping[bytes, bytes]) -> Self:
        """Read headers."""
        coding, length = given.get(b"content-encoding", b"identity"), given.get(RAW_HEADER)
        return cls(
            given,
            digest_of(given.get(b"authorization")),
            None if coding.lower() == b"identity" else coding,
            None if length is None else parse_length(length),
            reader_of(given.get(b"content-type", b"")),
            given.get(b"accept"),
        )


@dataclass(frozen=True)
class Variant:
    """A package that answers, and the queues of its calls."""

    endpoint: Endpoint
    batcher: Batcher

    @property
    def version(self) -> str:
        """Of the package."""
        return self.endpoint.version


class Division(Protocol):
    """What stands before two variants while both are there."""

    key_header: bytes | None
    """The header that names the caller; None if nobody needs to know."""

    def find(self, method: str, path: str) -> Response | Asked:
        """Return what a request asks for, or its response."""

    def submit(self, call: Call, done: Done) -> None:
        """Have a call answered: ``done`` is called in the event loop, now or later, once."""

    def read_key(self, call: Call) -> Response | None:
        """Have a call say its caller, if its body does; returns what refuses it."""


class Front:
    """Belongs to the event loop. Calls that have been submitted are answered by the model that they were given."""

    find: Callable[[str, str], Response | Asked]
    submit: Callable[[Call, Done], None]
    read_key: Callable[[Call], Response | None]
    key_header: bytes | None
    limits: Limits
    champion: Endpoint

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard
        self.num_streams = 0
        """Answers in events that are under way."""
        self.shelf: Shelf | None = None
        """Further models, from the next ``switch`` on."""
        self.desk: Desk | None = None
        """Takes jobs, from the next ``switch`` on."""

    @classmethod
    def of(cls, variant: Variant, guard: Guard | None = None) -> "Front":
        """Return the front of one package."""
        front = cls(guard)
        front.switch(variant, None)
        return front

    def switch(self, champion: Variant, division: Division | None) -> None:
        """Let what comes from now on be answered by a champion, or as a division has it."""
        self.champion = champion.endpoint
        self.limits = champion.endpoint.limits
        if division is None:
            self.find, self.submit, self.key_header = champion.endpoint.find, champion.batcher.submit, None
            self.read_key = lambda call: None
        else:
            self.find, self.submit, self.key_header = division.find, division.submit, division.key_header
            self.read_key = division.read_key
        if self.shelf is not None:
            self.find, self.submit = self.shelf.behind(self.find, self.submit)
        if self.desk is not None:
            self.submit = self.desk.behind(self.submit)

    def admit(self, method: str, path: str, digest: bytes | None) -> tuple[Response | Asked, str]:
        """Return what ``find`` does if the guard lets the caller in, else the refusal, and the id of the caller's token, if any.

        Args:
            method: Of the request.
            path: Decoded.
            digest: Of the caller's token, by ``tokens.digest_of``.
        """
        guard = self._guard
        if guard is None or path in _OPEN_PATHS:
            return self.find(method, path), ""
        caller = guard.identify(digest)
        found = self.find(method, path)
        if isinstance(caller, Denial):
            return self._deny(found, caller), ""
        if isinstance(found, Response):
            denial = guard.admit(caller, "metadata" if found.code == HTTP_OK else None)
        else:
            denial = guard.admit(caller, "predict")
        return found if denial is None else self._deny(found, denial), caller.id

    def call_of(self, asked: Asked, headers: Headers, caller: str, make_key: Callable[[], bytes]) -> Call | Response:
        """Return the call that a head asks for, without its body, or what refuses it.

        Args:
            asked: What ``admit`` has found.
            headers: Of the same head.
            caller: Id of its token.
            make_key: Gives the name of a caller that gives none, where one is needed.
        """
        if headers.coding is not None:
            return self._refuse_encoded(asked, headers.coding)
        call = Call(asked.protocol_name, b"", headers.json_bytes)
        call.version, call.model, call.read, call.accept = asked.version, asked.model, headers.read, headers.accept
        if self.key_header is not None:
            call.key = headers.given.get(self.key_header) or make_key()
        if asked.job is not None:
            call.job, call.key = asked.job._replace(caller=caller), headers.given.get(JOB_KEY_HEADER)
        return call

    def _refuse_encoded(self, asked: Asked, coding: bytes) -> Response:
        """Return and count the response to a body that is packed: a small one can be as large as any when it is unpacked."""
        message = f"the body must come without content-encoding, got {coding[:40].decode('latin-1')}. Send it as it is"
        call = Call(asked.protocol_name, model=asked.model)
        return self.refuse(call, HTTP_UNSUPPORTED, message, ((b"accept-encoding", b"identity"),))

    def _deny(self, found: Response | Asked, denial: Denial) -> Response:
        call = None if isinstance(found, Response) else Call(found.protocol_name, model=found.model)
        return self.refuse(call, denial.code, denial.message, denial.headers)

    def endpoint_of(self, call: Call) -> Endpoint:
        """Return what reads the body of a call: the champion, or the further model that is asked for."""
        return self.shelf.endpoint(call.model) if self.shelf is not None and call.model else self.champion

    async def answer(self, call: Call) -> Response:
        """Return the response to a call."""
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def answer(response: Response) -> None:
            if not future.done():  # the caller may have gone
                future.set_result(response)

        self.submit(call, answer)
        return await future

    def refuse(self, call: Call | None, code: int, message: str, headers: ResponseHeaders = ()) -> Response:
        """Return the response to what comes to nothing; counted, for the model that is asked for, if it was a call."""
        return self._asked(call).refuse(call, code, message, headers)

    def refuse_large(self, call: Call | None) -> Response:
        """Return and count the response to a body beyond the limit."""
        return self._asked(call).refuse_large(call)

    def _asked(self, call: Call | None) -> Endpoint:
        return self.champion if call is None else self.endpoint_of(call)
