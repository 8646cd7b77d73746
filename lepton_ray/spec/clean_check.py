"""What can be known of section ``clean`` before a row is read: columns that do not exist, rules that can never hold."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lepton_ray.core.patterns import match_whole
from lepton_ray.spec.clean import REASONS, CleanSpec, WindowSpec
from lepton_ray.spec.data import CategoryColumn, DataSpec, IgnoredColumn, parse_iso
from lepton_ray.spec.ranges import Range, narrow, range_of, range_words
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

_TEXTUAL = ("category", "text", "ignored")
_ORDERED = ("number", "time")
_KEYS = (*_ORDERED, *_TEXTUAL)
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_ORDERINGS = {"<": "<", "<=": "<=", ">": ">", ">=": "=>", "==": "=", "!=": "<>"}  # signs of left - right that satisfy
_NO_VALUE = "No value can satisfy it"


def check_clean(clean: CleanSpec, data: DataSpec) -> list[str]:
    """Return every problem of the section that the spec alone shows, each with place, rule, value and next action."""
    problems = [*_check_duplicates(clean, data), *_check_outliers(clean, data), *_check_label_settings(clean, data)]
    together = _Together(data)
    for index, rule in enumerate(clean.rules):
        place = f"clean.rules.{index}"
        wrong = list(_check_rule_columns(rule, place, data))
        problems += wrong or [*_check_rule(rule, place, data), *together.add(rule, place)]
    return problems


def check_windows(windows: Mapping[str, WindowSpec], data: DataSpec) -> list[str]:
    """Return every problem of the windows that the spec alone shows."""
    problems = []
    for name, window in windows.items():
        here = f"data.windows.{name}"
        if name in data.columns:
            problems.append(f"{here} must have a name of its own, got that of a column. Rename the window")
        if name == data.label and window.short != "remove":
            problems.append(f"{here}.short must be 'remove' for the label, got {window.short!r}. Remove it")
        if name != data.label and window.horizon < 0:
            problems.append(
                f"{here}.horizon must be at least 0 for a feature, got {window.horizon}: it would look into the future. "
                "Raise it, or make the window the label"
            )
        if name != data.label and window.value == data.label and window.horizon == 0:
            problems.append(
                f"{here}.horizon must be at least 1 for a window of the label, got 0: it would end with the label itself. Raise it"
            )
        if name == data.label and -window.length < window.horizon <= 0:
            problems.append(
                f"{here}.horizon must be at most {-window.length} for the label (-length), got {window.horizon}: it would hold the row's "
                f"own {window.value}, which is a feature. Lower it"
            )
        problems += _check_columns(f"{here}.value", [window.value], data, ("number",))
        problems += _check_columns(f"{here}.time", [window.time], data, _ORDERED)
        problems += _check_columns(f"{here}.entity", window.entity, data, _KEYS)
    return problems


def _check_columns(place: str, names: Iterable[str], data: DataSpec, kinds: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name not in data.columns:
            close = difflib.get_close_matches(name, data.columns, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(data.columns)}."
            yield f"{place} must name a column of data.columns, got {name!r}. {hint}"
        elif (kind := data.columns[name].kind) not in kinds:
            choice = " or ".join(repr(kind) for kind in kinds)
            yield f"{place} must name a column of kind {choice}, got {name!r} of kind {kind!r}. Name another column."


def _check_duplicates(clean: CleanSpec, data: DataSpec) -> Iterator[str]:
    if clean.duplicates is not None:
        place = "clean.duplicates"
        yield from _check_columns(f"{place}.columns", clean.duplicates.columns, data, _KEYS)
        yield from _check_columns(f"{place}.by", _given(clean.duplicates.by), data, _ORDERED)
    if clean.near_duplicates is not None:
        yield from _check_columns("clean.near_duplicates.columns", clean.near_duplicates.columns, data, _TEXTUAL)


def _check_outliers(clean: CleanSpec, data: DataSpec) -> Iterator[str]:
    for index, rule in enumerate(clean.outlier_rules):
        place = f"clean.outliers.{index}" if isinstance(clean.outliers, tuple) else "clean.outliers"
        yield from _check_columns(f"{place}.columns", rule.columns, data, ("number",))
        yield from _check_columns(f"{place}.per", _given(rule.per), data, ("category",))
        if not rule.columns and not any(column.kind == "number" for column in data.features.values()):
            yield f"{place} must have number columns to look at, got none among the features. Remove {place}."


def _check_label_settings(clean: CleanSpec, data: DataSpec) -> Iterator[str]:
    for reason in clean.max_removed:
        if reason not in REASONS:
            yield f"clean.max_removed must name reasons out of {', '.join(REASONS)}, got {reason!r}. Change it."
    normal = data.anomalies.normal_class if data.anomalies else None
    if data.label is not None:
        if normal is not None and (found := why_never(data.label, normal, data)):
            place = "data.anomalies.normal_class"
            yield f"{place} must be a value that {data.label} can have, got {normal!r} ({found}). Change one of them."
        return
    settings = {
        "clean.min_rows_per_class": "min_rows_per_class" in clean.model_fields_set,
        "clean.checks.leakage": clean.checks.leakage and "leakage" in clean.checks.model_fields_set,
        "clean.checks.imbalance": clean.checks.imbalance and "imbalance" in clean.checks.model_fields_set,
    }
    for place, is_set in settings.items():
        if is_set:
            yield f"{place} must be left out without a label, got it with data.label: null. Remove it, or name a label."


def _given(name: str | None) -> list[str]:
    return [] if name is None else [name]


def _check_rule_columns(rule: Rule, place: str, data: DataSpec) -> Iterator[str]:
    if isinstance(rule, CompareRule):
        yield from _check_comparison_columns(rule, place, data)
    elif isinstance(rule, UniqueRule | ForeignKeyRule):
        yield from _check_columns(f"{place}.columns", rule.columns, data, _KEYS)
    elif isinstance(rule, TotalRule):
        yield from _check_columns(f"{place}.columns", rule.columns, data, ("number",))
        yield from _check_columns(f"{place}.total", [rule.total], data, ("number",))
    else:
        kinds = (*_KEYS, "series") if isinstance(rule, GivenRule) else (*_KEYS, "series", "image")
        yield from _check_columns(f"{place}.columns", rule.columns, data, kinds)
    if isinstance(rule, UniqueRule):
        yield from _check_columns(f"{place}.by", _given(rule.by), data, _ORDERED)
    if isinstance(rule, CompareRule | GivenRule | TotalRule):
        for condition in rule.conditions:
            yield from _check_comparison_columns(condition, f"{place}.when", data)


def _check_comparison_columns(comparison: Comparison, place: str, data: DataSpec) -> Iterator[str]:
    """Check the columns' kinds against the operator, and the operands' kinds against the left column's."""
    if comparison.operator in ("is_missing", "is_given"):
        yield from _check_columns(f"{place}.left", [comparison.left], data, (*_KEYS, "series"))
        return
    kinds: Sequence[str] = _KEYS
    if comparison.operator in ("<", "<=", ">", ">="):
        kinds = _ORDERED
    elif comparison.operator == "matches":
        kinds = _TEXTUAL
    wrong = list(_check_columns(f"{place}.left", [comparison.left], data, kinds))
    if wrong:
        yield from wrong
        return
    kind = data.columns[comparison.left].kind
    yield from _check_columns(
        f"{place}.right", _given(comparison.right), data, _TEXTUAL if kind in _TEXTUAL else (kind,)
    )
    for value in comparison.constants:
        yield from _check_constant(value, kind, place, comparison)


