"""What a profile says of a table: facts about each column and about columns together, small enough to keep with a run.

``data.profile`` makes it, ``data.compare`` tells two apart, ``evaluate.report`` draws it. A ``Distribution`` keeps the
shape of a column's numbers at up to some hundred values, exactly: two of them can be compared on any common scale.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, Strict

from lepton_ray.core.frozen import Floats, Frozen, Ints, Texts

QUANTILES = {
    "0%": 0.0,
    "1%": 0.01,
    "5%": 0.05,
    "25%": 0.25,
    "50%": 0.5,
    "75%": 0.75,
    "95%": 0.95,
    "99%": 0.99,
    "100%": 1.0,
}
"""Levels of the quantiles of numbers, interpolated linearly."""


class Distribution(Frozen):
    """Numbers of rows up to certain values: all distinct values while they are few, else values at equal steps of rank.

    At these values the counts are exact; between two neighbours lie few rows, which are taken as evenly spread.
    """

    values: Floats
    """Increasing; the first is the least of the column, the last the greatest."""
    below: Ints
    """Rows with a smaller value than each of ``values``."""
    through: Ints
    """Rows with at most this value."""

    @property
    def total(self) -> int:
        """Number of values in the column."""
        return self.through[-1]

    def share_through(self, points: ArrayLike) -> NDArray[np.float64]:
        """Share of the values that are at most each point."""
        return self._share(points, is_closed=True)

    def share_below(self, points: ArrayLike) -> NDArray[np.float64]:
        """Share of the values that are less than each point."""
        return self._share(points, is_closed=False)

    def _share(self, points: ArrayLike, is_closed: bool) -> NDArray[np.float64]:
        x = np.asarray(points, np.float64)
        values = np.array(self.values)
        at = np.searchsorted(values, x, side="right") - 1
        inside = np.clip(at, 0, len(values) - 1)
        following = np.minimum(inside + 1, len(values) - 1)
        start, end = np.array(self.through)[inside], np.array(self.below)[following]
        width = values[following] / 2 - values[inside] / 2  # halves: the width of a column of huge numbers overflows
        share = np.divide(x / 2 - values[inside] / 2, width, out=np.zeros(x.shape), where=width > 0)
        rows = start + (np.maximum(end, start) - start) * np.clip(share, 0, 1)
        if not is_closed:
            rows = np.where(values[inside] == x, np.array(self.below)[inside], rows)
        result: NDArray[np.float64] = np.where(at < 0, 0, rows) / self.total
        return result


class Histogram(Frozen):
    """Equal bins over the bulk of the values, and how many lie outside."""

    edges: Floats
    """One more than bins; a value on an inner edge belongs to the bin that it starts, one on the last to the last bin."""
    counts: Ints
    below: int
    """Values less than the first edge."""
    above: int
    """Values greater than the last edge."""


class NumberSummary(Frozen):
    """Shape of some numbers, at least one."""

    mean: float
    std: float | None
    """Standard deviation of the sample (n - 1); None for one number or where it is out of a float's range."""
    quantiles: dict[str, float]
    """By the names in ``QUANTILES``; ``0%`` is the least and ``100%`` the greatest number."""
    histogram: Histogram
    distribution: Distribution


class ValueCount(Frozen):
    """A value and the number of rows that have it."""

    value: str
    """A long text is cut, with a digest of all of it at its end."""
    count: int


Counts = Annotated[tuple[ValueCount, ...], Strict(False)]


class _ColumnFacts(Frozen):
    count: int
    """Rows with a value."""
    missing: int
    """Rows without one."""
    distinct: int
    """Different values."""

    @property
    def missing_fraction(self) -> float:
        """Share of the rows without a value."""
        return self.missing / max(self.count + self.missing, 1)


class NumberProfile(_ColumnFacts):
    """Facts of a column of numbers."""

    kind: Literal["number"] = "number"
    numbers: NumberSummary | None
    """None without a value."""
    zeros: int
    negative: int


class _CountedFacts(_ColumnFacts):
    top: Counts
    """Most frequent values first, equally frequent ones by code point; all values while they are few."""

    @property
    def is_complete(self) -> bool:
        """Whether ``top`` has all values."""
        return len(self.top) == self.distinct


class CategoryProfile(_CountedFacts):
    """Facts of a column of categories."""

    kind: Literal["category"] = "category"


