"""The page for people: a form of the model's columns, its answer, and the paths. It holds nothing of the model but asks for it.

So it is open without a token. Its policy lets it run the one script that it has, and talk to this server alone.
"""

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")
PATHS = frozenset(("", "/", "/docs"))
"""Where it stands; empty is the root of Ray Serve's route."""


@lru_cache(maxsize=1)
def read_page() -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """Return the page and its headers."""
    page = _FILE.read_bytes()
    hashes = {tag: _hash_of(page, tag) for tag in ("script", "style")}
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes['script']}",
            f"style-src {hashes['style']}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    return page, (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )


def _hash_of(page: bytes, tag: str) -> str:
    """Return the source expression of what stands in the one element ``tag``."""
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
