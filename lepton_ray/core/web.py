"""JSON of other servers' HTTP APIs."""

import email.utils
import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 1 << 20


def open_url(request: urllib.request.Request | str, timeout_s: float) -> Any:
    """Open an http URL; a near one past the proxy that the environment names, which would look for it elsewhere.

    Raises:
        OSError: If there is no answer, or one with a status above 299.
    """
    url = request if isinstance(request, str) else request.full_url
    handlers = [urllib.request.ProxyHandler({})] if _is_near(urlsplit(url).hostname or "") else []
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)


def _is_near(host: str) -> bool:
    """Whether a host is this machine, or an address of a private network (RFC 1918, RFC 4193)."""
    if is_loopback(host):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host, by its address or by a name that RFC 6761 keeps for it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def get_json(url: str) -> "dict[str, Any] | str":
    """Return the JSON that a URL answers with, or what went wrong, without a password that the URL holds."""
    if not url.startswith(("http://", "https://")):
        return "must be an http or https URL"
    try:
        with open_url(url, _TIMEOUT_S) as response:
            content: dict[str, Any] = json.loads(response.read(_MAX_ANSWER_BYTES))
            return content
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except http.client.InvalidURL:  # its text may hold the password
        return "must be a URL with a port that is a number, and without spaces or a password"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return (str(getattr(error, "reason", error)).splitlines() or [type(error).__name__])[0]


def retry_after_s(text: str) -> float | None:
    """Return how many seconds a ``Retry-After`` header asks to wait, by a number or by a time (RFC 9110); None if it says neither."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
