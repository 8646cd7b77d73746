"""Section ``clean.rules``: what rows have to fulfil across their columns and among each other.

A rule is data: a ``kind``, the columns it looks at, and what happens to rows that break it. Missing values break no rule
unless it says so. A comparison is the atom: the rule ``compare`` asks that it holds, ``when`` limits a rule to the rows where
comparisons hold.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, TypeAdapter, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from lepton_ray.core.frozen import Texts
from lepton_ray.core.patterns import find_pattern_problem
from lepton_ray.spec.base import FiniteFloat, ImportPath, Section
from lepton_ray.spec.sources import Source


def one_or_many(section: type[Section]) -> WrapValidator:
    """Return a validator of a field that takes one mapping or a list of them; errors keep the path as it is written."""
    many: TypeAdapter[Any] = TypeAdapter(Annotated[tuple[section, ...], Field(strict=False)])  # type: ignore[arg-type, valid-type]

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        if isinstance(value, list | tuple):
            return many.validate_python(value)
        return None if value is None else section.model_validate(value)

    return WrapValidator(check)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return what a field that takes one or many holds, as a tuple."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _check_constant(value: Any) -> float | str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    raise PydanticCustomError("constant", "must be a finite number or a text")


def _to_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise PydanticCustomError("columns", "must name each column once")
    return value


Constant = Annotated[float | str, PlainValidator(_check_constant, json_schema_input_type=float | str)]
Columns = Annotated[
    Texts,
    BeforeValidator(_to_list, json_schema_input_type=str | list[str]),
    Field(min_length=1),
    AfterValidator(_check_distinct),
]
"""One column's name, or a list of them."""


class Comparison(Section):
    """``left operator right``: numbers and times in their order, categories, texts and ignored columns for equality."""

    left: str
    """A column."""
    operator: Literal["<", "<=", "==", "!=", ">=", ">", "in", "not_in", "matches", "is_missing", "is_given"]
    """``in`` and ``not_in`` take ``values``; ``matches`` takes a regular expression (RE2) for the whole text as ``value``."""
    right: str | None = None
    """Another column to compare with; or else ``value``."""
    value: Constant | None = None
    """A constant to compare with: a number, a text, or a time in ISO 8601."""
    values: Annotated[tuple[Constant, ...], Field(strict=False)] | None = None
    """Constants for ``in`` and ``not_in``."""

    @model_validator(mode="after")
    def _check_operands(self) -> Self:
        wanted = {"in": ("values",), "not_in": ("values",), "matches": ("value",), "is_missing": (), "is_given": ()}
        names = wanted.get(self.operator, ("right", "value"))
        given = [name for name in ("right", "value", "values") if getattr(self, name) is not None]
        if len(given) != min(len(names), 1) or not set(given) <= set(names):
            raise ValueError(
                f"operator {self.operator!r} must have {' or '.join(names) or 'no operand'}, "
                f"got {' and '.join(given) or 'none'}. Change the operands"
            )
        if self.values is not None and not self.values:
            raise ValueError("values must hold a value, got none. Add the values")
        if self.operator == "matches":
            _check_pattern(self.value)
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are looked at."""
        return (self.left,) if self.right is None else (self.left, self.right)

    @property
    def constants(self) -> tuple[float | str, ...]:
        """``value`` or ``values`` as a tuple; empty for another column or no operand."""
        return self.values or (() if self.value is None else (self.value,))

    @property
    def words(self) -> str:
        """The comparison in words: ``start <= end``."""
        if self.operator in ("is_missing", "is_given"):
            return f"{self.left} {self.operator.replace('_', ' ')}"
        if self.values is not None:
            operand = "[" + ", ".join(map(_constant_text, self.values)) + "]"
        else:
            operand = self.right if self.right is not None else _constant_text(self.value)
        return f"{self.left} {self.operator.replace('_', ' ')} {operand}"


def _check_pattern(value: Any) -> None:
    problem = find_pattern_problem(value) if isinstance(value, str) else "it is no text"
    if problem:
        raise ValueError(f"value must be a regular expression of RE2, got {value!r} ({problem}). Repair it")


def _constant_text(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float) else repr(value)


Conditions = Annotated[Comparison | tuple[Comparison, ...] | None, one_or_many(Comparison)]


class _Rule(Section):
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Stands before the rule in quarantine and in messages."""
    on_fail: Literal["remove", "stop"] = "remove"
    """``remove`` puts rows that break the rule into quarantine, ``stop`` ends the run."""

    @property
    def conditions(self) -> tuple[Comparison, ...]:
        """Comparisons that hold in the rows that are looked at."""
        return ()

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns that are looked at, each once."""
        more = (name for condition in self.conditions for name in condition.columns)
        return tuple(dict.fromkeys([*self._own_columns(), *more]))

    @property
    def sentence(self) -> str:
        """What must hold, in words, after the rule's name."""
        name = "" if self.name is None else f"{self.name}: "
        conditions = " and ".join(condition.words for condition in self.conditions)
        return f"{name}{self._must()} when {conditions}" if conditions else f"{name}{self._must()}"

    @abstractmethod
    def _own_columns(self) -> tuple[str, ...]:
        """Return the columns that are looked at, besides those of conditions."""

    @abstractmethod
    def _must(self) -> str:
        """Return what must hold, in words, where the conditions do."""


