"""Section ``data``: where records come from, what their columns mean, how rows are split."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lepton_ray.core.frozen import Texts
from lepton_ray.core.patterns import find_pattern_problem, match_whole
from lepton_ray.spec.base import FiniteFloat, PositiveInt, Section, short_form
from lepton_ray.spec.clean import WindowSpec
from lepton_ray.spec.sources import Cifar10Source, ImageFolderSource, Source

_ROUNDING = 1e-9  # 0.7 + 0.15 + 0.15 misses 1 by less
MAX_SERIES_LENGTH = 100_000
MISSING_WORDS = ("NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")

Task = Literal["classification", "multi_label", "regression", "ranking", "anomaly_detection"]
"""What a model is for; losses, metrics, outputs and baselines follow from it."""

TextStep = Literal["nfc", "nfkc", "lower", "accents", "html", "urls", "spaces"]
TextSteps = Annotated[tuple[TextStep, ...], Field(strict=False)]


def _trimmed(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts)


Words = Annotated[Texts, AfterValidator(_trimmed)]
"""Texts that cells are held against, which are trimmed too."""


class NumberColumn(Section):
    """A finite number."""

    kind: Literal["number"]
    min: FiniteFloat | None = None
    """Least allowed value; a smaller one is quarantined in training and refused in serving."""
    max: FiniteFloat | None = None
    """Greatest allowed value."""
    required: bool = False
    """Whether a missing value makes the record bad; else it is imputed."""
    whole: bool = False
    """Whether only whole numbers are allowed."""
    decimal: Literal[".", ","] = "."
    """Decimal sign of numbers that come as text."""
    thousands: Literal["", ",", ".", " ", "'"] = ""
    """Sign that groups the digits of numbers that come as text: ``1,234.5``."""
    units: Texts = ()
    """Texts that may stand before or after a number that comes as text, such as ``$`` or ``kg``; they are left out."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must be at most max ({self.max}), got {self.min}. No value can satisfy both")
        if self.thousands == self.decimal:
            raise ValueError(f"thousands must differ from decimal ({self.decimal!r}). Change one of them")
        return self


class _TextualColumn(Section):
    required: bool = False
    """Whether a missing value makes the record bad; else it is imputed."""
    normalise: TextSteps = ()
    """Done to each text in this order, in training and in serving alike: ``nfc``, ``nfkc`` (Unicode forms), ``lower``
    (case folding), ``accents`` (marks on letters go, and letters come apart as in NFD), ``html`` (tags and entities), ``urls`` (addresses become ``URL``), ``spaces`` (runs of white space become
    one). Spaces around a text are always taken away."""
    pattern: str | None = None
    """Regular expression (RE2: no look-around, no back-references) that the whole text must match, after ``normalise``."""

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        if self.pattern is not None and (problem := find_pattern_problem(self.pattern)):
            raise ValueError(
                f"pattern must be a regular expression of RE2, got {self.pattern!r} ({problem}). Repair it"
            )
        return self


class _ChoiceColumn(_TextualColumn):
    replace: dict[str, str] = Field(default_factory=dict)
    """Spellings and what they stand for: ``{NYC: New York}``. Both sides may be spelled in any way that ``normalise`` makes
    equal."""
    allowed: Words | None = None
    """The only values that are not bad, after ``replace``; None allows any."""

    @model_validator(mode="after")
    def _check_allowed(self) -> Self:
        if self.allowed is not None:
            if not self.allowed:
                raise ValueError("allowed must hold a value, got none: every row would be removed. Add the values")
            if self.pattern is not None and not all(found := match_whole(self.pattern, self.allowed)):
                wrong = self.allowed[found.index(False)]
                raise ValueError(f"allowed must match pattern {self.pattern!r}, got {wrong!r}. No row could have it")
            if lost := [value for value in self.replace.values() if value.strip() not in self.allowed]:
                raise ValueError(f"every value of replace must be one of allowed, got {lost[0]!r}. Add it to allowed")
        return self


class CategoryColumn(_ChoiceColumn):
    """A text out of few."""

    kind: Literal["category"]


