"""The rules a value has to keep, vectorised: one home for what cleaning quarantines and serving refuses.

Missing values are NaN among numbers (float64) and "" among categories (str objects).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_ray.spec.data import CategoryColumn, NumberColumn

_EXACT = 2.0**53  # floats below it hold every whole number


@dataclass(frozen=True)
class Breach:
    """A rule that some rows break; ``reason`` is the ledger's word, ``rows`` a mask."""

    reason: str
    rule: str
    rows: NDArray[np.bool_]


def number_breaches(column: NumberColumn, values_N: NDArray[np.float64]) -> Iterator[Breach]:
    """Yield the rules that numbers break, each with the rows that break it."""
    if column.required:
        yield from _any("missing_required", "must be given", np.isnan(values_N))
    yield from _any("type_error", "must be a finite number", np.isinf(values_N))
    if column.min is not None:
        yield from _any("out_of_range", f"must be at least {column.min:.15g}", values_N < column.min)
    if column.max is not None:
        yield from _any("out_of_range", f"must be at most {column.max:.15g}", values_N > column.max)


def category_breaches(column: CategoryColumn, values_N: NDArray[np.object_]) -> Iterator[Breach]:
    """Yield the rules that categories break, each with the rows that break it."""
    is_missing = values_N == ""
    if column.required:
        yield from _any("missing_required", "must be given", is_missing)
    if column.allowed is not None:
        allowed = frozenset(column.allowed)
        is_allowed = np.fromiter((value in allowed for value in values_N), bool, len(values_N))
        yield from _any("not_allowed", f"must be one of {', '.join(column.allowed)}", ~is_allowed & ~is_missing)


def category_text(value: float | bool) -> str:
    """Return the text of a number or truth value that stands where a category should; 2.0 and 2 are one category."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return repr(value)


def _any(reason: str, rule: str, rows: NDArray[np.bool_]) -> Iterator[Breach]:
    if rows.any():
        yield Breach(reason, rule, rows)
