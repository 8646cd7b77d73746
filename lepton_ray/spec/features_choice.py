"""Field types that the sections of ``features`` share: words beside sections."""

from collections.abc import Iterable
from typing import Any

from pydantic import Discriminator


def word_or_section(words: Iterable[str], rule: str, is_number_allowed: bool = False) -> Discriminator:
    """Tell a word, a number and sections apart, so that an error speaks of what was meant; see ``Tag``."""
    known = frozenset(words)

    def choose(value: Any) -> str | None:
        if isinstance(value, str):
            return "word" if value in known else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return "number" if is_number_allowed else None
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        return kind if isinstance(kind, str) and kind not in ("word", "number") else None

    return Discriminator(
        choose, custom_error_type="choice_value", custom_error_message=f"must be {rule}", custom_error_context={}
    )


def require_unique(name: str, values: tuple[Any, ...]) -> None:
    """Refuse a value that occurs twice."""
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{name} must hold each value once, got {repeated[0]!r} twice. Remove one")