class TagsColumn(_ChoiceColumn):
    """A set of texts out of few, any number of which belong to a row: what a multi-label model predicts.

    A source gives it as a list of texts, or as one text: ``Action|Crime``, or a JSON list. Order and repeats mean nothing.
    ``normalise``, ``pattern``, ``replace`` and ``allowed`` are about each tag.
    """

    kind: Literal["tags"]
    separator: Annotated[str, Field(min_length=1, max_length=8)] = "|"
    """What stands between the tags of a text; no tag may hold it."""
    required: bool = False
    """Whether a row to which no tag belongs is bad."""
    none_words: Texts = ()
    """Texts that are no tags but say that none belongs to the row, such as ``(no genres listed)``. With an empty text among
    them a cell that is empty or null says so too; else it is missing. An empty list always says so."""
    rare: Literal["stop", "leave_out"] = "stop"
    """What is done about tags that fewer than ``clean.min_rows_per_class`` rows have: the run stops and names them, or they
    are left out of their rows, which stay."""

    @model_validator(mode="after")
    def _check_separator(self) -> Self:
        for name, texts in (("allowed", self.allowed or ()), ("replace", self.replace.values())):
            if wrong := [text for text in texts if self.separator in text]:
                raise ValueError(
                    f"{name} must hold tags without the separator {self.separator!r}, got {wrong[0]!r}. Change one of them"
                )
        return self


class TextColumn(_TextualColumn):
    """Free text."""

    kind: Literal["text"]
    min_length: PositiveInt | None = None
    """Least number of characters of a text that is not missing."""
    max_length: PositiveInt | None = None
    """Greatest number of characters."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.min_length and self.max_length and self.min_length > self.max_length:
            raise ValueError(
                f"min_length must be at most max_length ({self.max_length}), got {self.min_length}. No text can satisfy both"
            )
        return self


class TimeColumn(Section):
    """A point in time, UTC unless the text has an offset; kept to the microsecond."""

    kind: Literal["time"]
    required: bool = False
    """Whether a missing value makes the record bad; else it is imputed."""
    format: str = "iso"
    """``iso`` (ISO 8601: ``2024-01-31``, ``2024-01-31T12:00:00.5+02:00``), ``epoch_s`` or ``epoch_ms`` (numbers since
    1970), or a strptime pattern such as ``%d.%m.%Y``."""
    min: str | None = None
    """Earliest allowed time, ISO 8601."""
    max: str | None = None
    """Latest allowed time, ISO 8601."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        for name in ("min", "max"):
            if (text := getattr(self, name)) is not None and parse_iso(text) is None:
                raise ValueError(f"{name} must be an ISO 8601 time, got {text!r}. Write it as 2024-01-31T12:00:00Z")
        low, high = (parse_iso(text) if text else None for text in (self.min, self.max))
        if low and high and low > high:
            raise ValueError(f"min must be at most max ({self.max}), got {self.min}. No value can satisfy both")
        if self.format not in ("iso", "epoch_s", "epoch_ms") and not _is_pattern(self.format):
            raise ValueError(
                f"format must be 'iso', 'epoch_s', 'epoch_ms' or a strptime pattern, got {self.format!r}. Choose one"
            )
        return self


def _is_pattern(pattern: str) -> bool:
    """Whether strptime reads back what strftime writes by the pattern."""
    try:
        datetime.strptime(datetime(2024, 1, 31, tzinfo=UTC).strftime(pattern), pattern)
    except (ValueError, re.error):  # an expression is made of it, in which a directive may stand once
        return False
    return "%" in pattern


def parse_iso(text: str) -> datetime | None:
    """Return the time that an ISO 8601 text names, in UTC, or None if it names none."""
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # an offset may lead out of the years 1 to 9999
        return None


class SeriesColumn(Section):
    """The latest values of a series, oldest first: what a forecast looks back on.

    A source gives it as a list, in a CSV file as a JSON list.
    """

    kind: Literal["series"]
    length: Annotated[int, Field(ge=1, le=MAX_SERIES_LENGTH)]
    """Number of values; a list of another length is bad. Values may be missing."""


class ImageColumn(Section):
    """A picture, rows x columns x channels of uint8."""

    kind: Literal["image"]
    height: Annotated[int, Field(ge=1, le=4096)]
    """Pixels; an image of another size is quarantined."""
    width: Annotated[int, Field(ge=1, le=4096)]
    """Pixels; an image of another size is quarantined."""
    channels: Literal[1, 3] = 3
    """1: grey, 3: red, green, blue. Files are converted."""


_CIFAR_IMAGE = ImageColumn(kind="image", height=32, width=32, channels=3)


class IgnoredColumn(Section):
    """A column that is read and kept beside the row but is no feature, such as a record's number."""

    kind: Literal["ignored"]


