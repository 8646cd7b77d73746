"""Section ``clean``: which rows may stay. It never changes a value.

What one value may be stands in ``data.columns``; how values are changed for the model stands in ``features``.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lepton_ray.core.frozen import Texts
from lepton_ray.spec.base import Fraction, PositiveFloat, PositiveInt, Section
from lepton_ray.spec.row_rules import Columns, Preference, Rule, as_tuple, one_or_many

_DEFAULT_DISTANCE = 10.0
_MAX_SERIES_LENGTH = 100_000
_MIN_RECALL = 0.995  # of pairs with exactly the similarity asked for; of more alike ones more are found

REASONS = {
    "wrong_header": "the file's header lacks columns or repeats one",
    "ragged_row": "another number of cells than the header",
    "malformed_quotes": "a quote that is never closed",
    "invalid_utf8": "bytes that are not UTF-8",
    "invalid_json": "a line that is no JSON object",
    "unreadable_image": "a file that is no image, or one of another size",
    "type_error": "a value of the wrong type",
    "out_of_range": "a number outside min and max",
    "not_allowed": "a category that is not allowed",
    "pattern_mismatch": "a text of another form than the pattern",
    "wrong_length": "a text or a series that is too short or too long",
    "missing_required": "a required value is missing",
    "missing_label": "the label is missing",
    "too_many_missing": "too many missing values",
    "rule_broken": "a rule across columns",
    "foreign_key": "a key that is not in the reference",
    "not_unique": "another row has the same key",
    "duplicate": "the same as an earlier row",
    "near_duplicate": "a text nearly the same as another row's",
    "too_short": "too few rows before it for its window",
    "label_in_later_split": "its label looks ahead into a later split",
    "outlier": "far outside the other training rows",
}
"""Why a row can be removed, for people, by the ledger's words: ``max_removed`` may name them."""


class DuplicatesSpec(Preference):
    """Of rows with one key, one stays; a missing value is a value like any other here."""

    columns: Texts = ()
    """The key; every column of ``data.columns`` by default."""

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.by is not None and not self.columns:
            raise ValueError(
                f"columns must name a key when keep is {self.keep!r}, got none: rows that agree in every column agree in "
                f"{self.by!r}. Name the key, or remove keep and by"
            )
        return self


