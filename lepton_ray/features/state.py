"""What fitting learns from the training rows: everything that the graph and the preparation of tables need, as plain JSON."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from lepton_ray.core.frozen import Frozen, Ints, Texts
from lepton_ray.features.categories import AnyCategoryState
from lepton_ray.features.combine import AnyCrossState, PcaState, PolynomialState
from lepton_ray.features.images import ImageState
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.series import AnySeriesState
from lepton_ray.features.texts import TextState
from lepton_ray.features.times import TimeState

FEATURES, IDS, TOKENS, STEPS, PIXELS = "features", "ids", "tokens", "steps", "pixels"
"""Names of the outputs of the graph; ``image`` is the name of an input."""


class Output(Frozen):
    """A tensor that the model takes."""

    name: str
    datatype: Literal["FP32", "INT64"]
    shape: Ints
    """Of one row."""
    columns: Texts = ()
    """Names of the features along ``shape``, when it is flat."""


class FeatureState(Frozen):
    """Fitted state of all features, by column in the order of the data."""

    numbers: dict[str, NumberState] = Field(default_factory=dict)
    times: dict[str, TimeState] = Field(default_factory=dict)
    categories: dict[str, AnyCategoryState] = Field(default_factory=dict)
    texts: dict[str, TextState] = Field(default_factory=dict)
    series: dict[str, AnySeriesState] = Field(default_factory=dict)
    images: dict[str, ImageState] = Field(default_factory=dict)
    crosses: Annotated[tuple[AnyCrossState, ...], Strict(False)] = ()
    polynomial: PolynomialState | None = None
    pca: PcaState | None = None
    kept: Ints | None = None
    """Positions of the flat features that stay, of those that ``parts_of`` lists; None keeps all."""
