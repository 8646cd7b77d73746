"""What is aimed at, beside what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One figure and its bound; one of the bounds is given."""

    what: str
    measured: float
    at_least: float = -math.inf
    at_most: float = math.inf

    @property
    def is_met(self) -> bool:
        """Whether it keeps its bounds; NaN keeps none."""
        return self.at_least <= self.measured <= self.at_most

    def row(self) -> str:
        """Return its row of a table."""
        bound = f"at least {self.at_least:g}" if self.at_least > -math.inf else f"at most {self.at_most:g}"
        return f"| {self.what} | {bound} | {self.measured:.3g} | {'yes' if self.is_met else 'NO'} |"


def table(targets: Sequence[Target]) -> list[str]:
    """Return the lines of a table."""
    return ["| target | bound | measured | met |", "|---|---|---|---|", *(target.row() for target in targets)]
