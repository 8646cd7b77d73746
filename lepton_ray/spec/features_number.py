"""Section ``features.numbers``: how numbers reach the model."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, Strict, Tag, model_validator

from lepton_ray.spec.base import FiniteFloat, Fraction, PositiveFloat, Section, short_form
from lepton_ray.spec.features_choice import word_or_section


class GroupImpute(Section):
    """A statistic of the rows that have the same category, for what is missing; of all rows where it has none."""

    kind: Literal["by_group"]
    column: str
    """A category column."""
    statistic: Literal["mean", "median", "most_frequent"] = "median"


Statistic = Literal["mean", "median", "most_frequent", "zero"]
NumberImpute = Annotated[
    Annotated[Statistic, Tag("word")] | Annotated[FiniteFloat, Tag("number")] | Annotated[GroupImpute, Tag("by_group")],
    word_or_section(
        get_args(Statistic),
        "'mean', 'median', 'most_frequent', 'zero', a number or (kind: by_group, column: NAME)",
        is_number_allowed=True,
    ),
]


class QuantileClip(Section):
    """To the range between two quantiles."""

    kind: Literal["quantile"]
    low: Fraction = 0.01
    high: Fraction = 0.99

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high ({self.high:g}), got {self.low:g}. Swap them")
        return self


class IqrClip(Section):
    """To the quartiles, widened by ``factor`` times their distance."""

    kind: Literal["iqr"]
    factor: PositiveFloat = 1.5


class ZScoreClip(Section):
    """To ``limit`` standard deviations around the mean."""

    kind: Literal["z_score"]
    limit: PositiveFloat = 3.0


class MadClip(Section):
    """To ``limit`` times the scaled median absolute deviation around the median.

    It is scaled by 1.4826, which makes it the standard deviation of normal values.
    """

    kind: Literal["mad"]
    limit: PositiveFloat = 3.5


_Clip = QuantileClip | IqrClip | ZScoreClip | MadClip
Clip = Annotated[
    _Clip,
    Field(discriminator="kind"),
    BeforeValidator(short_form, json_schema_input_type=Literal["quantile", "iqr", "z_score", "mad"] | _Clip),
]


class QuantileBins(Section):
    """The number of the quantile that a value falls into, from 0."""

    kind: Literal["quantile_bins"]
    num_bins: Annotated[int, Field(ge=2, le=1000)] = 10
    """Quantiles that coincide are one bin."""
    one_hot: bool = False
    """A column for each bin."""


class EdgeBins(Section):
    """The number of given edges that a value has reached."""

    kind: Literal["edge_bins"]
    edges: Annotated[tuple[FiniteFloat, ...], Strict(False), Field(min_length=1, max_length=1000)]
    """Rising; a value equal to an edge falls into the bin above it."""
    one_hot: bool = False
    """A column for each bin."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for low, high in zip(self.edges, self.edges[1:], strict=False):
            if low >= high:
                raise ValueError(f"edges must rise, got {low:g} before {high:g}. Sort them, each once")
        return self


Scale = Literal["standard", "min_max", "robust", "max_abs", "none"]


class NumberFeatures(Section):
    """How numbers reach the model; statistics come from the training split.

    Steps in this order: ``impute``, ``clip``, ``transform``, ``scale``.
    """

    impute: NumberImpute = "median"
    """What stands for a missing value: a statistic of the present ones, a number, or a statistic by group."""
    missing_indicator: bool = False
    """A column that is 1 where the value was missing."""
    clip: Clip | None = None
    """Values beyond these bounds, which come from the present values, become the bounds. Where the bounds coincide though the
    values differ, as most are equal, nothing is clipped."""
    transform: Literal["none", "log1p", "sqrt", "yeo_johnson", "box_cox"] = "none"
    """``log1p`` and ``sqrt`` keep the sign: sign(x) log(1 + |x|). ``yeo_johnson`` and ``box_cox`` (positive values only)
    make values as normal as a power can."""
    scale: Annotated[
        Annotated[Scale, Tag("word")]
        | Annotated[QuantileBins, Tag("quantile_bins")]
        | Annotated[EdgeBins, Tag("edge_bins")],
        word_or_section(
            get_args(Scale),
            "'standard', 'min_max', 'robust', 'max_abs', 'none', (kind: quantile_bins) or (kind: edge_bins)",
        ),
    ] = "standard"
    """``standard``: mean 0, standard deviation 1 (population). ``min_max``: 0 to 1. ``robust``: median 0, distance of
    the quartiles 1. ``max_abs``: -1 to 1."""
