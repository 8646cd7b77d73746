"""The rules of ``clean.rules``, on typed tables: which rows break one, and in which words.

All but ``unique``, which needs every row at once (``keys.key_batch``), are judged block by block.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lepton_ray.core.errors import DataError
from lepton_ray.core.imports import load_function
from lepton_ray.core.patterns import whole
from lepton_ray.core.text import show
from lepton_ray.data.block import decode
from lepton_ray.data.hashing import Words, to_words
from lepton_ray.data.keys import Mask, References, find_keys, has_key, key_hashes
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import parse_iso
from lepton_ray.spec.row_rules import (
    CompareRule,
    Comparison,
    ForeignKeyRule,
    FunctionRule,
    GivenRule,
    Rule,
    TotalRule,
    UniqueRule,
)

_ROUNDING = 4 * np.finfo(np.float64).eps  # of the size of what is added
_ARROW_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": pc.less,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    ">=": pc.greater_equal,
    ">": pc.greater,
}


@dataclass(frozen=True)
class RowBreach:
    """A rule that some rows break."""

    place: str
    """Where the spec has the rule: ``clean.rules.0``."""
    reason: str
    """The ledger's word."""
    rule: str
    """What must hold, in words, after the rule's name."""
    rows: Mask
    """Which rows of the table break it."""
    details: pa.Array
    """Rule and values of each row that breaks it, in order."""
    is_stop: bool
    """Whether the run must end: ``on_fail: stop``."""

    def error(self) -> DataError:
        """Return the error that ends the run."""
        return stop_error(self.place, len(self.details), self.details[0].as_py())


def stop_error(place: str, num_rows: int, first_detail: str) -> DataError:
    """Return the error for a rule with ``on_fail: stop`` that rows break."""
    return DataError(
        f"{place} must hold for every row (on_fail: stop), got {num_rows} rows that break it, such as: {first_detail}. "
        "Repair the source, or set on_fail: remove"
    )


def row_breaches(
    table: pa.Table, clean: CleanSpec, references: References | None = None, is_kept: Mask | None = None
) -> Iterator[RowBreach]:
    """Yield the rules that rows of a typed table break, in the order of the spec; each row breaks at most one.

    Args:
        table: The typed rows.
        clean: The section with the rules; those of kind ``unique`` look at all rows and are left out.
        references: From ``load_references``; foreign keys without an entry are left out.
        is_kept: Rows that nothing has removed yet, the only ones that are looked at; all by default.

    Raises:
        DataError: If a function fails, or returns anything but a truth value for each row.
        SpecError: If a function cannot be imported.
    """
    kept = np.ones(table.num_rows, bool) if is_kept is None else is_kept.copy()
    for index, rule in enumerate(clean.rules):
        if isinstance(rule, UniqueRule) or not kept.any():
            continue
        place = f"clean.rules.{index}"
        if isinstance(rule, FunctionRule):
            broken = _break_function(rule, place, table, kept)
        elif isinstance(rule, ForeignKeyRule):
            broken = _break_foreign_key(rule, table, (references or {}).get(index))
        else:
            broken = _break_row_rule(rule, table)
        broken &= kept
        kept &= ~broken
        if broken.any():
            yield _breach_of(rule, place, table, broken)


def _breach_of(rule: Rule, place: str, table: pa.Table, broken: Mask) -> RowBreach:
    details = describe(rule.sentence, table.filter(pa.array(broken)), rule.columns_read)
    reason = "foreign_key" if isinstance(rule, ForeignKeyRule) else "rule_broken"
    return RowBreach(place, reason, rule.sentence, broken, details, rule.on_fail == "stop")


def load_rule_functions(clean: CleanSpec) -> None:
    """Load the functions that rules name, so that a wrong name is found before a row is read.

    Raises:
        SpecError: If one cannot be imported.
    """
    for index, rule in enumerate(clean.rules):
        if isinstance(rule, FunctionRule):
            load_function(rule.function, f"clean.rules.{index}.function")


def _break_row_rule(rule: CompareRule | GivenRule | TotalRule, table: pa.Table) -> Mask:
    if isinstance(rule, CompareRule):
        broken = ~_to_mask(compare(rule, table), missing=rule.missing == "allow")
    elif isinstance(rule, GivenRule):
        low, high = rule.bounds
        count = np.sum([_to_mask(table.column(name).is_valid()) for name in rule.columns], axis=0)
        broken = (count < low) | (count > high)
    else:
        broken = _break_total(rule, table)
    applies = [_to_mask(compare(condition, table)) for condition in rule.conditions]
    return reduce(np.logical_and, applies, broken)


def compare(comparison: Comparison, table: pa.Table) -> pa.Array | pa.ChunkedArray:
    """Return for each row whether a comparison holds, null where a compared value is missing."""
    left = table.column(comparison.left)
    if comparison.operator in ("is_missing", "is_given"):
        return left.is_null() if comparison.operator == "is_missing" else left.is_valid()
    if comparison.right is not None:
        return _ARROW_COMPARISONS[comparison.operator](decode(left), decode(table.column(comparison.right)))
    if pa.types.is_dictionary(left.type):
        encoded = left.unify_dictionaries().combine_chunks()
        return _compare_with_constants(comparison, encoded.dictionary).take(encoded.indices)
    return _compare_with_constants(comparison, left)


