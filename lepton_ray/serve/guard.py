"""Who may ask, and how often: decided before a body is read, for both ways in alike.

Everything but health and the page needs a token if there is a token file, and counts for the limits. A guard belongs to one event loop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.status import HTTP_FORBIDDEN, HTTP_TOO_MANY, HTTP_UNAUTHORIZED
from lepton_ray.core.web import is_loopback
from lepton_ray.serve.rate.ledger import Purse, Rate
from lepton_ray.serve.tokens import MAX_FILE_BYTES, Caller, Scope, Token, TokenTable, parse_tokens
from lepton_ray.serve.watch import Watched
from lepton_ray.spec.release import AuthSpec, RateLimitSpec

_CHALLENGE = 'Bearer realm="lepton_ray"'
ALL_CALLERS = ""
"""Name of the limit of all callers together; the others have the ids of tokens."""
ANYBODY = Caller("", frozenset(("predict", "metadata")))

ResponseHeaders = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a caller is not let in."""

    code: int
    message: str
    headers: ResponseHeaders


@dataclass
class Guard:
    """The tokens and limits of one replica."""

    limit: RateLimitSpec | None = None
    limit_per_token: RateLimitSpec | None = None
    table: TokenTable | None = None
    """None lets everybody in."""
    purses: dict[str, Purse] = field(default_factory=dict)
    """By the id of a token, or ``ALL_CALLERS``."""
    is_short: bool = False
    """A purse was empty since this was last set to False."""

    def __post_init__(self) -> None:
        if self.limit is not None:
            self.purses[ALL_CALLERS] = Purse(_rate(self.limit))

    def use(self, tokens: list[Token]) -> None:
        """Take these tokens from now on; the purses of those that stay as they are stay too."""
        self.table = TokenTable(tokens)
        limits = {ALL_CALLERS: self.limit}
        limits |= {caller.id: caller.rate_limit or self.limit_per_token for caller in self.table.callers}
        rates = {name: _rate(limit) for name, limit in limits.items() if limit is not None}
        old = self.purses
        self.purses = {
            name: old[name] if name in old and old[name].rate == rate else Purse(rate) for name, rate in rates.items()
        }

    def identify(self, digest: bytes | None) -> Caller | Denial:
        """Return whose token it is that ``tokens.digest_of`` has given."""
        if self.table is None:
            return ANYBODY
        caller = self.table.find(digest) if digest else None
        if caller is not None:
            return caller
        challenge = _CHALLENGE if digest is None else f'{_CHALLENGE}, error="invalid_token"'
        message = "authorization must be given once, as 'Bearer TOKEN', with a token that is known and has not expired"
        return Denial(HTTP_UNAUTHORIZED, message, ((b"www-authenticate", challenge.encode()),))

    def admit(self, caller: Caller, scope: Scope | None) -> Denial | None:
        """Return why a caller may not have what needs ``scope``, or None; what is admitted counts for the limits."""
        if scope is not None and scope not in caller.scopes:
            challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'
            message = f"the token must have the scope {scope!r}, got {', '.join(sorted(caller.scopes))}"
            return Denial(HTTP_FORBIDDEN, message, ((b"www-authenticate", challenge.encode()),))
        if not self.purses:
            return None
        own, common = self.purses.get(caller.id) if caller.id else None, self.purses.get(ALL_CALLERS)
        if own is not None and not own.take():
            return self._refuse(own, "with this token")
        if common is not None and not common.take():
            if own is not None:
                own.put_back()
            return self._refuse(common, "from all callers")
        return None

    def _refuse(self, purse: Purse, whose: str) -> Denial:
        self.is_short = True
        message = f"at most {purse.rate.per_s:g} requests a second may come {whose}. Send it again later"
        return Denial(HTTP_TOO_MANY, message, ((b"retry-after", str(purse.retry_after_s).encode()),))


def build_guard(
    auth: AuthSpec | None, limit: RateLimitSpec | None, on_failure: Callable[[str], None]
) -> tuple[Guard | None, Watched | None]:
    """Return the guard of a replica, None if there is nothing to guard, and what follows its token file, if there is one.

    Raises:
        ArtifactError: If the token file cannot be read.
        SpecError: If it is none.
    """
    if auth is None:
        return (None if limit is None else Guard(limit)), None
    guard = Guard(limit, auth.rate_limit_per_token)
    uri = auth.tokens_file

    def read() -> bytes:
        filesystem, path = open_filesystem(uri)
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read(MAX_FILE_BYTES + 1))

    try:
        return guard, Watched("token file", read, lambda content: guard.use(parse_tokens(content, uri)), on_failure)
    except OSError as error:
        raise ArtifactError(
            f"serve.auth.tokens_file must be a file that each replica can read, got {uri!r}: {error}. "
            "Make one with lepton-ray token create"
        ) from error


def _rate(limit: RateLimitSpec) -> Rate:
    return Rate(limit.requests_per_second, limit.burst or max(1, math.ceil(limit.requests_per_second)))


def warn_of_openness(host: str) -> str:
    """Return what to say of a host that answers everybody; empty if only this machine reaches it."""
    if is_loopback(host):
        return ""
    return f"everybody who can reach {host or 'this machine'} is answered; serve.auth asks for a token"
