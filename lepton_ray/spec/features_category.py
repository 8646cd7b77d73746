"""Section ``features.categories``: how categories reach the model."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lepton_ray.core.frozen import Texts
from lepton_ray.spec.base import PositiveFloat, PositiveInt, Section, short_form
from lepton_ray.spec.features_choice import require_unique

_FEW_CATEGORIES, _MANY_CATEGORIES = 64, 10_000  # where a category is a column; where it is a value


class OneHotEncoding(Section):
    """A column for each category; one not seen in training is all zeros."""

    kind: Literal["one_hot"]
    other: bool = False
    """A column for categories without one: unseen, or left out by ``max_categories`` and ``min_count``."""


class OrdinalEncoding(Section):
    """The rank of the category, from 0; unseen ones are -1."""

    kind: Literal["ordinal"]
    order: Texts | None = None
    """Categories from least to greatest; None sorts those of the training rows as text."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        require_unique("order", self.order or ())
        return self


class TargetEncoding(Section):
    """The share of each label among the rows of the category, drawn towards its share among all rows.

    (rows with the label + ``smoothing`` x share) / (rows + ``smoothing``). One column for two labels, else one for each.
    """

    kind: Literal["target"]
    smoothing: PositiveFloat = 10.0
    """Rows that the share among all rows weighs."""
    num_folds: Annotated[int, Field(ge=2, le=100)] = 5
    """A training row's encoding is learnt from the other folds, so that it holds nothing of the row's own label."""


class FrequencyEncoding(Section):
    """The share of the rows that have the category; 0 for unseen ones."""

    kind: Literal["frequency"]
    num_folds: Annotated[int, Field(ge=2, le=100)] = 5
    """A training row's encoding is counted in the other folds, so that it does not count the row itself."""


class HashEncoding(Section):
    """One of ``num_buckets`` columns, chosen by MurmurHash3 of the text; nothing is learnt."""

    kind: Literal["hash"]
    num_buckets: Annotated[int, Field(ge=2, le=65536)] = 32
    signed: bool = False
    """Half of the texts count as -1, so that collisions cancel out on average."""


class CategoryIdsEncoding(Section):
    """The number of the category, for models that learn what each stands for: the input ``ids``, with a column for each such column.

    No two columns share a number. Categories that training has not seen have one in each column, and missing values have one
    under ``own_category`` if training rows miss some, else they count as unseen.
    """

    kind: Literal["ids"]


_Encoding = OneHotEncoding | OrdinalEncoding | TargetEncoding | FrequencyEncoding | HashEncoding | CategoryIdsEncoding
Encoding = Annotated[
    _Encoding,
    Field(discriminator="kind"),
    BeforeValidator(
        short_form,
        json_schema_input_type=Literal["one_hot", "ordinal", "target", "frequency", "hash", "ids"] | _Encoding,
    ),
]


class CategoryFeatures(Section):
    """How categories reach the model: by default one-hot; a category not seen in training is all zeros."""

    impute: Literal["most_frequent", "own_category"] = "most_frequent"
    """``own_category`` makes missing values a category of their own."""
    encode: Encoding = OneHotEncoding(kind="one_hot")
    """``one_hot``, ``ordinal``, ``target``, ``frequency``, ``hash`` or ``ids``, or a section with their settings."""
    max_categories: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Only the most frequent ones are told apart, the others count as unseen; None: 64 for ``one_hot``, else 10,000. Of
    no meaning to ``hash``."""
    min_count: PositiveInt = 1
    """Categories with fewer training rows count as unseen."""

    @property
    def num_categories(self) -> int:
        """``max_categories``, or what stands for it."""
        default = _FEW_CATEGORIES if isinstance(self.encode, OneHotEncoding) else _MANY_CATEGORIES
        return self.max_categories or default
