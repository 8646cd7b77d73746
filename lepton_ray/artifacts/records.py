"""Raw JSON records to tensors: each value typed, brought to its column's form and held against its rules.

A text is read as the same text in a CSV cell is, and a number as the text that spells it, by the code that cleaning uses:
what trained a model is what it gets when it serves. There is one class for each kind of tensor.
"""

import base64
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.numbers import missing_numbers, parse_number
from lepton_ray.artifacts.pixels import decode_image, num_pixel_bytes
from lepton_ray.artifacts.problems import Problems, show_value
from lepton_ray.artifacts.rules import (
    PLAIN,
    NumberRules,
    category_breaches,
    category_text,
    number_breaches,
    series_breaches,
    text_breaches,
    time_breaches,
    type_rule,
)
from lepton_ray.artifacts.series import read_series
from lepton_ray.artifacts.text_form import form
from lepton_ray.artifacts.times import (
    MICROS_PER_NUMBER,
    micros_of,
    read_time,
    round_seconds,
    spell_seconds,
    to_micros,
    to_seconds,
)
from lepton_ray.spec.data import CategoryColumn, Column, ImageColumn, NumberColumn, SeriesColumn, TextColumn, TimeColumn

C = TypeVar("C", bound=Column)
Records = Sequence[Mapping[str, Any]]

FILE_FORMATS = ("PNG", "JPEG")
"""Formats of image files in records, by Pillow's names: a stranger's bytes should reach as few decoders as possible."""
MAX_DECODED_BYTES = 256 << 20
"""Pixels of all image files of one request: a file may be a thousandth of them."""
_MAX_PIXEL = 255
_MAX_KNOWN = 50
_MAX_NAME_LENGTH = 80
_NUMBER_TYPES = frozenset({int, float, type(None)})


class Reader(Protocol):
    """Makes one tensor."""

    def read(self, records: Records, problems: Problems) -> NDArray[Any]:
        """Return the tensor of records; a value of the wrong type is a problem."""

    def check(self, values: NDArray[Any], problems: Problems) -> None:
        """Bring a tensor, in place, to the form that training knows; a value that breaks a rule is a problem."""


class _Columns(Generic[C]):
    """Columns of one kind beside each other, in the order of the signature."""

    def __init__(self, columns: Mapping[str, C], missing_words: Iterable[str]) -> None:
        self._columns = columns
        self._missing = frozenset(word.strip() for word in missing_words) | {""}

    def _tidy(self, text: str) -> str:
        text = text.strip()
        return "" if text in self._missing else text

    def _positions(self) -> Iterator[tuple[int, str, C]]:
        return ((position, name, column) for position, (name, column) in enumerate(self._columns.items()))


class _Numbers(_Columns[NumberColumn]):
    def __init__(self, columns: Mapping[str, NumberColumn], missing_words: Sequence[str]) -> None:
        super().__init__(columns, missing_words)
        self._names = tuple(columns)
        self._pick = itemgetter(*columns) if len(columns) > 1 else None
        self._rules = NumberRules(columns.values())
        numbers = {name: missing_numbers(column, missing_words) for name, column in columns.items()}
        self._missing_numbers = {name: found for name, found in numbers.items() if found}

    def read(self, records: Records, problems: Problems) -> NDArray[np.float64]:
        names, flat = self._names, self._flatten(records)
        types = set(map(type, flat))
        if _NUMBER_TYPES.issuperset(types):
            with contextlib.suppress(OverflowError):  # an integer beyond float64
                if type(None) in types:
                    return np.array(flat, np.float64).reshape(len(records), len(names))
                return np.fromiter(flat, np.float64, len(flat)).reshape(len(records), len(names))  # half of the time
        matrix = np.empty((len(records), len(names)))
        for position, name, column in self._positions():
            for row, value in enumerate(flat[position :: len(names)]):
                number = self._read(value, column)
                if number is None:
                    problems.add_value(row, name, f"{type_rule(column)} or null", value)
                else:
                    matrix[row, position] = number
        return matrix

    def _flatten(self, records: Records) -> list[Any]:
        """Return the values of one record after the other, None for a missing one."""
        if self._pick is not None:
            with contextlib.suppress(KeyError):
                return list(chain.from_iterable(map(self._pick, records)))
        return [record.get(name) for record in records for name in self._names]

    def _read(self, value: Any, column: NumberColumn) -> float | None:
        return _to_float(self._tidy(value) if isinstance(value, str) else value, column)

    def check(self, values: NDArray[np.float64], problems: Problems) -> None:
        with np.errstate(invalid="ignore"):  # a signalling NaN is missing like any other
            values += 0.0  # no negative zero
        for position, name, _ in self._positions() if self._missing_numbers else ():
            if numbers := self._missing_numbers.get(name):
                values[np.isin(values[:, position], numbers), position] = np.nan
        if self._rules.are_kept(values):
            return
        for position, name, column in self._positions():
            problems.add_breaches(name, number_breaches(column, values[:, position]), values[:, position])