class _ConditionalRule(_Rule):
    when: Conditions = None
    """Comparisons, one or a list; only rows where all of them hold are looked at. A comparison with a missing value
    does not hold."""

    @property
    def conditions(self) -> tuple[Comparison, ...]:
        """``when`` as a tuple."""
        return as_tuple(self.when)


class CompareRule(Comparison, _ConditionalRule):
    """A comparison must hold: ``{kind: compare, left: start, operator: <=, right: end}``."""

    kind: Literal["compare"]
    operator: Literal["<", "<=", "==", "!=", ">=", ">", "in", "not_in", "matches"]
    """``in`` and ``not_in`` take ``values``; ``matches`` takes a regular expression (RE2) for the whole text as ``value``."""
    missing: Literal["allow", "break"] = "allow"
    """Whether a row where a compared value is missing breaks the rule."""

    def _own_columns(self) -> tuple[str, ...]:
        return self.columns

    def _must(self) -> str:
        return self.words.replace(self.left, f"{self.left} must be", 1)


class GivenRule(_ConditionalRule):
    """Some of the columns must be given: ``{kind: given, columns: [phone, email], at_least: 1}``."""

    kind: Literal["given"]
    columns: Columns
    at_least: Annotated[int, Field(ge=0)] | None = None
    """Least number of columns that hold a value; all of them by default, or 0 when ``at_most`` is given."""
    at_most: Annotated[int, Field(ge=0)] | None = None
    """Greatest number of columns that hold a value; 0 asks that all are missing."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        low, high = self.bounds
        if low > len(self.columns):
            raise ValueError(
                f"at_least must be at most the number of columns ({len(self.columns)}), got {low}. Lower it"
            )
        if low > high:
            raise ValueError(f"at_most must be at least at_least ({low}), got {high}. No row can satisfy both")
        if (low, high) == (0, len(self.columns)):
            raise ValueError("at_least or at_most must rule something out, got neither does. Change them")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest number of columns that hold a value."""
        everything = len(self.columns)
        low = (everything if self.at_most is None else 0) if self.at_least is None else self.at_least
        return low, everything if self.at_most is None else min(self.at_most, everything)

    def _own_columns(self) -> tuple[str, ...]:
        return self.columns

    def _must(self) -> str:
        low, high = self.bounds
        names = ", ".join(self.columns)
        if low == high:
            count = "all" if low == len(self.columns) else ("none" if low == 0 else f"exactly {low}")
        else:
            count = f"at least {low}" if high == len(self.columns) else f"{low} to {high}"
        return f"{count} of {names} must be given"