def _check_constant(value: float | str, kind: str, place: str, comparison: Comparison) -> Iterator[str]:
    field = "value" if comparison.values is None else "values"
    subject = f"{place}.{field} must be"
    tail = f"for column {comparison.left!r} of kind {kind!r}, got {value!r}"
    if kind == "number" and isinstance(value, str):
        yield f"{subject} a number {tail}. Write it without quotes."
    elif kind == "time" and (isinstance(value, float) or parse_iso(value) is None):
        yield f"{subject} an ISO 8601 time {tail}. Write it as '2024-01-31T12:00:00Z'."
    elif kind in _TEXTUAL and isinstance(value, float):
        yield f"{subject} a text {tail}. Put it in quotes."


def _check_rule(rule: Rule, place: str, data: DataSpec) -> Iterator[str]:
    """Check a rule whose columns are right by itself."""
    if isinstance(rule, FunctionRule | UniqueRule | ForeignKeyRule):
        return
    for condition in rule.conditions:
        if found := _find_impossible(condition, data):
            yield f"{place}.when must be able to hold, got {condition.words} ({found}). The rule would never apply: remove it."
    if isinstance(rule, CompareRule):
        found = _find_impossible(rule, data)
    elif isinstance(rule, TotalRule):
        found = _find_impossible_total(rule, data)
    else:
        required = [name for name in rule.columns if getattr(data.columns[name], "required", False)]
        found = f"{', '.join(required)} is required" if len(required) > rule.bounds[1] else None
    if found:
        yield f"{place} must be able to hold, got {rule.sentence} ({found}). {_NO_VALUE}: change the rule or the column."


def _find_impossible_total(rule: TotalRule, data: DataSpec) -> str | None:
    if rule.total in rule.columns:
        return f"{rule.total} is one of the columns that are added"
    parts = [range_of(data.columns[name]) for name in rule.columns]
    total = range_of(data.columns[rule.total])
    least = sum(-math.inf if part.low is None else part.low for part in parts)
    greatest = sum(math.inf if part.high is None else part.high for part in parts)
    if total.high is not None and least > total.high + rule.tolerance:
        return f"the sum is at least {least:g}, {rule.total} at most {total.high:g}"
    if total.low is not None and greatest < total.low - rule.tolerance:
        return f"the sum is at most {greatest:g}, {rule.total} at least {total.low:g}"
    return None


