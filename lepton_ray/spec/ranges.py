"""Ranges of numbers and times: what a column and the comparisons with constants leave of them."""

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from lepton_ray.spec.data import Column, NumberColumn, TimeColumn, parse_iso
from lepton_ray.spec.row_rules import Comparison


@dataclass(frozen=True)
class Range:
    """Numbers or times from ``low`` to ``high``, None without a bound, without the open ends.

    The ends of a range of whole numbers are whole and never open.
    """

    low: Any = None
    high: Any = None
    is_low_open: bool = False
    is_high_open: bool = False
    is_whole: bool = False

    @property
    def may_hold(self) -> bool:
        """Whether a value lies in the range."""
        if self.low is None or self.high is None:
            return True
        return bool(self.low < self.high or (self.low == self.high and not (self.is_low_open or self.is_high_open)))

    def is_above(self, other: "Range", or_equal: bool) -> bool:
        """Whether every value of this range is greater than every value of the other."""
        if self.low is None or other.high is None:
            return False
        return bool(self.low > other.high or (or_equal and self.low == other.high))

    def at_most(self, value: Any, is_open: bool) -> "Range":
        """Return the range below a value."""
        if self.is_whole:
            value, is_open = (math.ceil(value) - 1 if is_open else math.floor(value)), False
        if self.high is None or value < self.high or (value == self.high and is_open):
            return replace(self, high=value, is_high_open=is_open)
        return self

    def at_least(self, value: Any, is_open: bool) -> "Range":
        """Return the range above a value."""
        if self.is_whole:
            value, is_open = (math.floor(value) + 1 if is_open else math.ceil(value)), False
        if self.low is None or value > self.low or (value == self.low and is_open):
            return replace(self, low=value, is_low_open=is_open)
        return self


def range_of(column: Column) -> Range:
    """Return the values that a number or time column allows."""
    if isinstance(column, NumberColumn):
        values = Range(is_whole=column.whole)
        values = values if column.min is None else values.at_least(column.min, is_open=False)
        return values if column.max is None else values.at_most(column.max, is_open=False)
    if isinstance(column, TimeColumn):
        low, high = (parse_iso(text) if text else None for text in (column.min, column.max))
        return Range(low, high)
    return Range()


def narrow(within: Range, comparison: Comparison) -> Range:
    """Return the part of a range in which a comparison with constants can hold (``in``: from the least to the greatest)."""
    values: list[Any] = [_ordered_constant(value) for value in comparison.constants]
    if comparison.operator in ("==", "in"):
        held = [value for value in values if within.at_least(value, False).at_most(value, False).may_hold]
        if not held:
            return within.at_least(values[0], True).at_most(values[0], True)  # nothing lies in it
        return within.at_least(min(held), False).at_most(max(held), False)
    if comparison.operator in ("<", "<="):
        return within.at_most(values[0], comparison.operator == "<")
    if comparison.operator in (">", ">="):
        return within.at_least(values[0], comparison.operator == ">")
    is_single = within.low is not None and within.low == within.high and within.low in values
    return within.at_least(within.low, True) if is_single else within


def _ordered_constant(value: float | str) -> float | datetime | None:
    return parse_iso(value) if isinstance(value, str) else value


def range_words(name: str, column: Column) -> str:
    """Return a number or time column's range in words."""
    ends = ("anything" if end is None else f"{end:.15g}" if isinstance(end, float) else end for end in _ends(column))
    return f"{name} is {'whole, ' if getattr(column, 'whole', False) else ''}from {' to '.join(ends)}"


def _ends(column: Column) -> tuple[float | str | None, float | str | None]:
    return getattr(column, "min", None), getattr(column, "max", None)
