"""Sections ``data`` and ``clean``: where records come from, what their columns mean, which rows may stay."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lepton_ray.spec.base import FiniteFloat, Fraction, ImportPath, PositiveFloat, PositiveInt, Section, StrTuple, Uri

_ROUNDING = 1e-9  # 0.7 + 0.15 + 0.15 misses 1 by less
MISSING_WORDS = ("NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")


class _Source(Section):
    uri: Uri
    """File, or folder whose files with the kind's suffix are read in name order. A local path (relative to the working
    directory) or a pyarrow filesystem URI such as ``s3://bucket/path``."""
    prepare: ImportPath | None = None
    """Function called as ``prepare(path)`` to write the source when nothing is at ``uri`` yet."""


class CsvSource(_Source):
    """Delimited text, RFC 4180, UTF-8, with a header line."""

    kind: Literal["csv"]
    delimiter: Annotated[str, Field(pattern=r"^[\t -!#-~]$")] = ","
    """One ASCII character, not a quote."""


class JsonLinesSource(_Source):
    """One JSON object a line, UTF-8."""

    kind: Literal["jsonl"]


class ParquetSource(_Source):
    """Parquet files."""

    kind: Literal["parquet"]


class ImageFolderSource(_Source):
    """Image files in one folder a class: ``uri/CLASS/NAME.png``."""

    kind: Literal["image_folder"]


Source = Annotated[CsvSource | JsonLinesSource | ParquetSource | ImageFolderSource, Field(discriminator="kind")]


class NumberColumn(Section):
    """A finite number."""

    kind: Literal["number"]
    min: FiniteFloat | None = None
    """Least allowed value; a smaller one is quarantined in training and refused in serving."""
    max: FiniteFloat | None = None
    """Greatest allowed value."""
    required: bool = False
    """Whether a missing value makes the record bad; else it is imputed."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must be at most max ({self.max}), got {self.min}. No value can satisfy both")
        return self


class CategoryColumn(Section):
    """A text out of few."""

    kind: Literal["category"]
    required: bool = False
    """Whether a missing value makes the record bad; else it is imputed."""
    allowed: StrTuple | None = None
    """The only values that are not bad; None allows any."""


class ImageColumn(Section):
    """A picture, rows x columns x channels of uint8."""

    kind: Literal["image"]
    height: Annotated[int, Field(ge=1, le=4096)]
    """Pixels; an image of another size is quarantined."""
    width: Annotated[int, Field(ge=1, le=4096)]
    """Pixels; an image of another size is quarantined."""
    channels: Literal[1, 3] = 3
    """1: grey, 3: red, green, blue. Files are converted."""


class IgnoredColumn(Section):
    """A column that is read and kept beside the row but is no feature, such as a record's number."""

    kind: Literal["ignored"]


def _expand_short_form(value: Any) -> Any:
    """``age: number`` is short for ``age: {kind: number}``."""
    return {"kind": value} if isinstance(value, str) else value


Column = Annotated[
    Annotated[NumberColumn | CategoryColumn | ImageColumn | IgnoredColumn, Field(discriminator="kind")],
    BeforeValidator(
        _expand_short_form,
        json_schema_input_type=Literal["number", "category", "ignored"]
        | NumberColumn
        | CategoryColumn
        | ImageColumn
        | IgnoredColumn,
    ),
]
ColumnName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^_].*$")]


class SplitSpec(Section):
    """Shares of the rows. Rows with equal features always fall into the same split; classes keep their shares."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.7
    val: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.15

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > _ROUNDING:
            raise ValueError(f"train + val + test must be 1, got {total:g}. Change one of them by {1 - total:+g}")
        return self


class DataSpec(Section):
    """Where the records lie and what their columns mean."""

    source: Source
    columns: Annotated[dict[ColumnName, Column], Field(min_length=2, max_length=10_000)]
    """Every column to read, by name; a column of the source that is not named here is left out and reported."""
    label: str
    """The column to predict; of kind category."""
    missing_words: StrTuple = MISSING_WORDS
    """Texts that mean 'missing', in the data and in requests, besides null and the empty text; compared after stripping
    spaces."""
    split: SplitSpec = SplitSpec()
    engine: Literal["auto", "local", "ray"] = "auto"
    """``local`` reads and cleans in this process, ``ray`` through Ray Data with the same functions; ``auto`` takes Ray
    from 1 GiB of files upwards (of the source to ingest, of ``rows.parquet`` to clean)."""

    @property
    def features(self) -> Mapping[str, NumberColumn | CategoryColumn | ImageColumn]:
        """The columns that the model reads, in order."""
        return {
            name: column
            for name, column in self.columns.items()
            if name != self.label and not isinstance(column, IgnoredColumn)
        }

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        label = self.columns.get(self.label)
        if not isinstance(label, CategoryColumn):
            found = "no such column" if label is None else f"one of kind {label.kind!r}"
            raise ValueError(
                f"label must name a column of kind 'category', got {self.label!r} ({found}). Add it to columns"
            )
        if not self.features:
            raise ValueError(f"columns must hold a feature besides the label, got only {list(self.columns)}. Add one")
        images = [name for name, column in self.features.items() if isinstance(column, ImageColumn)]
        is_image_source = isinstance(self.source, ImageFolderSource)
        if is_image_source and (len(images) != 1 or len(self.features) != 1):
            raise ValueError(f"columns must hold one image and the label for an image_folder, got {list(self.columns)}")
        if images and not is_image_source:
            raise ValueError(f"columns of kind image need a source of kind image_folder, got {self.source.kind!r}")
        return self


class OutlierSpec(Section):
    """Training rows far outside the rest are quarantined; validation and test rows stay, as live traffic does."""

    method: Literal["iqr", "z_score"] = "iqr"
    threshold: PositiveFloat = 10.0
    """Allowed distance: from the quartiles in interquartile ranges, or from the mean in standard deviations."""


class CleanSpec(Section):
    """Which rows may stay. What is removed lies in quarantine with its reason and original text."""

    duplicates: Literal["drop", "keep"] = "drop"
    """``drop`` keeps the first of rows that agree in every column of ``data.columns``."""
    max_missing_fraction: Fraction = 0.5
    """A row whose features are missing in more than this share is quarantined."""
    outliers: OutlierSpec | None = None
    max_removed_fraction: Fraction = 0.2
    """The run stops when more than this share of the rows would be removed."""
    min_rows_per_class: PositiveInt = 3
    """A class needs at least this many rows, so that each split can hold one."""
