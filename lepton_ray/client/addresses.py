"""Addresses of endpoints, and whom to trust there."""

import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit


def trusting(ca_file: str | Path) -> ssl.SSLContext:
    """Return what trusts the certificates of a file alone.

    Raises:
        ValueError: If it has none.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # ssl.SSLError too
        raise ValueError(f"ca_file must be a file of certificates in PEM, got {str(ca_file)!r} ({error})") from error


def checked_urls(urls: str | Sequence[str]) -> list[str]:
    """Return base addresses without a slash at their end.

    Raises:
        ValueError: If one is none, or holds what belongs elsewhere.
    """
    return [_checked(url) for url in ([urls] if isinstance(urls, str) else urls)]


def _checked(url: str) -> str:
    shown = "one with credentials" if "@" in url else repr(url)
    rule = f"urls must be http://HOST:PORT or https://HOST:PORT, got {shown}"
    try:
        at = urlsplit(url)
        is_whole = at.scheme in ("http", "https") and at.port != 0 and url.split() == [url]
        host = (at.hostname or "").encode("idna")
    except ValueError:  # a port or a name that is none; it may repeat a part of a password
        raise ValueError(rule) from None
    if not is_whole or not host:
        raise ValueError(rule)
    if at.username is not None or at.query or at.fragment:
        raise ValueError(f"urls must have no credentials, query or fragment, got one at {at.hostname}. Give a token")
    return url.rstrip("/")