def _compare_with_constants(comparison: Comparison, values: Any) -> Any:
    kind = values.type
    if comparison.operator == "matches":
        return pc.match_substring_regex(values, whole(str(comparison.value)))
    constants = [
        pa.scalar(parse_iso(value) if pa.types.is_timestamp(kind) and isinstance(value, str) else value, kind)
        for value in comparison.constants
    ]
    if comparison.values is None:
        return _ARROW_COMPARISONS[comparison.operator](values, constants[0])
    value_set = pa.array([constant.as_py() for constant in constants], kind)
    if pa.types.is_floating(kind):  # -0.0 and 0.0 are one value to every other operator
        values, value_set = pc.add(values, 0.0), pc.add(value_set, 0.0)
    is_in = pc.is_in(values, value_set=value_set)
    holds = is_in if comparison.operator == "in" else pc.invert(is_in)
    return pc.if_else(values.is_valid(), holds, pa.scalar(None, pa.bool_()))


def _break_total(rule: TotalRule, table: pa.Table) -> Mask:
    """Rows whose sum is off by more than the tolerance and what rounding can do; one that overflows is off."""
    total, *parts = (table.column(name).to_numpy() for name in (rule.total, *rule.columns))
    with np.errstate(over="ignore", invalid="ignore"):
        added = reduce(np.add, parts)
        slack = rule.tolerance + _ROUNDING * (reduce(np.add, map(np.abs, parts)) + np.abs(total))
        is_off = (np.abs(added - total) > slack) | np.isinf(added)
    is_missing = reduce(np.logical_or, (np.isnan(values) for values in (total, *parts)))
    broken: Mask = is_off & ~is_missing
    return broken


def _break_function(rule: FunctionRule, place: str, table: pa.Table, kept: Mask) -> Mask:
    function = load_function(rule.function, f"{place}.function")
    rows = table.select(rule.columns)
    rows = rows if kept.all() else rows.filter(pa.array(kept))
    rows = pa.table({name: decode(rows.column(name)) for name in rows.column_names})
    try:
        answer = function(rows)
    except Exception as error:
        raise DataError(
            f"{place}.function must not fail, got {type(error).__name__}: {show(str(error))} from {rule.function!r} for "
            f"{rows.num_rows} rows. Repair the function"
        ) from error
    broken = np.zeros(len(kept), bool)
    broken[kept] = ~_to_answers(answer, rule, place, rows.num_rows)
    return broken


def _break_foreign_key(rule: ForeignKeyRule, table: pa.Table, keys: Words | None) -> Mask:
    if keys is None:
        return np.zeros(table.num_rows, bool)
    return has_key(table, rule.columns) & ~find_keys(to_words(key_hashes(table, rule.columns)), keys)


def _to_answers(answer: Any, rule: FunctionRule, place: str, num_rows: int) -> Mask:
    """Return a function's answers as a mask, or say what is wrong with them."""
    need = f"{place}.function must return an array of true or false for each of {num_rows} rows"
    try:
        answers = answer if isinstance(answer, pa.Array | pa.ChunkedArray) else pa.array(answer)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
        raise DataError(f"{need}, got {show(answer)} from {rule.function!r}. Repair the function") from error
    if not pa.types.is_boolean(answers.type) or len(answers) != num_rows:
        raise DataError(
            f"{need}, got {len(answers)} of type {answers.type} from {rule.function!r}. Repair the function"
        )
    return _to_mask(answers, missing=True)


def _to_mask(values: pa.Array | pa.ChunkedArray, missing: bool = False) -> Mask:
    mask: Mask = pc.fill_null(values, missing).to_numpy(zero_copy_only=False)
    return mask if mask.flags.writeable else mask.copy()


def describe(rule: str | pa.Array, rows: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Return a rule in words (or one for each row) with the values: ``start must be <= end, got start = 5, end = 3``."""
    if not rows.num_rows:
        return pa.array([], pa.string())
    pieces: list[Any] = [pa.scalar(rule) if isinstance(rule, str) else rule, pa.scalar(", got ")]
    for index, name in enumerate(columns):
        pieces += [pa.scalar(f"{', ' if index else ''}{name} = "), _show_values(rows.column(name))]
    joined = pc.binary_join_element_wise(*pieces, "")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _show_values(column: pa.ChunkedArray) -> pa.Array:
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_list(kind):
        return pa.array(["(an image)" if pa.types.is_binary(kind) else "(a series)"] * len(column))
    encoded = decode(column).combine_chunks().dictionary_encode()
    return pc.fill_null(_show_distinct(encoded.dictionary).take(encoded.indices), "missing")


def _show_distinct(values: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(values.type):
        return values.cast(pa.string())  # Python's years end at 9999
    show_one = "{:.15g}".format if pa.types.is_floating(values.type) else show
    return pa.array(map(show_one, values.to_pylist()), pa.string())