class NearDuplicatesSpec(Section):
    """Of rows whose texts are nearly the same, one stays: the one with the least hash, whatever the order of the rows.

    Texts are compared after Unicode form NFKC, in lower case, with anything but letters and digits taken as one space.
    Likeness is Jaccard's: shared shingles / all shingles. Likeness links rows into clusters; of each cluster one row stays.
    """

    columns: Columns
    """Text, category or ignored columns; several are compared as one text."""
    similarity: Annotated[float, Field(ge=0.2, le=1)] = 0.8
    """Least Jaccard similarity of two texts that are near duplicates."""
    shingle: Literal["characters", "words"] = "characters"
    """What a shingle is made of."""
    ngram: Annotated[int, Field(ge=1, le=32)] = 5
    """Length of a shingle, in characters or words; a shorter text is one shingle."""
    num_permutations: Annotated[int, Field(ge=16, le=1024)] = 128
    """Numbers in a text's sketch: more find more of the pairs close to ``similarity``, in more time and memory (8 bytes each
    a row)."""
    min_characters: PositiveInt = 1
    """A text with fewer characters, after the above, is compared with none."""

    @model_validator(mode="after")
    def _check_recall(self) -> Self:
        if self.recall < _MIN_RECALL:
            raise ValueError(
                f"num_permutations must be more to find texts of similarity {self.similarity:g}, got {self.num_permutations} "
                f"(finds {self.recall:.0%} of them). Raise it, or similarity"
            )
        return self

    @property
    def rows_per_band(self) -> int:
        """Numbers of a sketch that make a band: the most with which the threshold is still found."""
        choices = range(self.num_permutations, 1, -1)
        return next((rows for rows in choices if self._recall_of(rows) >= _MIN_RECALL), 1)

    @property
    def num_bands(self) -> int:
        """Bands of a sketch."""
        return self.num_permutations // self.rows_per_band

    @property
    def recall(self) -> float:
        """Probability that a pair with exactly ``similarity`` shares a band."""
        return self._recall_of(self.rows_per_band)

    def _recall_of(self, rows: int) -> float:
        return 1 - (1 - self.similarity**rows) ** (self.num_permutations // rows)


class OutlierSpec(Section):
    """Training rows far outside the rest are quarantined; validation and test rows stay, as live traffic does."""

    columns: Texts = ()
    """Number columns; every number among the features by default."""
    method: Literal["iqr", "z_score", "mad", "quantile"] = "iqr"
    """How bounds are fitted on the training rows: from quartiles, mean and standard deviation, median and median absolute
    deviation, or as quantiles."""
    threshold: PositiveFloat | None = None
    """Allowed distance, 10 by default: from the quartiles in interquartile ranges, from the mean in standard deviations, from
    the median in median absolute deviations x 1.4826 (a standard deviation, were the values normal)."""
    low: Annotated[float, Field(ge=0, lt=1)] | None = None
    """For ``quantile``: values below this quantile are outliers; 0 by default."""
    high: Annotated[float, Field(gt=0, le=1)] | None = None
    """For ``quantile``: values above this quantile are outliers; 1 by default."""
    per: str | None = None
    """Category column: each of its values has bounds of its own; rows where it is missing are a group too."""

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        is_quantile = self.method == "quantile"
        for name in ("threshold",) if is_quantile else ("low", "high"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"{name} must be left out when method is {self.method!r}, got {value}. Remove it")
        low, high = self.quantiles
        if is_quantile and low >= high:
            raise ValueError(f"low must be less than high ({high}), got {low}. No value can satisfy both")
        if is_quantile and (low, high) == (0, 1):
            raise ValueError("low or high must be given when method is 'quantile', got neither. Add low: 0.01")
        return self

    @property
    def quantiles(self) -> tuple[float, float]:
        """Lower and upper quantile."""
        return self.low or 0.0, 1.0 if self.high is None else self.high

    @property
    def distance(self) -> float:
        """``threshold``, or its default."""
        return _DEFAULT_DISTANCE if self.threshold is None else self.threshold


class LeakageSpec(Section):
    """Looks for features that give the label away."""

    max_association: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Greatest allowed association of a feature with the label, from 0 (it tells nothing) to 1 (it tells the label): the share
    by which rows differ less in their class when they have the same category, or are neighbours in a number's or time's order.
    Whether a value is missing is looked at too."""


class ImbalanceSpec(Section):
    """Looks at the shares of the classes."""

    min_class_fraction: Fraction = 0.01
    """Least share of the rows that a class may have."""
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    """Greatest allowed ratio of the most frequent class to the least frequent."""


class ChecksSpec(Section):
    """What is looked at in a sample of the training rows after cleaning; none removes a row."""

    leakage: LeakageSpec | None = LeakageSpec()
    """null leaves the check out."""
    imbalance: ImbalanceSpec | None = ImbalanceSpec()
    """null leaves the check out."""
    constant_columns: bool = True
    """Looks for features that hold one value only."""
    action: Literal["warn", "stop"] = "warn"
    """``warn`` reports what is found, ``stop`` ends the run with it."""


class WindowSpec(Section):
    """A series column made from a long table: for each row the values of other rows of the same entity, before it or after.

    The rows of an entity are ordered by time. A row's window holds ``length`` values, oldest first, the last of which lies
    ``horizon`` rows before the row. Only the label may look ahead.
    """

    value: str
    """Number column whose values a window holds."""
    time: str
    """Time or number column that orders the rows of an entity; a row where it is missing has no window and is in none."""
    entity: Texts = ()
    """Columns whose values name an entity, such as a shop and a product; without any all rows are one series."""
    length: Annotated[int, Field(ge=1, le=_MAX_SERIES_LENGTH)]
    """Number of values in a window."""
    horizon: Annotated[int, Field(ge=-_MAX_SERIES_LENGTH, le=_MAX_SERIES_LENGTH)] = 1
    """Rows between a row and the last value of its window: 1 ends with the row before, 0 with the row itself, -7 with the seventh
    row after it (with ``length`` 7: the week to come)."""
    short: Literal["remove", "pad"] = "remove"
    """A row with too few rows before it, or after it, is removed (``too_short``), or those values are missing."""


def _expand_duplicates(value: Any) -> Any:
    """``drop`` and ``keep`` are short for the defaults and for null."""
    if not isinstance(value, str):
        return value
    if value not in ("drop", "keep"):
        raise PydanticCustomError("duplicates", "must be 'drop', 'keep' or a mapping")
    return {} if value == "drop" else None


class CleanSpec(Section):
    """Which rows may stay. What is removed lies in quarantine with its reason and original text."""

    duplicates: Annotated[
        DuplicatesSpec | None,
        BeforeValidator(_expand_duplicates, json_schema_input_type=Literal["drop", "keep"] | DuplicatesSpec | None),
    ] = DuplicatesSpec()
    """``drop`` keeps the first of rows that agree in every column of ``data.columns``, ``keep`` all of them; a mapping names
    a key and which of its rows stays."""
    near_duplicates: NearDuplicatesSpec | None = None
    rules: Annotated[tuple[Rule, ...], Field(strict=False)] = ()
    """What rows must fulfil across columns and among each other."""
    max_missing_fraction: Fraction = 0.5
    """A row whose features are missing in more than this share is quarantined."""
    outliers: Annotated[OutlierSpec | tuple[OutlierSpec, ...] | None, one_or_many(OutlierSpec)] = None
    """One way to find outliers, or a list of them: a row is removed if any finds it."""
    max_removed_fraction: Fraction = 0.2
    """The run stops when more than this share of the rows would be removed."""
    max_removed: dict[str, Fraction] = Field(default_factory=dict)
    """The same for single reasons: ``{outlier: 0.01}``."""
    min_rows_per_class: PositiveInt = 3
    """A class needs at least this many rows, so that each split can hold one."""
    checks: ChecksSpec = ChecksSpec()

    @property
    def outlier_rules(self) -> tuple[OutlierSpec, ...]:
        """``outliers`` as a tuple."""
        return as_tuple(self.outliers)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [rule.name for rule in self.rules if rule.name is not None]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"rules must have names of their own, got {repeated[0]!r} twice. Change one")
        return self