FeatureColumn = NumberColumn | CategoryColumn | TextColumn | TimeColumn | SeriesColumn | ImageColumn
Column = Annotated[
    Annotated[FeatureColumn | TagsColumn | IgnoredColumn, Field(discriminator="kind")],
    BeforeValidator(
        short_form,
        json_schema_input_type=Literal["number", "category", "text", "time", "tags", "ignored"]
        | FeatureColumn
        | TagsColumn
        | IgnoredColumn,
    ),
]
ColumnName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^_].*$")]


class SplitSpec(Section):
    """Shares of the rows. Rows with equal features always fall into the same split, and classes keep their shares, unless ``by`` is given."""

    train: Annotated[float, Field(gt=0, le=1)] = 0.7
    val: Annotated[float, Field(ge=0, lt=1)] = 0.15
    test: Annotated[float, Field(ge=0, lt=1)] = 0.15
    by: str | None = None
    """Time or number column in whose order rows are split, for a model that looks ahead: the latest rows are ``test``, those
    before them ``val``. Rows with equal values stay together; one without a value is in ``train``."""

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > _ROUNDING:
            raise ValueError(f"train + val + test must be 1, got {total:g}. Change one of them by {1 - total:+g}")
        return self


class AnomalySpec(Section):
    """Find rows unlike the others: a model learns what normal rows look like; the label, if there is one, only measures it."""

    normal_class: str | None = None
    """Class of the label whose rows are normal: features and model are fitted on those of the training split. Without a label all
    rows count as normal."""
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Share of the normal validation rows whose score is no anomaly's: it sets the threshold."""


class RankSpec(Section):
    """Learn which rows of a group (a user, a query) stand above which others of it: the greater label first, by how much does not count."""

    group_by: str
    """Category or ignored column: rows with its same value are compared; rows without a value are not learned from."""


