"""Headers of requests: the token, and what a caller adds to one call."""

import re
import uuid
from collections.abc import Mapping

JSON = {"content-type": "application/json"}
REQUEST_ID = "x-request-id"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110
_ID = re.compile(r"[\x21-\x7e]{1,128}")  # another one the server replaces
_CLIENTS_OWN = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "inference-header-content-length",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def call_headers(given: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers that a caller adds to a call, their names in small letters, and a request id if they have none.

    Raises:
        ValueError: If one cannot be sent, or is the client's own.
    """
    headers = {REQUEST_ID: uuid.uuid4().hex}
    for name, value in (given or {}).items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"headers must have names of letters, digits and -, got {name!r}")
        own = name.lower()
        if own in _CLIENTS_OWN:
            raise ValueError(f"headers must be none that the client sets, got {name!r}. Leave it out")
        if not isinstance(value, str) or not value.isprintable() or value != value.strip():
            rule = "must be a text of one line without spaces around it"
            raise ValueError(f"headers[{name!r}] {rule}, got {value!r}")
        if own == REQUEST_ID and not _ID.fullmatch(value):
            raise ValueError(f"headers[{name!r}] must be 1 to 128 visible ASCII characters, got {value!r}")
        headers[own] = value
    return headers


def authorization(token: str | None) -> dict[str, str]:
    """Return the header that carries a token; none for no token.

    Raises:
        ValueError: If no header can carry it.
    """
    if not token:
        return {}
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("token must be of visible ASCII characters, got others. Check LEPTON_RAY_TOKEN")
    return {"authorization": f"Bearer {token}"}