class _Times(_Columns[TimeColumn]):
    def __init__(self, columns: Mapping[str, TimeColumn], missing_words: Sequence[str]) -> None:
        super().__init__(columns, missing_words)
        self._missing_numbers = missing_numbers(PLAIN, missing_words)

    def read(self, records: Records, problems: Problems) -> NDArray[np.float64]:
        matrix = np.empty((len(records), len(self._columns)))
        for position, name, column in self._positions():
            values = [record.get(name) for record in records]
            read = self._read_numbers if column.format in MICROS_PER_NUMBER else self._read_texts
            matrix[:, position], is_wrong = read(values, column)
            for row, value in enumerate(values) if datetime in set(map(type, values)) else ():
                if isinstance(value, datetime) and value.tzinfo:  # of a typed table, in no format
                    matrix[row, position], is_wrong[row] = to_seconds(np.array([micros_of(value)]))[0], False
            for row in np.flatnonzero(is_wrong).tolist():
                problems.add_value(row, name, f"{type_rule(column)} or null", values[row])
        return matrix

    def _read_numbers(self, values: Sequence[Any], column: TimeColumn) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        read = [_to_float(self._tidy(value) if isinstance(value, str) else value, PLAIN) for value in values]
        numbers_N = np.array([np.inf if number is None else number for number in read])
        numbers_N[np.isin(numbers_N, self._missing_numbers)] = np.nan
        micros_N, is_time_N = to_micros(numbers_N, MICROS_PER_NUMBER[column.format])
        return np.where(is_time_N, to_seconds(micros_N), np.nan), ~is_time_N & ~np.isnan(numbers_N)

    def _read_texts(self, values: Sequence[Any], column: TimeColumn) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        texts = [_to_text(value) for value in values]
        tidy = [None if text is None else self._tidy(text) for text in texts]
        micros = [read_time(text, column.format) if text else None for text in tidy]
        is_wrong_N = np.array([found is None and text != "" for found, text in zip(micros, tidy, strict=True)], bool)
        seconds_N = to_seconds(np.array([found or 0 for found in micros], np.int64))
        seconds_N[[found is None for found in micros]] = np.nan
        return seconds_N, is_wrong_N

    def check(self, values: NDArray[np.float64], problems: Problems) -> None:
        for position, name, column in self._positions():
            seconds_N, is_time_N = round_seconds(values[:, position])
            values[is_time_N, position] = seconds_N[is_time_N]  # others stay what they are, to be shown
            breaches = list(time_breaches(column, values[:, position]))
            if breaches:
                shown = values[:, position].astype(object)
                is_known_N = is_time_N | np.isnan(values[:, position])
                shown[is_known_N] = [spell_seconds(seconds) for seconds in shown[is_known_N]]
                problems.add_breaches(name, breaches, shown)


