"""The ledger: rows in = rows kept + rows removed, by reason. It holds for every stage or the run stops."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from lepton_ray.core.errors import DataError

REASONS = {
    "wrong_header": "the file's header lacks columns or repeats one",
    "ragged_row": "another number of cells than the header",
    "malformed_quotes": "a quote that is never closed",
    "invalid_utf8": "bytes that are not UTF-8",
    "invalid_json": "a line that is no JSON object",
    "unreadable_image": "a file that is no image, or one of another size",
    "type_error": "a value of the wrong type",
    "out_of_range": "a number outside min and max",
    "not_allowed": "a category that is not allowed",
    "pattern_mismatch": "a text of another form than the pattern",
    "wrong_length": "a text or a series that is too short or too long",
    "missing_required": "a required value is missing",
    "missing_label": "the label is missing",
    "too_many_missing": "too many missing values",
    "rule_broken": "a rule across columns",
    "foreign_key": "a key that is not in the reference",
    "not_unique": "another row has the same key",
    "duplicate": "the same as an earlier row",
    "near_duplicate": "a text nearly the same as another row's",
    "too_short": "too few rows before it for its window",
    "outlier": "far outside the other training rows",
}
"""Why a row can be removed."""


class Ledger(BaseModel):
    """Counts of rows."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", strict=True)

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
