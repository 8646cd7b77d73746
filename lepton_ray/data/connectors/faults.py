"""What goes wrong outside: transient faults are tried again, the rest becomes an error without secrets in it."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

from lepton_ray.core import settings
from lepton_ray.core.text import without_credentials

T = TypeVar("T")
MAX_TRIES = 5
FIRST_WAIT_S = 0.5  # doubled each time: 0.5, 1, 2, 4 s at most, half of it by chance
LONGEST_WAIT_S = 30.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP's statuses of faults that may pass


def waits_s(max_tries: int = MAX_TRIES) -> Iterator[float]:
    """Yield how long to wait before each further try; chance keeps many workers from coming back at once."""
    for tried in range(max_tries - 1):
        longest = min(FIRST_WAIT_S * 2**tried, LONGEST_WAIT_S)
        yield longest * (0.5 + random.random() / 2)  # noqa: S311  no secret depends on it


def persist(call: Callable[[], T], is_transient: Callable[[Exception], bool]) -> T:
    """Return ``call()``, tried again after transient faults; the last fault is raised."""
    for wait_s in waits_s():
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(wait_s)
    return call()


def describe(error: BaseException, *templates: str) -> str:
    """Return the first line of an error, for a message.

    Args:
        error: Of any library.
        templates: Texts of the spec; what their ``${NAME}`` stand for is taken out of the message.
    """
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    for template in templates:
        for name in settings.references(template):
            if secret := settings.expand(f"${{{name}}}"):
                for written in (secret, quote(secret), quote(secret, safe="")):  # as it may stand in an address
                    text = text.replace(written, f"${{{name}}}")
    return without_credentials(text)


def expand_all(value: Any) -> Any:
    """Return options with each ``${NAME}`` replaced by the environment's value: use them at once."""
    if isinstance(value, str):
        return settings.expand(value)
    if isinstance(value, dict):
        return {key: expand_all(inner) for key, inner in value.items()}
    return [expand_all(inner) for inner in value] if isinstance(value, list | tuple) else value


def texts_in(value: Any) -> list[str]:
    """Return all texts within options, for ``describe``."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for item in inner for text in texts_in(item)]
