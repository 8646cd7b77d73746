"""The one parser of numbers: from text as a column says that its numbers are written, and from numbers of any type."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.spec.data import NumberColumn

_PLAIN = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_INFINITE = r"[+-]?[iI][nN][fF](?:[iI][nN][iI][tT][yY])?"
_SPACES = " \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"  # look the same, and group digits alike

# Python's own engine tries what RE2 need not: digits are given back one by one, unless they are held on to.
_plain = re.compile(_PLAIN.replace("[0-9]+", "[0-9]++").replace("[0-9]*", "[0-9]*+"))
_infinite = re.compile(_INFINITE)


@dataclass(frozen=True)
class _Form:
    """How a column's numbers are written."""

    expression: str
    """What a text looks like; its groups are the sign before a unit and the rest. Blank if texts have to be plain."""
    decimal: str
    grouping: str
    """Signs that may group digits."""

    def to_plain(self, text: str) -> str:
        """Return a text as ``_PLAIN`` has it, or something that is no number."""
        match = re.fullmatch(self.expression, text)
        if match is None:
            return ""
        plain = match[1] + match[2]
        for sign in self.grouping:
            plain = plain.replace(sign, "")
        return plain.replace(self.decimal, ".")

    def to_plain_array(self, texts: pa.Array) -> pa.Array:
        """Return texts as ``to_plain`` does, null where they are no numbers."""
        whole = rf"\A(?:{self.expression})\z"
        matching = pc.if_else(pc.match_substring_regex(texts, whole), texts, None)
        plain = pc.replace_substring_regex(matching, whole, r"\1\2")
        for sign in self.grouping:
            plain = pc.replace_substring(plain, sign, "")
        return pc.replace_substring(plain, self.decimal, ".")


def parse_number(text: str, column: NumberColumn) -> float | None:
    """Return the number of a text without spaces around it; None if it is none. An infinite one is a number."""
    form = _form(column)
    plain = form.to_plain(text) if form.expression else text
    if _plain.fullmatch(plain):
        return float(plain) + 0.0
    return float(text) if _infinite.fullmatch(text) else None


def parse_numbers(texts: pa.Array, column: NumberColumn) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the numbers of texts as ``parse_number`` does (NaN where there is none), and which texts are numbers."""
    form = _form(column)
    plain = form.to_plain_array(texts) if form.expression else texts
    is_plain = pc.fill_null(pc.match_substring_regex(plain, rf"\A(?:{_PLAIN})\z"), False)
    is_infinite = pc.fill_null(pc.match_substring_regex(texts, rf"\A(?:{_INFINITE})\z"), False)
    numbers = pc.if_else(is_plain, plain, None).cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0
    is_number = pc.or_(is_plain, is_infinite).to_numpy(zero_copy_only=False)
    infinite = np.where(pc.starts_with(texts, "-").to_numpy(zero_copy_only=False), -np.inf, np.inf)
    return np.where(is_infinite.to_numpy(zero_copy_only=False), infinite, numbers), is_number


def to_floats(numbers: pa.Array) -> NDArray[np.float64]:
    """Return numbers of any type as the nearest float64, NaN for null: of a decimal the float that its text is read as."""
    # Arrow 25 divides decimals by a power of ten, and comes out one beside: 0.70 above 0.7
    if pa.types.is_decimal(numbers.type):
        numbers = numbers.cast(pa.string())
    return np.asarray(numbers.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def missing_numbers(column: NumberColumn, missing_words: Iterable[str]) -> tuple[float, ...]:
    """Return the numbers that mean 'missing', such as -999, however they come."""
    numbers = (parse_number(word.strip(), column) for word in missing_words)
    return tuple(sorted({number for number in numbers if number is not None}))


@lru_cache(maxsize=1024)
def _form(column: NumberColumn) -> _Form:
    is_plain = column.decimal == "." and not column.thousands and not column.units
    grouping = _SPACES if column.thousands == " " else column.thousands
    return _Form("" if is_plain else _expression(column), column.decimal, grouping)


def _expression(column: NumberColumn) -> str:
    """Return sign, unit, number, unit as an expression that RE2 and ``re`` read alike."""
    units = "|".join(re.escape(unit.strip()) for unit in sorted(column.units, key=len, reverse=True) if unit.strip())
    space = rf"[\t-\r{_SPACES}]*"
    before, after = (rf"(?:(?:{units}){space})?", rf"(?:{space}(?:{units}))?") if units else ("", "")
    digits = "[0-9]+"
    if column.thousands:
        sign = f"[{_SPACES}]" if column.thousands == " " else re.escape(column.thousands)
        digits = f"(?:[0-9]{{1,3}}(?:{sign}[0-9]{{3}})+|[0-9]+)"
    decimal = re.escape(column.decimal)
    number = f"(?:{digits}(?:{decimal}[0-9]*)?|{decimal}[0-9]+)(?:[eE][+-]?[0-9]+)?"
    return f"([+-]?){space}{before}([+-]?{number}){after}"
