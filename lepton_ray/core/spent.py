"""What a run has taken of time and money, and the question that long work asks of its budget."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """By a stage, or by a run."""

    seconds: float
    usd: float | None
    """None where nobody said what the machines cost."""

    def to_json(self) -> dict[str, float | None]:
        """For programs."""
        return {"seconds": round(self.seconds, 3), "usd": None if self.usd is None else round(self.usd, 6)}


def together(parts: Iterable[Spent]) -> Spent:
    """Return the sum; what nobody priced counts for nothing in it."""
    each = list(parts)
    known = [one.usd for one in each if one.usd is not None]
    return Spent(sum(one.seconds for one in each), sum(known) if known else None)


def within_budget() -> str:
    """Say that there is no budget: what answers the question where none was set."""
    return ""
