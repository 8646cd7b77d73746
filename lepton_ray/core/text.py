"""Values as messages show them."""

import math
import re
import reprlib
from typing import Any

_MAX_LENGTH = 80
_ONLY_NAMES = re.compile(r"(?:\$\{\w+\}:?)+")
_SMALL = 1e-3

_repr = reprlib.Repr()
_repr.maxlevel = 4
_repr.maxstring = _repr.maxother = _repr.maxlong = _MAX_LENGTH


def without_credentials(text: str) -> str:
    """Return a text with ``user:password@`` taken out of its URIs; a part that is the name of a variable, ``${NAME}``, may stay."""
    return re.sub(r"//([^/\s]*)@", lambda found: found[0] if _ONLY_NAMES.fullmatch(found[1]) else "//", text)


def show(value: Any) -> str:
    """Return ``repr`` of a value, cut to 80 characters: an answer stays small however large or deep its cause."""
    try:
        text = _repr.repr(value)
    except ValueError:  # Python writes integers of at most 4300 digits
        text = f"a large {type(value).__name__}"
    return cut(text)


def cut(text: str) -> str:
    """Return the first 80 characters of a text."""
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."


def show_metric(value: float) -> str:
    """Return a metric with four digits behind the point, or four in all where these would show nothing."""
    is_usual = value == 0 or not math.isfinite(value) or abs(value) >= _SMALL
    return f"{value:.4f}" if is_usual else f"{value:.4g}"