class TagsProfile(_CountedFacts):
    """Facts of a column of tags: ``distinct`` and ``top`` are about single tags, each counted in the rows that have it."""

    kind: Literal["tags"] = "tags"
    sizes: NumberSummary | None
    """Tags of a row."""


class TextProfile(_ColumnFacts):
    """Facts of a column of texts."""

    kind: Literal["text"] = "text"
    lengths: NumberSummary | None
    """Characters of the texts that are there."""
    empty: int
    """Texts of white space only."""
    words: Counts
    """Most frequent words, with the number of texts looked at that have it."""
    words_of: int
    """Number of texts looked at: the distinct ones, or those of least hash when there are many."""


class TimeProfile(_ColumnFacts):
    """Facts of a column of times."""

    kind: Literal["time"] = "time"
    first: str | None
    """ISO 8601, UTC."""
    last: str | None
    seconds: NumberSummary | None
    """Of the seconds since 1970."""
    median_gap_s: float | None
    """Between distinct times that follow each other."""
    longest_gap_s: float | None
    longest_gap_after: str | None
    """The time before the longest gap; the first if there are several."""


class SeriesProfile(_ColumnFacts):
    """Facts of a column of series."""

    kind: Literal["series"] = "series"
    length: int
    missing_elements: int
    """In the series that are there."""
    elements: NumberSummary | None


class ImageProfile(_ColumnFacts):
    """Facts of a column of images."""

    kind: Literal["image"] = "image"
    shape: Ints
    """Rows, columns, channels."""
    channel_means: Floats
    """0 to 255."""
    channel_stds: Floats
    """Over all pixels."""
    brightness: NumberSummary | None
    """Of the mean pixel of each image."""


class IgnoredProfile(_ColumnFacts):
    """Facts of a column that is no feature."""

    kind: Literal["ignored"] = "ignored"


ColumnProfile = Annotated[
    NumberProfile
    | CategoryProfile
    | TagsProfile
    | TextProfile
    | TimeProfile
    | SeriesProfile
    | ImageProfile
    | IgnoredProfile,
    Field(discriminator="kind"),
]


class Matrix(Frozen):
    """A number for each pair of columns; None where it is not defined."""

    rows: Texts
    columns: Texts
    values: Annotated[tuple[Annotated[tuple[float | None, ...], Strict(False)], ...], Strict(False)]


class Profile(Frozen):
    """Facts about a table; the same for any order of its rows."""

    version: Literal[1] = 1
    rows: int
    """Rows that were looked at."""
    rows_total: int
    """Rows that they stand for: more than ``rows`` if these are a sample."""
    columns: dict[str, ColumnProfile]
    complete_rows: int
    """Rows without a missing value, among those looked at."""
    missing_per_row: Ints
    """Rows with 0, 1, 2 ... missing values; the last counts all that have more."""
    missing_together: Matrix | None = None
    """Correlation of being missing, among the columns that miss most; None with fewer than two."""
    pearson: Matrix | None = None
    """Pearson's correlation, -1 to 1, of numbers, over the rows where both are there."""
    cramers_v: Matrix | None = None
    """Cramer's V, 0 to 1, of categories, corrected for bias: chance alone gives about 0."""
    correlation_ratio: Matrix | None = None
    """How far a category (rows) tells a number (columns), 0 to 1, corrected for bias."""

    @property
    def is_sample(self) -> bool:
        """Whether the rows looked at are not all."""
        return self.rows < self.rows_total

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """Read what ``model_dump_json`` wrote.

        Raises:
            pydantic.ValidationError: If it is something else.
        """
        return cls.model_validate_json(text)


def summary_of(column: ColumnProfile) -> NumberSummary | None:
    """The numbers that stand for a column's shape: its values, seconds, lengths, tags a row, elements or brightness."""
    match column:
        case NumberProfile():
            return column.numbers
        case TimeProfile():
            return column.seconds
        case TextProfile():
            return column.lengths
        case TagsProfile():
            return column.sizes
        case SeriesProfile():
            return column.elements
        case ImageProfile():
            return column.brightness
        case _:
            return None


def share_between(distribution: Distribution, edges: Sequence[float]) -> NDArray[np.float64]:
    """Share of the values in each bin, the last of which holds its upper edge too."""
    below = distribution.share_below(edges)
    below[-1] = distribution.share_through(edges[-1:])[0]
    result: NDArray[np.float64] = np.diff(below)
    return result
