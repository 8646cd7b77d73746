"""Values as messages show them."""

from typing import Any

_MAX_LENGTH = 80


def show(value: Any) -> str:
    """Return ``repr`` of a value, cut to 80 characters: an answer stays small however large its cause."""
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."
