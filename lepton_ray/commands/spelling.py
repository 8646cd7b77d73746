"""Guess how a text file is written: its encoding, what stands between its cells, and how its numbers and times are spelled."""

import codecs
import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lepton_ray.artifacts.numbers import parse_numbers
from lepton_ray.artifacts.times import read_times
from lepton_ray.core.extras import require
from lepton_ray.data.csv_text import DELIMITERS
from lepton_ray.spec.data import NumberColumn, TimeColumn

LOOKS_LIKE = 0.95  # share of the values that must be of a kind; the others are mistakes, for quarantine
_FIRST_RECORDS = 20
_SAME_CELLS = 0.8  # least share of them that have as many cells as most
_SAMPLE = 200  # values that choose which spellings are tried on all

_MARKS = {  # the longer first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LEAST_ASCII = 0.1  # share of the letters of a table: separators, line ends, digits
# What spreadsheets and databases still write; told apart by how likely their letters stand beside each other, else the first.
_ENCODINGS = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
    *("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
]

_AFFIXED = re.compile(r"[+-]?\s*(?P<before>[^\d\s+\-.,']*)\s*[+-]?[\d.,'\s]*\d[.,]?\s*(?P<after>\D*)")
_MAX_UNIT = 12  # characters
_NO_UNIT = ("Pd", "Sm", "Ps", "Pe")  # Unicode's dashes, signs of arithmetic, brackets
_CODE = r"\A(?:0\d+|\+\d{1,3}[ (][\d ()/-]+)\z"  # zeros in front, which numbers do not need; or of a telephone
_SIGNS = ((".", ","), (",", "."), (",", ""), (".", " "), (",", " "), (".", "'"))  # decimal, thousands; as usual first

_DATES = (
    *("%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y"),
    *("%d/%m/%y", "%m/%d/%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y"),
)
_DATED = r"\A(?:\d{1,4}|\pL{3,9})[ ./-](?:\d{1,2}|\pL{3,9}),?[ ./-]\d{1,4}\b"
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")


def guess_encoding(head: bytes) -> str | None:
    """Return the encoding of a file's first bytes; None if they are UTF-8, also with a few mistakes, or nothing fits."""
    marked = [encoding for mark, encoding in _MARKS.items() if head.startswith(mark)]
    if marked:
        return marked[0]
    if b"\0" in head and (unmarked := [name for name in ("utf-16-le", "utf-16-be") if _is_wide(head, name)]):
        return unmarked[0]
    if _is_mostly_utf_8(head):
        return None
    from_bytes = require("charset_normalizer", "guessing an encoding").from_bytes
    whole_lines = head[: head.rfind(b"\n") + 1]  # the head may end within a letter
    found = from_bytes(head, cp_isolation=_ENCODINGS) or from_bytes(whole_lines, cp_isolation=_ENCODINGS)
    ranked = sorted(_rank(match) for match in found if match.encoding in _ENCODINGS)
    return ranked[0][-1] if ranked else None


def _is_mostly_utf_8(head: bytes) -> bool:
    """Whether bytes are text in UTF-8, but for a few mistakes; the head may end within a letter."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)
    num_wrong = sum("\udc80" <= letter <= "\udcff" for letter in text)
    num_beyond_ascii = len(text) - sum(map(str.isascii, text))
    return num_wrong <= (1 - LOOKS_LIKE) * num_beyond_ascii


def _rank(match: Any) -> tuple[float, float, int, str]:
    """Order encodings: few letters that do not go together, then letters as often as in a language, then ours.

    Of several that give the same letters it is the first of ours: further on in the file they may differ.
    """
    encoding = min(match.could_be_from_charset, key=_ENCODINGS.index)
    return round(match.chaos, 2), -round(match.coherence, 1), _ENCODINGS.index(encoding), encoding


def _is_wide(head: bytes, encoding: str) -> bool:
    """Whether bytes are text of two bytes a letter, and not text with zeros in it."""
    text = head.decode(encoding, "replace")
    return "\0" not in text and sum(map(str.isascii, text)) > _LEAST_ASCII * len(text)


def guess_delimiter(head: str, is_whole: bool) -> str:
    """Return what stands between the cells of a file's first records: that with the most cells, as many in the header and most others."""
    num_cells = {delimiter: _num_cells(head, is_whole, delimiter) for delimiter in DELIMITERS}
    return max(DELIMITERS, key=num_cells.__getitem__)


def _num_cells(head: str, is_whole: bool, delimiter: str) -> int:
    lines = head.splitlines(keepends=True)
    reader = csv.reader(lines if is_whole or len(lines) == 1 else lines[:-1], delimiter=delimiter)
    try:
        records = list(islice(filter(None, reader), _FIRST_RECORDS))
    except csv.Error:  # a cell that is longer than any of such a file
        return 0
    ((most, times),) = Counter(map(len, records)).most_common(1) or [(0, 0)]
    is_table = most > 1 and times >= _SAME_CELLS * len(records) and len(records[0]) == most
    return most if is_table else 0


def has_decimal_points(columns: Iterable[pa.Array]) -> bool:
    """Whether a file's numbers have decimal points: some column's must be such, and none's are commas."""
    samples = [texts[:_SAMPLE] for texts in columns]
    return any(_has_decimals(texts, ".") for texts in samples) and not any(
        _has_decimals(texts, ",") for texts in samples
    )


def _has_decimals(texts: pa.Array, sign: str) -> bool:
    """Whether texts are numbers with this decimal sign, which does not group digits."""
    is_number = pc.match_substring_regex(texts, rf"\A[+-]?\d+(?:{re.escape(sign)}\d+)?\z")
    is_with_sign = pc.any(pc.match_substring(texts, sign)).as_py()
    return bool(is_with_sign and is_number.true_count >= LOOKS_LIKE * len(texts)) and not _is_grouped(texts, sign)


def guess_number(texts: pa.Array, delimiter: str | None) -> NumberColumn | None:
    """Return a column that reads texts as numbers, None if most of them are none.

    Args:
        texts: Without nulls.
        delimiter: Of the file; None where its numbers are known to have decimal points. Where it is no comma, a comma is the
            decimal sign rather than one that groups digits.
    """
    if not len(texts) or _are_codes(texts):
        return None
    plain = NumberColumn(kind="number")
    if _is_mostly_number(texts, plain):
        is_grouped = delimiter == ";" and _is_grouped(texts, ".")
        return NumberColumn(kind="number", decimal=",", thousands=".") if is_grouped else plain
    sample = texts[:_SAMPLE]
    units = _units_of(sample.to_pylist())
    if units is None:
        return None
    prefers_comma = delimiter == ";" or (delimiter not in (None, ",") and not _is_grouped(texts, ","))
    best, most = None, 0
    for column in _forms(units, prefers_comma):
        if most < len(texts) and _is_mostly_number(sample, column) and not _has_odd_group(texts, column):
            count = _num_numbers(texts, column)
            best, most = (column, count) if count > most else (best, most)
    return best if most >= LOOKS_LIKE * len(texts) else None


def _are_codes(texts: pa.Array) -> bool:
    """Whether texts are made of digits but count nothing: postal codes, identifiers, telephones."""
    return bool(pc.match_substring_regex(texts, _CODE).true_count > (1 - LOOKS_LIKE) * len(texts))


def _is_mostly_number(texts: pa.Array, column: NumberColumn) -> bool:
    return _num_numbers(texts, column) >= LOOKS_LIKE * len(texts)


def _num_numbers(texts: pa.Array, column: NumberColumn) -> int:
    _, is_number = parse_numbers(texts, column)
    return int(is_number.sum())


def _is_grouped(texts: pa.Array, sign: str) -> bool:
    """Whether a sign groups thousands wherever it stands: ``950`` beside ``1.200``, and never ``0.5``."""
    signed = texts.filter(pc.match_substring(texts, sign))
    grouped = rf"\A\D*[1-9]\d{{0,2}}(?:{re.escape(sign)}\d{{3}})+\D*\z"
    return len(signed) > 0 and bool(pc.all(pc.match_substring_regex(signed, grouped)).as_py())


def _has_odd_group(texts: pa.Array, column: NumberColumn) -> bool:
    """Whether a sign that should group thousands stands behind a lone zero, as a decimal sign does: ``0,950``."""
    odd = rf"\A\D*0{re.escape(column.thousands)}\d{{3}}\D*\z"
    return bool(column.thousands) and bool(pc.any(pc.match_substring_regex(texts, odd)).as_py())


def _units_of(texts: Sequence[str]) -> tuple[str, ...] | None:
    """Return what stands before or after the numbers in most texts: signs of money, percent or one word; None if they are no numbers.

    A letter before a number is a name's rather than a unit, and so are many words behind. What stands behind only some of
    the numbers changes them, as in ``3k`` beside ``950``, and a minus, plus or bracket there is no unit. Amounts of several
    currencies are no one number; a few of another are mistakes.
    """
    matches = _affixed(texts)
    if len(matches) < LOOKS_LIKE * len(texts):
        return None
    before = Counter(match["before"] for match in matches if match["before"])
    after = Counter(match["after"].strip() for match in matches if match["after"].strip())
    money = _count_money(matches)
    num_not_zero = sum(any(digit in "123456789" for digit in match[0]) for match in matches)
    is_unit = [len(unit) <= _MAX_UNIT and _is_unit(unit, times, num_not_zero) for unit, times in after.items()]
    if any(not _is_money(unit) for unit in before) or len(after) > 1 or not all(is_unit):
        return None
    if _num_others(money) > (1 - LOOKS_LIKE) * len(texts):
        return None
    words = [unit for unit in after if not _is_money(unit)]
    return tuple(sorted([*words, *(unit for unit, _ in money.most_common(1))]))


def mixed_money(texts: pa.Array) -> tuple[str, ...]:
    """Return the signs of money of a column's amounts if they are of several and none is nearly all's; else nothing."""
    sample = texts[:_SAMPLE].to_pylist()
    counts = _count_money(_affixed(sample))
    is_mixed = _num_others(counts) > (1 - LOOKS_LIKE) * len(sample)
    is_money = counts.total() >= LOOKS_LIKE * len(sample)
    return tuple(sorted(counts)) if is_mixed and is_money else ()


def _count_money(matches: Iterable[re.Match[str]]) -> Counter[str]:
    """Return how many texts have each sign of money, one of each: ``$5 USD`` is an amount in ``$``."""
    signs = (match["before"] or match["after"].strip() for match in matches)
    return Counter(sign for sign in signs if sign and _is_money(sign))


def _num_others(counts: Counter[str]) -> int:
    return counts.total() - max(counts.values(), default=0)


def _affixed(texts: Iterable[str]) -> list[re.Match[str]]:
    return [match for text in texts if (match := _AFFIXED.fullmatch(text.strip()))]


def _is_unit(behind: str, times: int, num_not_zero: int) -> bool:
    """Whether what stands so many times behind numbers is their unit."""
    is_said_of_all = times >= LOOKS_LIKE * num_not_zero
    return _is_money(behind) or (is_said_of_all and unicodedata.category(behind[0]) not in _NO_UNIT)


def _is_money(unit: str) -> bool:
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
