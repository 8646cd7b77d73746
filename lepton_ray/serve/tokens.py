"""Bearer tokens: a JSON file of their hashes, and the table that a replica looks a caller's token up in.

``{"tokens": [{"id": "mobile-app", "sha256": "...", "scopes": ["predict"], "expires": null, "rate_limit": null}]}``

A token is 32 random bytes, so plain SHA-256 is enough: salt and slow hashes protect what can be guessed, such as passwords, while 2**256
tokens cannot be tried. The token itself is shown once, when it is made, and is nowhere kept.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AwareDatetime, Field, Strict, ValidationError, model_validator

from lepton_ray.core.errors import SpecError
from lepton_ray.core.files import write_atomic
from lepton_ray.core.text import show
from lepton_ray.spec.base import Name, Section
from lepton_ray.spec.release import RateLimitSpec

Scope = Literal["predict", "metadata"]
"""``predict`` asks for predictions, ``metadata`` for what is served."""

_PREFIX = "lr_"  # by which scanners find a token that was committed or logged by mistake
_TOKEN_BYTES = 32
_MAX_CREDENTIALS = 256  # no token is longer; what is hashed for a stranger is bounded
MAX_FILE_BYTES = 8 << 20
_KEY_BYTES = 8
_RULES = {
    "id": "at most 63 lower-case letters, digits, - and _, and begin with a letter or digit",
    "scopes": " or ".join(get_args(Scope)),
}


class Token(Section):
    """What is kept of one token."""

    id: Name
    """Stands in logs and metrics in the token's place."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Strict(False), Field(min_length=1)]
    expires: AwareDatetime | None = None
    rate_limit: RateLimitSpec | None = None
    """None takes ``serve.auth.rate_limit_per_token``."""


class TokenFile(Section):
    """The file."""

    tokens: Annotated[tuple[Token, ...], Strict(False)] = ()

    @model_validator(mode="after")
    def _check_twins(self) -> Self:
        for field in ("id", "sha256"):
            values = [getattr(token, field) for token in self.tokens]
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise ValueError(f"each {field} must stand once, got {twice!r} again. Revoke one")
        return self


@dataclass(frozen=True)
class Caller:
    """Who asks; ``expires`` in seconds since 1970."""

    id: str
    scopes: frozenset[Scope]
    rate_limit: RateLimitSpec | None = None
    digest: bytes = b""
    expires: float = float("inf")


class TokenTable:
    """The callers of one state of the file."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.callers = [_caller(token) for token in tokens]
        self._by_key = {caller.digest[:_KEY_BYTES]: caller for caller in self.callers}

    def find(self, digest: bytes) -> Caller | None:
        """Return whose token it is that ``digest_of`` has given, None if nobody's or an expired one."""
        # found by a part of the hash, which is no secret; what follows decides
        caller = self._by_key.get(digest[:_KEY_BYTES])
        if caller is None or not hmac.compare_digest(caller.digest, digest) or caller.expires <= time.time():
            return None
        return caller


def digest_of(authorization: bytes | None) -> bytes | None:
    """Return the hash of the token in the value of the header ``authorization``; empty if it holds none, None without it."""
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(b" ")
    return hashlib.sha256(token).digest() if scheme.lower() == b"bearer" and len(token) <= _MAX_CREDENTIALS else b""


def _caller(token: Token) -> Caller:
    expires = float("inf") if token.expires is None else token.expires.timestamp()
    return Caller(token.id, frozenset(token.scopes), token.rate_limit, bytes.fromhex(token.sha256), expires)


def parse_tokens(content: bytes, place: str) -> list[Token]:
    """Return what the bytes of a token file hold.

    Raises:
        SpecError: If they are no token file; never with a value of it, which could be a token in the wrong place.
    """
    if len(content) > MAX_FILE_BYTES:
        raise SpecError([f"must have at most {MAX_FILE_BYTES} bytes, got {len(content)}. Is it the right file?"], place)
    try:
        return list(TokenFile.model_validate_json(content).tokens)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SpecError(problems, place) from None  # the cause would show the values


def read_tokens(path: Path) -> list[Token]:
    """Return the tokens of a file.

    Raises:
        SpecError: If it is no token file, or there is none.
    """
    if not path.exists():
        rule = f"--file must be a token file, got {str(path)!r}, which is not there"
        raise SpecError([f"{rule}. Name another, or make it: lepton-ray token create"], "the command")
    return parse_tokens(path.read_bytes(), str(path))


def create_token(
    path: Path, id: str, scopes: Sequence[Scope], expires: datetime | None, rate_limit: RateLimitSpec | None
) -> str:
    """Add a token to a file, which is made if it is not there, and return the token, which is kept nowhere.

    Raises:
        SpecError: If the file is none, or has the id, or the id is no name.
    """
    token = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    try:
        kept = Token(id=id, sha256=_sha256(token), scopes=tuple(scopes), expires=expires, rate_limit=rate_limit)
    except ValidationError as error:
        given = {"id": show(id), "scopes": show(list(scopes))}
        wrong = dict.fromkeys(str(one["loc"][0]) for one in error.errors(include_input=False))
        raise SpecError(
            [f"{name} must be {_RULES[name]}, got {given[name]}. Choose another" for name in wrong], "the token"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        tokens = read_tokens(path) if path.exists() else []
        if any(one.id == id for one in tokens):
            raise SpecError(
                [f"{id!r} must be a new id, got one that {path} has. Choose another, or revoke that one first"],
                "the command",
            )
        _write(path, [*tokens, kept])
    return token


def revoke_token(path: Path, id: str) -> None:
    """Take a token out of a file.

    Raises:
        SpecError: If it is not there.
    """
    read_tokens(path)  # says so where there is none: a folder that is not there cannot be locked
    with _locked(path.parent):
        tokens = read_tokens(path)
        rest = [token for token in tokens if token.id != id]
        if len(rest) == len(tokens):
            raise SpecError([f"{id!r} must be one of {', '.join(t.id for t in tokens) or 'no ids'}"], str(path))
        _write(path, rest)


def is_expired(token: Token) -> bool:
    """Whether its time is over."""
    return token.expires is not None and token.expires <= datetime.now(UTC)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _write(path: Path, tokens: Sequence[Token]) -> None:
    """Write a file anew, as readable as it was."""
    mode = path.stat().st_mode if path.exists() else None
    content = {"tokens": [token.model_dump(mode="json") for token in tokens]}
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    if mode is not None:
        path.chmod(mode)  # who could read it still can


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Of two that change a file of a folder at once none loses the other's change."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
