"""Section ``features``: how values are changed for the model. Fitted on training rows, compiled to the ONNX graph.

One section for each kind of column says how all of its columns are treated; ``columns`` replaces it for single ones.
Further features are made of several columns (``crosses``, ``polynomial``, ``pca``), and ``select`` keeps the best.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, Strict, model_validator

from lepton_ray.core.frozen import Texts
from lepton_ray.spec.base import PositiveInt, Section, short_form
from lepton_ray.spec.features_category import CategoryFeatures, HashEncoding, OneHotEncoding
from lepton_ray.spec.features_choice import require_unique
from lepton_ray.spec.features_content import ImageFeatures, SeriesFeatures, TextFeatures, TimeFeatures
from lepton_ray.spec.features_number import NumberFeatures


class NumberColumnFeatures(NumberFeatures):
    """In place of ``numbers``."""

    kind: Literal["number"]


class CategoryColumnFeatures(CategoryFeatures):
    """In place of ``categories``."""

    kind: Literal["category"]


class TimeColumnFeatures(TimeFeatures):
    """In place of ``times``."""

    kind: Literal["time"]


class TextColumnFeatures(TextFeatures):
    """In place of ``texts``."""

    kind: Literal["text"]


class SeriesColumnFeatures(SeriesFeatures):
    """In place of ``series``."""

    kind: Literal["series"]


class ImageColumnFeatures(ImageFeatures):
    """In place of ``images``."""

    kind: Literal["image"]


ColumnFeatures = Annotated[
    NumberColumnFeatures
    | CategoryColumnFeatures
    | TimeColumnFeatures
    | TextColumnFeatures
    | SeriesColumnFeatures
    | ImageColumnFeatures,
    Field(discriminator="kind"),
]


_CrossEncoding = OneHotEncoding | HashEncoding
CrossEncoding = Annotated[
    _CrossEncoding,
    Field(discriminator="kind"),
    BeforeValidator(short_form, json_schema_input_type=Literal["one_hot", "hash"] | _CrossEncoding),
]


class CrossFeatures(Section):
    """The combination of categories as a category of its own; missing values count as a category."""

    columns: Annotated[Texts, Field(min_length=2, max_length=4)]
    """Category columns."""
    encode: CrossEncoding = OneHotEncoding(kind="one_hot")
    max_categories: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Only the most frequent combinations have a column. Of no meaning to ``hash``."""
    min_count: PositiveInt = 1
    """Combinations with fewer training rows have no column."""

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        require_unique("columns", self.columns)
        return self


class PolynomialFeatures(Section):
    """Products of scaled numbers, besides the numbers themselves."""

    columns: Texts | None = None
    """Number columns; None takes all that are not binned."""
    degree: Annotated[int, Field(ge=2, le=3)] = 2
    """Greatest number of factors."""
    interaction_only: bool = False
    """No powers: every factor is another column."""


class PcaFeatures(Section):
    """Principal components of scaled numbers."""

    columns: Texts | None = None
    """Number columns; None takes all that are not binned."""
    num_components: PositiveInt | None = None
    """None takes as many as explain ``variance_fraction``."""
    variance_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the variance that the components have to explain; 0.95 where nothing is given."""
    keep_columns: bool = False
    """The numbers stay beside their components."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_components is not None and self.variance_fraction is not None:
            raise ValueError(
                f"num_components must not be given with variance_fraction ({self.variance_fraction:g}), "
                f"got {self.num_components}. Remove one"
            )
        return self


class BestFeatures(Section):
    """The features that tell most about the label."""

    by: Literal["mutual_information", "logistic", "extra_trees"]
    """Mutual information of each feature alone; weight in a logistic regression with an L1 penalty; importance in
    extremely randomised trees."""
    num_features: PositiveInt
    """How many stay; all, where there are fewer."""


class SelectFeatures(Section):
    """Which features stay, of those that a vector holds; tests in this order."""

    min_variance: Annotated[float, Field(ge=0)] | None = None
    """Features whose variance over the training rows is not above this are left out; 0 leaves out the constant ones."""
    max_correlation: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of two features whose correlation is beyond this, the later one is left out."""
    best: BestFeatures | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_variance is None and self.max_correlation is None and self.best is None:
            raise ValueError("select must hold a test, got none. Add min_variance, max_correlation or best")
        return self


SECTIONS = {
    "number": "numbers",
    "category": "categories",
    "time": "times",
    "text": "texts",
    "series": "series",
    "image": "images",
}
"""The section that says how columns are treated, by their kind."""


class FeaturesSpec(Section):
    """Transforms by kind of column, fitted once and compiled to the ONNX graph that training and serving share."""

    numbers: NumberFeatures = NumberFeatures()
    categories: CategoryFeatures = CategoryFeatures()
    times: TimeFeatures = TimeFeatures()
    texts: TextFeatures = TextFeatures()
    series: SeriesFeatures = SeriesFeatures()
    images: ImageFeatures = ImageFeatures()
    columns: dict[str, ColumnFeatures] = Field(default_factory=dict)
    """Single columns that are treated another way: ``{age: {kind: number, scale: robust}}``. The whole section of the
    kind is replaced; what is left out takes its default."""
    crosses: Annotated[tuple[CrossFeatures, ...], Strict(False)] = ()
    polynomial: PolynomialFeatures | None = None
    pca: PcaFeatures | None = None
    select: SelectFeatures | None = None

    def of(self, name: str, kind: str) -> Any:
        """Return the section that says how the column ``name`` of a kind is treated; one of another kind does not."""
        section = self.columns.get(name)
        return section if section is not None and section.kind == kind else getattr(self, SECTIONS[kind])
