"""JSON of other servers' HTTP APIs."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 1 << 20


def get_json(url: str) -> "dict[str, Any] | str":
    """Return the JSON that a URL answers with, or what went wrong, without a password that the URL holds."""
    if not url.startswith(("http://", "https://")):
        return "must be an http or https URL"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310  its scheme is checked
            content: dict[str, Any] = json.loads(response.read(_MAX_ANSWER_BYTES))
            return content
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except http.client.InvalidURL:  # its text may hold the password
        return "must be a URL with a port that is a number, and without spaces or a password"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return (str(getattr(error, "reason", error)).splitlines() or [type(error).__name__])[0]