class _Texts(_Columns[CategoryColumn | TextColumn]):
    def __init__(self, columns: Mapping[str, CategoryColumn | TextColumn], missing_words: Sequence[str]) -> None:
        super().__init__(columns, missing_words)
        self._forms = {name: form(column) for name, column in columns.items()}

    def read(self, records: Records, problems: Problems) -> NDArray[np.object_]:
        matrix = np.empty((len(records), len(self._columns)), object)
        for position, name, column in self._positions():
            for row, record in enumerate(records):
                value = record.get(name)
                text = matrix[row, position] = _to_text(value)
                if text is None:
                    problems.add_value(row, name, f"{type_rule(column)} or null", value)
        return matrix

    def check(self, values: NDArray[np.object_], problems: Problems) -> None:
        for position, name, column in self._positions():
            made = self._forms[name]
            texts = [self._tidy(text) for text in values[:, position].tolist()]
            if made.steps or made.replace:
                texts = [self._tidy(made.apply(text)) if text else "" for text in texts]
            values[:, position] = texts
            values_N = values[:, position]
            if isinstance(column, TextColumn):
                problems.add_breaches(name, text_breaches(column, values_N), values_N)
            else:
                problems.add_breaches(name, category_breaches(column, values_N), values_N)


class _Series:
    def __init__(self, name: str, column: SeriesColumn, missing_words: Sequence[str]) -> None:
        self._name, self._column = name, column
        self._missing = frozenset(word.strip() for word in missing_words) | {""}

    def read(self, records: Records, problems: Problems) -> NDArray[np.float64]:
        matrix = np.full((len(records), self._column.length), np.nan)
        for row, record in enumerate(records):
            value = record.get(self._name)
            text = _to_text(value)
            if text is not None and text.strip() in self._missing:
                continue
            series = read_series(value)
            if series is None:
                problems.add_value(row, self._name, f"{type_rule(self._column)} or nulls", value)
            elif len(series) != self._column.length:
                problems.add_value(row, self._name, f"must have {self._column.length} values", len(series))
            else:
                matrix[row] = series
        return matrix

    def check(self, values: NDArray[np.float64], problems: Problems) -> None:
        values += 0.0
        problems.add_breaches(self._name, series_breaches(values), np.full(len(values), np.inf))


