"""Sections ``features.times``, ``texts``, ``series`` and ``images``: how columns reach the model that hold more than a value."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, Strict, Tag, model_validator

from lepton_ray.spec.base import FiniteFloat, IntTuple, PositiveFloat, PositiveInt, Section, short_form
from lepton_ray.spec.data import parse_iso
from lepton_ray.spec.features_choice import require_unique, word_or_section
from lepton_ray.spec.features_number import Scale

_MAX_TOKENS = 1_000_000
_MAX_NGRAM = 8

TimePart = Literal["age", "year", "month", "day", "weekday", "hour", "minute", "day_of_year", "is_weekend"]
CyclicPart = Literal["month", "day", "weekday", "hour", "minute", "day_of_year"]


class TimeFeatures(Section):
    """How points in time reach the model; all parts are of UTC."""

    impute: Literal["median", "mean", "most_frequent"] = "median"
    missing_indicator: bool = False
    """A column that is 1 where the value was missing."""
    parts: Annotated[tuple[TimePart, ...], Strict(False)] = ("age", "is_weekend")
    """Numbers, scaled by ``scale``: ``age`` counts days back from ``reference``, ``weekday`` is 0 on Mondays, months
    and days count from 1."""
    cyclic: Annotated[tuple[CyclicPart, ...], Strict(False)] = ("month", "weekday", "hour")
    """Parts that come as a point on a circle, two columns each: sine and cosine."""
    reference: str | None = None
    """The time, ISO 8601, that ``age`` counts back from; None takes the latest of the training rows."""
    scale: Scale = "standard"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reference is not None and parse_iso(self.reference) is None:
            raise ValueError(f"reference must be an ISO 8601 time, got {self.reference!r}. Write it as 2024-01-31")
        if not self.parts and not self.cyclic:
            raise ValueError("parts or cyclic must name a part, got none. Ignore the column in data.columns instead")
        require_unique("parts", self.parts)
        require_unique("cyclic", self.cyclic)
        return self

    @property
    def reference_time(self) -> datetime | None:
        """``reference`` as a time."""
        return parse_iso(self.reference) if self.reference is not None else None


class WordTokens(Section):
    """Runs of letters, digits and marks of any script."""

    kind: Literal["words"]


class CharacterTokens(Section):
    """Single characters, white space too."""

    kind: Literal["characters"]


class SubwordTokens(Section):
    """The pieces of a vocabulary file in the form of Hugging Face's ``tokenizer.json``, models WordLevel and WordPiece."""

    kind: Literal["subwords"]
    tokenizer_file: str
    """A local path; the vocabulary goes into the fitted state, so that serving does not need the file."""


Ngrams = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]


class _Vectors(Section):
    ngrams: Ngrams = (1, 1)
    """Least and greatest number of neighbouring tokens that count as one."""

    @model_validator(mode="after")
    def _check_ngrams(self) -> Self:
        if self.ngrams[0] > self.ngrams[1] or self.ngrams[1] > _MAX_NGRAM:
            raise ValueError(
                f"ngrams must be [LEAST, GREATEST] with 1 <= LEAST <= GREATEST <= {_MAX_NGRAM}, got {list(self.ngrams)}. "
                "Swap or lower them"
            )
        return self


class _Counted(_Vectors):
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = 1000
    """Only those in most documents have a column."""
    min_count: PositiveInt = 2
    """Tokens in fewer training documents have no column."""


class BagEncoding(_Counted):
    """How often each token of the vocabulary occurs."""

    kind: Literal["bag"]


class TfIdfEncoding(_Counted):
    """Counts times log((1 + documents) / (1 + documents with the token)) + 1, each row of length 1."""

    kind: Literal["tf_idf"]


class TextHashEncoding(_Vectors):
    """How many tokens fall into each of ``num_buckets``, by MurmurHash3; nothing is learnt."""

    kind: Literal["hash"]
    num_buckets: Annotated[int, Field(ge=2, le=65536)] = 256
    signed: bool = False
    """Half of the tokens count as -1, so that collisions cancel out on average."""


class IdsEncoding(Section):
    """The number of each token in the vocabulary, in order: 0 pads, 1 is unknown. The model gets them as ``tokens``."""

    kind: Literal["ids"]
    max_length: Annotated[int, Field(ge=1, le=8192)] = 128
    """Tokens of a row; further ones are cut off."""
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = 20_000
    """Only those in most documents are known; a tokenizer file has its own vocabulary."""
    min_count: PositiveInt = 2
    """Tokens in fewer training documents are unknown."""


