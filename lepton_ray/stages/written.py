"""Guess how a text file is written: its encoding, what stands between its cells, and how its numbers and times are spelled."""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lepton_ray.artifacts.numbers import parse_numbers
from lepton_ray.artifacts.times import read_times
from lepton_ray.core.extras import require
from lepton_ray.spec.data import NumberColumn, TimeColumn

LOOKS_LIKE = 0.95  # share of the values that must be of a kind; the others are mistakes, for quarantine
_DELIMITERS = (",", ";", "\t", "|")  # of those that fit alike, the first
_FIRST_RECORDS = 20
_SAME_CELLS = 0.8  # least share of them that have as many cells as most
_SAMPLE = 200  # values that choose which spellings are tried on all

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# What spreadsheets and databases still write; told apart by how likely their letters stand beside each other, else the first.
_ENCODINGS = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
    *("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
]

_AFFIXED = re.compile(r"[+-]?\s*(?P<before>[^\d\s+\-.,']*)\s*[+-]?[\d.,'\s]*\d[.,]?\s*(?P<after>\D*)")
_MAX_UNIT = 12  # characters
_GROUPED_BY_POINTS = r"\A[+-]?[1-9]\d{0,2}(?:\.\d{3})+\z"
_SIGNS = ((".", ","), (",", "."), (",", ""), (".", " "), (",", " "), (".", "'"))  # decimal, thousands; as usual first

_DATES = (
    *("%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y"),
    *("%d/%m/%y", "%m/%d/%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y"),
)
_DATED = r"\A(?:\d{1,4}|\pL{3,9})[ ./-](?:\d{1,2}|\pL{3,9}),?[ ./-]\d{1,4}\b"
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")


def guess_encoding(head: bytes) -> str | None:
    """Return the encoding of a file's first bytes; None if they are UTF-8, or nothing fits."""
    if head.startswith(_UTF_16):
        return "utf-16"
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":  # the head ends within a letter
            return None
    else:
        return None
    found = require("charset_normalizer", "guessing an encoding").from_bytes(head, cp_isolation=_ENCODINGS)
    ranked = [
        (round(match.chaos, 2), _ENCODINGS.index(name))
        for match in found
        for name in match.could_be_from_charset  # which all make the same of it
        if name in _ENCODINGS
    ]
    return _ENCODINGS[min(ranked)[1]] if ranked else None


def guess_delimiter(head: str, is_whole: bool) -> str:
    """Return what stands between the cells of a file's first records: that with the most cells, as many in most of them."""
    num_cells = {delimiter: _num_cells(head, is_whole, delimiter) for delimiter in _DELIMITERS}
    return max(_DELIMITERS, key=num_cells.__getitem__)


def _num_cells(head: str, is_whole: bool, delimiter: str) -> int:
    lines = head.splitlines(keepends=True)
    reader = csv.reader(lines if is_whole else lines[:-1], delimiter=delimiter)
    try:
        records = list(islice(filter(None, reader), _FIRST_RECORDS))
    except csv.Error:  # a cell that is longer than any of such a file
        return 0
    ((most, times),) = Counter(map(len, records)).most_common(1) or [(0, 0)]
    return most if most > 1 and times >= _SAME_CELLS * len(records) else 0


def guess_number(texts: pa.Array, delimiter: str | None) -> NumberColumn | None:
    """Return a column that reads texts as numbers, None if most of them are none.

    Args:
        texts: Without nulls.
        delimiter: Of the file. Where it is no comma, a comma is the decimal sign rather than one that groups digits.
    """
    if not len(texts):
        return None
    plain = NumberColumn(kind="number")
    if _is_mostly_number(texts, plain):
        is_grouped = delimiter == ";" and _is_grouped_by_points(texts)
        return NumberColumn(kind="number", decimal=",", thousands=".") if is_grouped else plain
    sample = texts[:_SAMPLE]
    units = _units_of(sample.to_pylist())
    if units is None:
        return None
    for column in _forms(units, prefers_comma=delimiter not in (None, ",")):
        if _is_mostly_number(sample, column) and _is_mostly_number(texts, column):
            return column
    return None


def _is_mostly_number(texts: pa.Array, column: NumberColumn) -> bool:
    _, is_number = parse_numbers(texts, column)
    return bool(is_number.sum() >= LOOKS_LIKE * len(texts))


def _is_grouped_by_points(texts: pa.Array) -> bool:
    """Whether every point groups thousands: ``950`` beside ``1.200``, and never ``0.5``."""
    pointed = texts.filter(pc.match_substring(texts, "."))
    return len(pointed) > 0 and bool(pc.all(pc.match_substring_regex(pointed, _GROUPED_BY_POINTS)).as_py())


def _units_of(texts: Sequence[str]) -> tuple[str, ...] | None:
    """Return what stands before or after the numbers in most texts: signs of money, percent or one word; None if they are no numbers.

    A letter before a number is a name's rather than a unit, and so are many words behind.
    """
    matches = [match for text in texts if (match := _AFFIXED.fullmatch(text.strip()))]
    if len(matches) < LOOKS_LIKE * len(texts):
        return None
    before = Counter(match["before"] for match in matches if match["before"])
    after = Counter(match["after"].strip() for match in matches if match["after"].strip())
    if any(not _is_sign(unit) for unit in before) or len(after) > 1 or any(len(unit) > _MAX_UNIT for unit in after):
        return None
    return tuple(sorted(before | after))


def _is_sign(unit: str) -> bool:
    return all(unicodedata.category(letter) == "Sc" for letter in unit)


def _forms(units: tuple[str, ...], prefers_comma: bool) -> Iterator[NumberColumn]:
    given: dict[str, Any] = {"kind": "number", **({"units": units} if units else {})}
    if units:
        yield NumberColumn.model_validate(given)
    for decimal, thousands in sorted(_SIGNS, key=lambda signs: signs[0] != ",") if prefers_comma else _SIGNS:
        signs = {"decimal": decimal} if decimal != "." else {}
        yield NumberColumn.model_validate({**given, **signs, **({"thousands": thousands} if thousands else {})})


def guess_time(texts: pa.Array) -> tuple[TimeColumn, str | None] | None:
    """Return a column that reads texts as times, and another format that reads as many; None if most of them are none.

    Args:
        texts: Without nulls.
    """
    if not len(texts):
        return None
    if _num_times(texts, "iso") >= LOOKS_LIKE * len(texts):
        return TimeColumn(kind="time"), None
    sample = texts[:_SAMPLE]
    if pc.sum(pc.match_substring_regex(sample, _DATED)).as_py() < LOOKS_LIKE * len(sample):
        return None
    patterns = [date + clock for date in _DATES for clock in _CLOCKS]
    likely = [pattern for pattern in patterns if _num_times(sample, pattern) >= LOOKS_LIKE * len(sample)]
    fitting = [(_num_times(texts, pattern), pattern) for pattern in likely]
    best = max((count for count, _ in fitting), default=0)
    if best < LOOKS_LIKE * len(texts):
        return None
    first, *others = [pattern for count, pattern in fitting if count == best]
    return TimeColumn(kind="time", format=first), others[0] if others else None


def _num_times(texts: pa.Array, pattern: str) -> int:
    return len(texts) - int(read_times(texts, pattern).null_count)
