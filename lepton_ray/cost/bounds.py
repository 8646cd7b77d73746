"""A number of which only bounds are known."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """``low`` <= the number <= ``high``, none of them below 0."""

    low: float
    high: float | None
    """None where nothing bounds it."""

    @classmethod
    def exactly(cls, value: float) -> "Bounds":
        """A number that is known."""
        return cls(value, value)

    def __add__(self, other: "Bounds") -> "Bounds":
        """Bounds of the sum."""
        high = None if self.high is None or other.high is None else self.high + other.high
        return Bounds(self.low + other.low, high)

    def __mul__(self, other: "Bounds") -> "Bounds":
        """Bounds of the product."""
        high = None if self.high is None or other.high is None else self.high * other.high
        return Bounds(self.low * other.low, high)

    def times(self, low: float, high: float) -> "Bounds":
        """Bounds of the number times something between ``low`` and ``high``."""
        return self * Bounds(low, high)

    def at_most(self, limit: float) -> "Bounds":
        """Bounds of the smaller one of the number and ``limit``."""
        return Bounds(min(self.low, limit), limit if self.high is None else min(self.high, limit))

    def beyond(self, limit: float) -> "Bounds":
        """Bounds of what is above ``limit``."""
        return Bounds(max(0.0, self.low - limit), None if self.high is None else max(0.0, self.high - limit))

    def to_json(self) -> dict[str, float | None]:
        """For programs."""
        return {"low": self.low, "high": self.high}


def total(parts: Iterable[Bounds]) -> Bounds:
    """Return the bounds of a sum."""
    return sum(parts, Bounds.exactly(0.0))