_Tokens = WordTokens | CharacterTokens | SubwordTokens
Tokens = Annotated[
    _Tokens,
    Field(discriminator="kind"),
    BeforeValidator(short_form, json_schema_input_type=Literal["words", "characters"] | _Tokens),
]
_TextEncoding = BagEncoding | TfIdfEncoding | TextHashEncoding | IdsEncoding
TextEncoding = Annotated[
    _TextEncoding,
    Field(discriminator="kind"),
    BeforeValidator(short_form, json_schema_input_type=Literal["bag", "tf_idf", "hash", "ids"] | _TextEncoding),
]


class TextFeatures(Section):
    """How texts reach the model; a missing text has no tokens.

    Case and Unicode form are settled by ``normalise`` of the column in ``data``.
    """

    tokens: Tokens = WordTokens(kind="words")
    encode: TextEncoding = TfIdfEncoding(kind="tf_idf")
    """``tf_idf``, ``bag``, ``hash`` or ``ids``, or a section with their settings."""

    @model_validator(mode="after")
    def _check_subwords(self) -> Self:
        if isinstance(self.tokens, SubwordTokens) and not isinstance(self.encode, IdsEncoding):
            raise ValueError(
                f"encode must be 'ids' for tokens 'subwords', got {self.encode.kind!r}. Change one of them"
            )
        return self


class SeriesFeatures(Section):
    """How series reach the model: values counted back from the latest (1), statistics of the latest values, changes; or steps."""

    encode: Literal["columns", "steps"] = "columns"
    """``steps``: a family that reads steps (``rnn``, ``transformer``) takes the values in their order; all series that reach the
    model so are read side by side and have one length."""
    impute: Literal["mean", "median", "zero"] = "median"
    """What stands for a missing value: a statistic of all values of the column."""
    lags: IntTuple | None = None
    """1 is the latest value; None takes all of them."""
    windows: IntTuple = ()
    """Numbers of latest values that ``statistics`` are taken of."""
    statistics: Annotated[tuple[Literal["mean", "std", "min", "max"], ...], Strict(False), Field(min_length=1)] = (
        "mean",
        "std",
        "min",
        "max",
    )
    differences: IntTuple = ()
    """How far back the value lies that is taken from the latest one."""
    scale: Scale = "standard"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.encode == "steps" and (self.lags is not None or self.windows or self.differences):
            raise ValueError(
                "lags, windows and differences must be left out for encode 'steps'. Remove them, or encode"
            )
        if self.lags == () and not self.windows and not self.differences:
            raise ValueError("lags, windows or differences must hold a number, got none. Ignore the column instead")
        for name in ("lags", "windows", "statistics", "differences"):
            require_unique(name, getattr(self, name) or ())
        return self

    @property
    def reach(self) -> int:
        """Number of latest values that are looked at."""
        return max((*(self.lags or ()), *self.windows, *(step + 1 for step in self.differences)), default=1)


Size = Annotated[
    tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]],
    Strict(False),
]
ChannelValues = Annotated[tuple[FiniteFloat, ...], Strict(False), Field(min_length=1, max_length=3)]


class ChannelNormalisation(Section):
    """(value - ``mean``) / ``std`` of each channel, after ``scale``."""

    kind: Literal["given"]
    mean: ChannelValues
    std: Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1, max_length=3)]


class ImageFeatures(Section):
    """How pixels reach the model. Steps in this order: ``resize``, ``crop``, ``scale``, ``normalise``."""

    resize: Size | None = None
    """Height and width in pixels; bilinear, smoothed when it gets smaller."""
    crop: Size | None = None
    """Height and width in pixels of the middle that stays."""
    scale: Literal["unit", "none"] = "unit"
    """``unit``: 0..255 becomes 0..1."""
    normalise: Annotated[
        Annotated[Literal["none", "dataset"], Tag("word")] | Annotated[ChannelNormalisation, Tag("given")],
        word_or_section(("none", "dataset"), "'none', 'dataset' or (kind: given, mean: [...], std: [...])"),
    ] = "none"
    """``dataset``: each channel gets mean 0 and standard deviation 1 over the training rows."""