class _Image:
    def __init__(self, name: str, column: ImageColumn) -> None:
        self._name, self._column = name, column
        self._shape = (column.height, column.width, column.channels)
        self._max_files = max(1, MAX_DECODED_BYTES // num_pixel_bytes(column))

    def read(self, records: Records, problems: Problems) -> NDArray[np.uint8]:
        values = [record.get(self._name) for record in records]
        num_files = sum(isinstance(value, bytes | Mapping) for value in values)
        if num_files > self._max_files:
            rule = f"must be an image file in at most {self._max_files} records at once"
            problems.add(f"records[{self._max_files}].{self._name} {rule}, got {num_files}. Split the request")
            problems.raise_any()
        images = np.zeros((len(records), *self._shape), np.uint8)
        size = "x".join(map(str, self._shape))
        for row, value in enumerate(values):
            if isinstance(value, bytes | Mapping):
                try:
                    pixels = decode_image(_file_of(value), self._column, FILE_FORMATS)
                    images[row] = np.frombuffer(pixels, np.uint8).reshape(self._shape)
                except ValueError as error:
                    problems.add(f"records[{row}].{self._name} {error}")
            elif problem := _put_image(value, images[row]):
                rule = f"must be {size} whole numbers from 0 to 255"
                problems.add(f"records[{row}].{self._name} {rule}, got {problem}")
        return images

    def check(self, values: NDArray[np.uint8], problems: Problems) -> None:
        """Every byte is a pixel."""


class RecordReader:
    """Makes the tensors of a signature; compiled once from its columns."""

    def __init__(self, columns: Mapping[str, Column], unused: Iterable[str], missing_words: Sequence[str]) -> None:
        self._columns = columns
        self._known = frozenset(columns) | frozenset(unused)
        self.readers: dict[str, Reader] = dict(_readers(columns, missing_words))

    def encode(self, records: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """Return checked tensors.

        Raises:
            RecordError: Naming row, field, rule and value; at most 20 of them.
        """
        problems = Problems()
        told: set[str] = set()
        for row, record in enumerate(records):
            if not isinstance(record, Mapping):
                problems.add(f"records[{row}] must be an object of fields, got {show_value(record)}")
            elif not self._known.issuperset(record):
                unknown = {str(name)[:_MAX_NAME_LENGTH] for name in record if name not in self._known} - told
                if unknown:  # else an earlier record has it too: one sentence for all
                    told.add(name := min(unknown))
                    problems.add(f"records[{row}].{name} must be a known field. Known are: {self._list_known()}")
        problems.raise_any()
        feeds = {name: reader.read(records, problems) for name, reader in self.readers.items()}
        problems.raise_any()
        self.check(feeds)
        return feeds

    def check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Bring tensors, in place, to the form that training knows, and hold them against the rules.

        Raises:
            RecordError: Naming row, field, rule and value; at most 20 of them.
        """
        problems = Problems()
        for name, reader in self.readers.items():
            reader.check(feeds[name], problems)
        problems.raise_any()

    def _list_known(self) -> str:
        return ", ".join([*self._columns][:_MAX_KNOWN]) + (", ..." if len(self._columns) > _MAX_KNOWN else "")


def _readers(columns: Mapping[str, Column], missing_words: Sequence[str]) -> Iterator[tuple[str, Reader]]:
    if numbers := {name: column for name, column in columns.items() if isinstance(column, NumberColumn)}:
        yield "numbers", _Numbers(numbers, missing_words)
    if times := {name: column for name, column in columns.items() if isinstance(column, TimeColumn)}:
        yield "times", _Times(times, missing_words)
    for kind, tensor in ((CategoryColumn, "categories"), (TextColumn, "texts")):
        if texts := {name: column for name, column in columns.items() if isinstance(column, kind)}:
            yield tensor, _Texts(texts, missing_words)
    for name, column in columns.items():
        if isinstance(column, SeriesColumn):
            yield f"series_{name}", _Series(name, column, missing_words)
        elif isinstance(column, ImageColumn):
            yield "image", _Image(name, column)


def _to_float(value: Any, column: NumberColumn) -> float | None:
    """Return a number, NaN for what is missing, None for what is no number."""
    if value is None or value == "":
        return np.nan
    if isinstance(value, str):
        return parse_number(value, column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return np.inf


def _to_text(value: Any) -> str | None:
    """Return the text of a value, "" for a missing one, None for what is no single value."""
    if value is None:
        return ""
    with contextlib.suppress(ValueError):  # integers of over 4300 digits, halves of a surrogate pair
        if isinstance(value, str | int | float):
            text = value if isinstance(value, str) else category_text(value)
            text.encode()
            return text
    return None


def _file_of(value: bytes | Mapping[str, Any]) -> bytes:
    """Return an image file that is given as such, or as ``{"b64": base64}``.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, bytes):
        return value
    text = value.get("b64")
    if value.keys() != {"b64"} or not isinstance(text, str):
        raise ValueError(f'must be {{"b64": base64 of an image file}}, got {show_value(value)}')
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("must be an image file in base64, got other characters or a wrong length") from error


def _put_image(value: Any, target: NDArray[np.uint8]) -> str | None:
    """Copy nested lists into ``target``; returns what is wrong, if anything."""
    if (pixels := _nested_pixels(value, target.shape)) is not None:
        target[...] = pixels
        return None
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return "lists of unequal length"
    if array.shape != target.shape:
        return f"the shape {'x'.join(map(str, array.shape)) or show_value(value)}"
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > _MAX_PIXEL:
        return "values outside of that"
    target[...] = array
    return None


def _nested_pixels(value: Any, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the pixels of lists of that shape, in a third of the time that NumPy takes for nested lists; None if NumPy must say what they are."""
    if not isinstance(value, list):
        return None
    height, width, channels = shape
    try:
        pixels = list(chain.from_iterable(value))
        if len(value) != height or {width} != set(map(len, value)) or {channels} != set(map(len, pixels)):
            return None
        found = np.frombuffer(bytes(list(chain.from_iterable(pixels))), np.uint8)
    except (TypeError, ValueError):  # not lists, not whole numbers, or not of a byte
        return None
    return found.reshape(shape) if found.max() > 1 else None  # truth values are no pixels, if all are
