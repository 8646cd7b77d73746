"""The one form of a text: how ``normalise`` and ``replace`` change it, in cleaning and in serving.

Each step has a function of one text, which says what it does. Over Arrow arrays, kernels do what they are known to do alike,
and the function is called only for the texts that it may change: of a dictionary, once for each value. (Arrow's own
normalisation and case mapping are not used: in Arrow 25 ``utf8_normalize`` decomposes and does not compose again.)
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

import pyarrow as pa
import pyarrow.compute as pc

from lepton_ray.artifacts.markup import read_markup
from lepton_ray.spec.data import CategoryColumn, TagsColumn, TextColumn, TextStep

# White space as str.strip, str.split and Arrow's utf8_trim_whitespace have it.
_OTHER_SPACE = "\t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPACE = f" {_OTHER_SPACE}"
_URL = (
    r"(?:[hH][tT][tT][pP][sS]?://|[fF][tT][pP]://|[wW][wW][wW]\.)"
    rf"""[^{_SPACE}<>"]*[^{_SPACE}<>"'.,;:!?()\[\]{{}}]"""  # a sign behind an address is not part of it
)
_url = re.compile(_URL)
_SHORT, _MOST_MARKS = 1000, 30  # characters: a shorter text is normalised in a moment, whatever is in it


@dataclass(frozen=True)
class _Step:
    """``apply`` changes only texts that ``may_change`` (RE2) finds; ``kernel`` does the same, alone or before it."""

    apply: Callable[[str], str]
    may_change: str | None = None
    kernel: Callable[[pa.Array], pa.Array] | None = None

    def apply_array(self, texts: pa.Array) -> pa.Array:
        """Apply to each text that is not null."""
        if self.kernel is not None:
            texts = self.kernel(texts)
        if self.may_change is None:
            return texts
        is_chosen = pc.fill_null(pc.match_substring_regex(texts, self.may_change), False)
        if not pc.any(is_chosen, min_count=0).as_py():
            return texts
        changed = [self.apply(text) for text in texts.filter(is_chosen).to_pylist()]
        return pc.replace_with_mask(texts, is_chosen, pa.array(changed, pa.string()))


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", _with_few_marks(text))


def _compose_compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", _with_few_marks(text))


def _without_accents(text: str) -> str:
    signs = unicodedata.normalize("NFD", _with_few_marks(text))
    return "".join(sign for sign in signs if unicodedata.category(sign) != "Mn")


def _with_few_marks(text: str) -> str:
    """Return a text with the first 30 marks of each letter, as many as any language needs: they are sorted by their square.

    Source: UAX 15, section 13, stream-safe text format.
    """
    if len(text) <= _SHORT:
        return text
    kept, num_marks = [], 0
    for sign in text:
        num_marks = num_marks + 1 if unicodedata.combining(sign) else 0
        if num_marks <= _MOST_MARKS:
            kept.append(sign)
    return "".join(kept)


def _without_urls(text: str) -> str:
    return _url.sub("URL", text)


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


def _without_urls_kernel(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(texts, _URL, "URL")


_STEPS: dict[TextStep, _Step] = {
    "nfc": _Step(_compose, may_change=r"[^\x00-\x{2ff}]"),  # below there is nothing to compose
    "nfkc": _Step(_compose_compatible, may_change=r"[^\x00-\x{9f}]"),
    "lower": _Step(str.casefold, may_change=r"[^\x00-\x7f]", kernel=pc.ascii_lower),
    "accents": _Step(_without_accents, may_change=r"[^\x00-\x{bf}]"),
    "html": _Step(read_markup, may_change="[<&]"),
    "urls": _Step(_without_urls, kernel=_without_urls_kernel),
    "spaces": _Step(_single_spaces, may_change=rf"[{_OTHER_SPACE}]|  |\A | \z"),
}


@dataclass(frozen=True)
class TextForm:
    """What a column makes of a text; compiled once by ``form``. Call it with an Arrow array, ``apply`` it to one text."""

    steps: tuple[TextStep, ...]
    replace: Mapping[str, str]
    """By texts as the steps leave them."""

    def apply(self, text: str) -> str:
        """Return a text as the model gets it, without spaces around it; "" is a missing one."""
        if not self.steps and not self.replace:
            return text.strip()
        text = _apply(self.steps, text)
        return self.replace.get(text, text)

    def __call__(self, texts: pa.Array) -> pa.Array:
        """Return texts as ``apply`` does; null stays null.

        Args:
            texts: Plain or dictionary; of a dictionary only the values are looked at, and equal ones become one.
        """
        if isinstance(texts, pa.DictionaryArray):
            values = self(texts.dictionary).dictionary_encode()
            codes = values.indices.take(texts.indices)
            return pa.DictionaryArray.from_arrays(codes, values.dictionary)
        texts = texts.cast(pa.string())
        for name in self.steps:
            texts = _STEPS[name].apply_array(texts)
        texts = pc.utf8_trim_whitespace(texts)
        if self.replace:
            found = pc.index_in(texts, pa.array(list(self.replace), pa.string()))
            texts = pc.coalesce(pa.array(list(self.replace.values()), pa.string()).take(found), texts)
        return texts

    def invert(self, value: str) -> str:
        """Return a text of which ``apply`` makes ``value``, which it has made before; ``value`` itself if none is found."""
        raw = (value, *(key for key, stands_for in self.replace.items() if stands_for == value), escape(value))
        return next((text for text in raw if self.apply(text) == value), value)


def form(column: CategoryColumn | TagsColumn | TextColumn) -> TextForm:
    """Return what a column says of its texts, ready to use.

    ``replace`` and ``allowed`` hold however they are spelled: where texts become lower case, ``{NYC: New York}`` takes nyc, and
    NEW YORK is New York too.
    """
    if isinstance(column, TextColumn):
        return TextForm(column.normalise, {})
    replace = {_apply(column.normalise, key): value.strip() for key, value in column.replace.items()}
    if column.normalise:
        for value in (*column.replace.values(), *(column.allowed or ())):
            replace.setdefault(_apply(column.normalise, value), value.strip())
    return TextForm(column.normalise, replace)


def _apply(steps: tuple[TextStep, ...], text: str) -> str:
    for name in steps:
        text = _STEPS[name].apply(text)
    return text.strip()