def _find_impossible(comparison: Comparison, data: DataSpec) -> str | None:
    """Return why a comparison can hold for no value of its columns, or None if it can."""
    column = data.columns[comparison.left]
    if comparison.operator in ("is_missing", "is_given"):
        is_never = comparison.operator == "is_missing" and getattr(column, "required", False)
        return f"{comparison.left} is required" if is_never else None
    if comparison.right is not None:
        return _find_impossible_pair(comparison, data)
    if column.kind in _ORDERED:
        return None if narrow(range_of(column), comparison).may_hold else range_words(comparison.left, column)
    return _find_impossible_text(comparison, data)


def _find_impossible_pair(comparison: Comparison, data: DataSpec) -> str | None:
    left, right = comparison.columns
    if left == right:
        return "it compares a column with itself"
    columns = data.columns[left], data.columns[right]
    if columns[0].kind in _ORDERED:
        low, high = (range_of(column) for column in columns)
        if comparison.operator in (">", ">="):
            low, high = high, low
        is_strict = comparison.operator in ("<", ">")
        apart = low.is_above(high, is_strict) or (comparison.operator == "==" and high.is_above(low, is_strict))
        if comparison.operator != "!=" and apart:
            return f"{range_words(left, columns[0])}, {range_words(right, columns[1])}"
        return None
    allowed = [frozenset(column.allowed) for column in columns if isinstance(column, CategoryColumn) and column.allowed]
    if comparison.operator == "==" and len(allowed) == len(columns) and not allowed[0] & allowed[1]:
        return "the columns share no allowed value"
    return None


def _find_impossible_text(comparison: Comparison, data: DataSpec) -> str | None:
    name, constants = comparison.left, [str(value) for value in comparison.constants]
    column = data.columns[name]
    allowed = column.allowed if isinstance(column, CategoryColumn) else None
    if comparison.operator == "matches":
        is_never = allowed is not None and not any(match_whole(constants[0], allowed))
        return f"no allowed value of {name} matches" if is_never else None
    if comparison.operator in ("!=", "not_in"):
        is_never = allowed is not None and set(allowed) <= set(constants)
        return f"it rules out every allowed value of {name}" if is_never else None
    reasons = [why_never(name, value, data) for value in constants]
    return None if None in reasons else reasons[0]


def why_never(name: str, value: str, data: DataSpec) -> str | None:
    """Return why a cleaned cell of a textual column is never this text."""
    column = data.columns[name]
    if isinstance(column, IgnoredColumn):  # which stays as it is
        return "an empty text is missing" if value == "" else None
    if value != value.strip() or value == "":
        return "texts are trimmed, and an empty one is missing"
    if value in data.missing_words:
        return f"{value!r} means missing (data.missing_words)"
    if isinstance(column, CategoryColumn):
        if column.allowed is not None and value not in column.allowed:
            return f"{name} allows {', '.join(column.allowed)}"
        if column.replace.get(value, value) != value and value not in column.replace.values():
            return f"{name} replaces {value!r} by {column.replace[value]!r}"
    is_spelled = getattr(column, "replace", {}) or getattr(column, "allowed", None)  # which stay as the spec has them
    is_lower = "lower" in getattr(column, "normalise", ()) and not is_spelled
    if is_lower and value != value.casefold():
        return f"{name} is in lower case"
    pattern = getattr(column, "pattern", None)
    if pattern is not None and not getattr(column, "replace", {}) and not all(match_whole(pattern, [value])):
        return f"{name} has the pattern {pattern!r}"
    return None


class _Together:
    """Collects the rules that look at all rows, to find those that cannot hold at once."""

    def __init__(self, data: DataSpec) -> None:
        self._data = data
        self._ranges: dict[str, Range] = {}
        self._orderings: dict[tuple[str, str], set[str]] = {}

    def add(self, rule: Rule, place: str) -> Iterator[str]:
        """Add a rule that can hold by itself."""
        if not isinstance(rule, CompareRule) or rule.conditions or _find_impossible(rule, self._data):
            return
        column = self._data.columns[rule.left]
        if rule.right is not None and rule.operator in _FLIPPED:
            can_hold = self._add_pair(rule.left, rule.operator, rule.right)
        elif column.kind in _ORDERED:
            known = self._ranges.get(rule.left, range_of(column))
            self._ranges[rule.left] = narrow(known, rule)
            can_hold = self._ranges[rule.left].may_hold or not known.may_hold
        else:
            return
        if not can_hold:
            yield f"{place} must be able to hold together with the rules before it, got {rule.sentence}. Change one of them."

    def _add_pair(self, left: str, operator: str, right: str) -> bool:
        if left > right:
            left, operator, right = right, _FLIPPED[operator], left
        known = self._orderings.get((left, right), set("<=>"))
        self._orderings[left, right] = known & set(_ORDERINGS[operator])
        return bool(self._orderings[left, right]) or not known