class TotalRule(_ConditionalRule):
    """Columns must add up: ``{kind: total, columns: [net, tax], total: gross, tolerance: 0.01}``."""

    kind: Literal["total"]
    columns: Columns
    """Numbers that are added; a row where one of them or the total is missing breaks no rule."""
    total: str
    """Number that must be their sum."""
    tolerance: Annotated[FiniteFloat, Field(ge=0)] = 1e-6
    """Greatest allowed distance, in the unit of the columns."""

    def _own_columns(self) -> tuple[str, ...]:
        return *self.columns, self.total

    def _must(self) -> str:
        return f"{' + '.join(self.columns)} must be {self.total} within {self.tolerance:g}"


class FunctionRule(_Rule):
    """A function of your own says which rows are fine: ``{kind: function, function: my.rules:is_fine, columns: [a, b]}``.

    It is called with a ``pyarrow.Table`` of the columns, for some rows at a time, and returns a boolean array that says which
    rows are fine; null, as pyarrow compares a missing value, is fine. It must be pure: the answer for a row may depend on nothing but the row.
    """

    kind: Literal["function"]
    function: ImportPath
    """``package.module:function``."""
    columns: Columns

    def _own_columns(self) -> tuple[str, ...]:
        return self.columns

    def _must(self) -> str:
        return f"{self.function} must find {', '.join(self.columns)} fine"


class Preference(Section):
    """Which of several rows with one key stays."""

    keep: Literal["first", "last", "greatest", "least"] = "first"
    """``first`` and ``last`` in the order of the source; ``greatest`` and ``least`` by the column ``by``, whatever the order:
    a missing value loses, and of equals the row with the least hash stays."""
    by: str | None = None
    """Number or time column for ``greatest`` and ``least``."""

    @model_validator(mode="after")
    def _check_by(self) -> Self:
        if (self.keep in ("greatest", "least")) != (self.by is not None):
            need = "must name a column" if self.by is None else "must be left out"
            raise ValueError(f"by {need} when keep is {self.keep!r}, got {self.by!r}. Change by or keep")
        return self


class UniqueRule(Preference, _Rule):
    """No two rows may have the same key: ``{kind: unique, columns: [customer, day]}``. A key with a missing value is none."""

    kind: Literal["unique"]
    columns: Columns

    def _own_columns(self) -> tuple[str, ...]:
        return self.columns if self.by is None else (*self.columns, self.by)

    def _must(self) -> str:
        return f"{', '.join(self.columns)} must be unique"


class ForeignKeyRule(_Rule):
    """The key must stand in another source: ``{kind: foreign_key, columns: customer, reference: {kind: csv, uri: ...}}``.

    A key with a missing value is none.
    """

    kind: Literal["foreign_key"]
    columns: Columns
    reference: Source
    """The source that holds the keys, written as ``data.source``."""
    reference_columns: Columns | None = None
    """Names of the key's columns there, in the order of ``columns``; the same names by default. Their values are read by the
    rules of ``data.columns``."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.referred) != len(self.columns):
            raise ValueError(
                f"reference_columns must name as many columns as columns ({len(self.columns)}), got {len(self.referred)}. "
                "Name the same number"
            )
        return self

    @property
    def referred(self) -> tuple[str, ...]:
        """The key's columns in the reference."""
        return self.columns if self.reference_columns is None else self.reference_columns

    def _own_columns(self) -> tuple[str, ...]:
        return self.columns

    def _must(self) -> str:
        return f"{', '.join(self.columns)} must stand in {', '.join(self.referred)} of the reference"


Rule = Annotated[
    CompareRule | GivenRule | TotalRule | FunctionRule | UniqueRule | ForeignKeyRule, Field(discriminator="kind")
]
