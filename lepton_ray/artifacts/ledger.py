"""The ledger: rows in = rows kept + rows removed, by reason. It holds for every stage or the run stops."""

from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from lepton_ray.core.errors import DataError
from lepton_ray.core.frozen import Frozen
from lepton_ray.spec.clean import REASONS


class Ledger(Frozen):
    """Counts of rows."""

    rows_in: int
    rows_kept: int
    removed: dict[str, int]

    @model_validator(mode="after")
    def _check_equation(self) -> Self:
        total = self.rows_kept + sum(self.removed.values())
        if self.rows_in != total:
            raise DataError(
                f"rows in must equal rows kept + rows removed, got {self.rows_in} and {total}. Report this as a bug"
            )
        return self

    @classmethod
    def of(cls, rows_in: int, removed: Mapping[str, int]) -> Self:
        """Count what was removed against what came in; a reason that is none of ``REASONS`` breaks the equation."""
        nonzero = {reason: removed[reason] for reason in REASONS if removed.get(reason)}
        return cls(rows_in=rows_in, rows_kept=rows_in - sum(removed.values()), removed=nonzero)

    def then(self, later: "Ledger") -> "Ledger":
        """Join with the ledger of a stage that took in what this one kept."""
        if later.rows_in != self.rows_kept:
            raise DataError(f"a stage must take in what the one before kept ({self.rows_kept}), got {later.rows_in}")
        removed = {reason: self.removed.get(reason, 0) + later.removed.get(reason, 0) for reason in REASONS}
        return Ledger.of(self.rows_in, removed)

    def __str__(self) -> str:
        """One line: 569 rows in, 560 kept, 9 removed (duplicate 9)."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.removed.items())
        return f"{self.rows_in} rows in, {self.rows_kept} kept, {self.rows_in - self.rows_kept} removed" + (
            f" ({reasons})" if reasons else ""
        )
