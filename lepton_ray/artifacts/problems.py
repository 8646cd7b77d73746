"""What is wrong with a request: named by row, field, rule and value, and never more than an answer should carry."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.rules import Breach
from lepton_ray.core.errors import RecordError
from lepton_ray.core.text import show

_MAX_PROBLEMS = 20  # an answer must stay small, however large and wrong the request


class Problems:
    """What is wrong with a request, up to a limit."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Note a problem.

        Raises:
            RecordError: If there are many by now.
        """
        self._texts.append(text)
        if len(self._texts) >= _MAX_PROBLEMS:
            self.raise_any()

    def add_value(self, row: int, name: str, rule: str, value: Any) -> None:
        """Note a value that breaks a rule."""
        self.add(f"records[{row}].{name} {rule}, got {show_value(value)}")

    def add_breaches(self, name: str, breaches: Iterable[Breach], values_N: NDArray[Any]) -> None:
        """Note the values of a column that break its rules."""
        for breach in breaches:
            for row in np.flatnonzero(breach.rows).tolist():
                value = values_N[row]
                self.add_value(row, name, breach.rule, value.item() if isinstance(value, np.generic) else value)

    def raise_any(self) -> None:
        """Raise what was noted.

        Raises:
            RecordError: If there is a problem.
        """
        if self._texts:
            raise RecordError("; ".join(self._texts))


def show_value(value: Any) -> str:
    """Return a value as a message shows it."""
    return "nothing" if value is None or value == "" else show(value)