class DataSpec(Section):
    """Where the records lie and what their columns mean."""

    source: Source
    columns: Annotated[dict[ColumnName, Column], Field(min_length=1, max_length=10_000)]
    """Every column to read, by name; a column of the source that is not named here is left out and reported."""
    windows: dict[ColumnName, WindowSpec] = Field(default_factory=dict)
    """Series columns that are made from earlier rows, by name; a record for prediction brings its own series."""
    label: str | None = None
    """The column to predict: a category, a number, tags (several labels a row), or a series, which may be a window that looks ahead
    (regression). None for a run that ends with the features, or for anomalies that nobody has marked."""
    anomalies: AnomalySpec | None = None
    """Makes the task anomaly detection."""
    ranking: RankSpec | None = None
    """Makes the task ranking, by the numbers that the label holds; a package answers with a score that puts rows in order."""
    missing_words: Words = MISSING_WORDS
    """Texts that mean 'missing', in the data and in requests, besides null and the empty text; compared after stripping
    spaces. One that is a number, such as -999, means so however it is written. What is given takes the place of the default."""
    split: SplitSpec = SplitSpec()
    profile: bool = True
    """Whether the columns are described, before and after cleaning, for the report."""
    engine: Literal["auto", "local", "ray"] = "auto"
    """``local`` reads and cleans with threads of this process, ``ray`` through Ray Data with the same functions; ``auto``
    takes Ray from 4 GiB of source upwards. The result is the same."""

    @property
    def all_columns(self) -> Mapping[str, Column]:
        """Columns that are read, then those that ``windows`` make."""
        made = {name: SeriesColumn(kind="series", length=window.length) for name, window in self.windows.items()}
        return {**self.columns, **made}

    @property
    def features(self) -> Mapping[str, FeatureColumn]:
        """The columns that the model reads, in order."""
        return {
            name: column
            for name, column in self.all_columns.items()
            if name != self.label and not isinstance(column, IgnoredColumn | TagsColumn)
        }

    @property
    def class_label(self) -> str | None:
        """The label if it is a category, so that there are classes."""
        return self.label if self.label and isinstance(self.all_columns[self.label], CategoryColumn) else None

    @property
    def tags_label(self) -> TagsColumn | None:
        """The label's column if its values are tags, each of which is a class."""
        column = self.all_columns[self.label] if self.label else None
        return column if isinstance(column, TagsColumn) else None

    @property
    def has_classes(self) -> bool:
        """Whether the label is a category or tags."""
        return self.class_label is not None or self.tags_label is not None

    @property
    def task(self) -> Task | None:
        """What a model of this data is for; None for a run that ends with the features."""
        if self.anomalies is not None:
            return "anomaly_detection"
        if self.ranking is not None:
            return "ranking"
        if self.label is None:
            return None
        if self.tags_label is not None:
            return "multi_label"
        return "regression" if self.class_label is None else "classification"

    @property
    def read_features(self) -> Mapping[str, FeatureColumn]:
        """Those of ``features`` that are read from the source."""
        return {name: column for name, column in self.features.items() if name in self.columns}

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        label = self.all_columns.get(self.label) if self.label is not None else None
        if self.label is not None and not isinstance(label, CategoryColumn | NumberColumn | SeriesColumn | TagsColumn):
            found = "no such column" if label is None else f"one of kind {label.kind!r}"
            raise ValueError(
                f"label must name a column of kind 'category', 'number', 'tags' or 'series', got {self.label!r} ({found}). "
                "Add it to columns"
            )
        for name, column in self.columns.items():
            if isinstance(column, TagsColumn) and name != self.label:
                raise ValueError(
                    f"columns.{name} must be the label to be of kind 'tags': tags are no features yet, got label "
                    f"{self.label!r}. Make it ignored, or a text"
                )
        self._check_anomalies()
        self._check_ranking()
        if not self.read_features:
            raise ValueError(f"columns must hold a feature besides the label, got only {list(self.columns)}. Add one")
        if self.split.by is not None:
            self._check_order(self.split.by)
        images = [name for name, column in self.features.items() if isinstance(column, ImageColumn)]
        if len(images) > 1:
            raise ValueError(f"columns must hold at most one image, got {', '.join(images)}. Ignore the others")
        is_image_source = isinstance(self.source, ImageFolderSource)
        if is_image_source and label is not None and self.class_label is None:
            raise ValueError(
                f"label must be a category for an image_folder, got the {label.kind} {self.label!r}. Change its kind"
            )
        if is_image_source and (len(images) != 1 or len(self.features) != 1):
            raise ValueError(f"columns must hold one image and the label for an image_folder, got {list(self.columns)}")
        if isinstance(self.source, Cifar10Source) and self.columns.get("image") != _CIFAR_IMAGE:
            raise ValueError(
                "columns.image must be {kind: image, height: 32, width: 32, channels: 3} for cifar10, got "
                f"{_shown(self.columns.get('image'))}. Write it so"
            )
        return self

    def _check_anomalies(self) -> None:
        if self.anomalies is None:
            return
        if self.label != self.class_label:
            raise ValueError(
                f"label must be a category, or left out, for anomalies, got {self.label!r}. Make it one that tells normal rows"
            )
        if (self.label is None) != (self.anomalies.normal_class is None):
            raise ValueError(
                f"anomalies.normal_class must be given with a label and only then, got {self.anomalies.normal_class!r} with "
                f"label {self.label!r}. Name the class of the normal rows, or remove it"
            )

    def _check_ranking(self) -> None:
        if self.ranking is None:
            return
        if self.anomalies is not None:
            raise ValueError("ranking must be left out with anomalies, got both. Remove one of them")
        label = self.all_columns[self.label] if self.label else None
        if not isinstance(label, NumberColumn):
            found = f"the {label.kind} {self.label!r}" if label else "None"
            raise ValueError(
                f"label must name a column of kind 'number' for ranking, got {found}. Give grades, such as 0 and 1, as a number"
            )
        if problem := self.group_problem(self.ranking.group_by):
            raise ValueError(f"ranking.{problem}")

    def group_problem(self, name: str) -> str | None:
        """Return a sentence on a ``group_by`` that names no column whose values make groups."""
        column = self.columns.get(name)
        if name != self.label and isinstance(column, CategoryColumn | IgnoredColumn):
            return None
        return (
            f"group_by must name a column of kind 'category' or 'ignored' that is not the label, got {name!r} "
            f"({self._found(name)}). Name another"
        )

    def _check_order(self, by: str) -> None:
        if by == self.label or not isinstance(self.columns.get(by), TimeColumn | NumberColumn):
            raise ValueError(
                f"split.by must name a column of kind 'time' or 'number' that is not the label, got {by!r} ({self._found(by)}). "
                "Name another, or leave it out"
            )

    def _found(self, name: str) -> str:
        column = self.columns.get(name)
        return "the label" if name == self.label else f"of kind {column.kind!r}" if column else "no such column"


def _shown(column: Section | None) -> str:
    return "no such column" if column is None else str(column.model_dump())
