"""Section ``tune``: the search for better settings of ``model`` and ``train``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from lepton_ray.spec.base import FiniteFloat, PositiveFloat, PositiveInt, Section, replace
from lepton_ray.spec.model import Model, TrainSpec

Scalar = int | float | str | bool


def _explain_value(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One error for a value that is none of the types, where pydantic has one for each type."""
    try:
        return validate(value)
    except ValidationError as error:
        raise PydanticCustomError("choice_value", "must be a number, a text, true, false or a list of them") from error


ChoiceValue = Annotated[
    Scalar | Annotated[tuple[Scalar, ...], Strict(False)],
    WrapValidator(_explain_value),
]


class Choice(Section):
    """One of the given values; a list stands for itself, as in ``[[64], [64, 32]]`` for ``model.hidden``."""

    kind: Literal["choice"]
    values: Annotated[tuple[ChoiceValue, ...], Strict(False), Field(min_length=1)]


class _Range(Section):
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high ({self.high}), got {self.low}. Swap them")
        return self


class Uniform(_Range):
    """A number between ``low`` and ``high``, each equally likely."""

    kind: Literal["uniform"]


class LogUniform(_Range):
    """A number between ``low`` and ``high``, each order of magnitude equally likely; ``low`` > 0."""

    kind: Literal["log_uniform"]
    low: PositiveFloat


class Integer(Section):
    """A whole number from ``low`` to ``high``, both included."""

    kind: Literal["integer"]
    low: int
    high: int

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high ({self.high}), got {self.low}. Swap them")
        return self


Domain = Annotated[Choice | Uniform | LogUniform | Integer, Field(discriminator="kind")]
_TUNABLE = ("train.lr", "train.weight_decay", "train.optimizer", "train.global_batch_size")


class TuneSpec(Section):
    """Search through Ray Tune: Optuna proposes, ASHA stops the poor ones early; minimises the validation loss.

    Trials run on one CPU process each, also where the training that follows uses GPUs.
    """

    num_trials: Annotated[int, Field(ge=1, le=10_000)] = 8
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """What to vary, by its path in the spec: fields of ``model`` (``model.encoders.tokens.width`` too), and ``train.lr``, ``train.weight_decay``,
    ``train.optimizer``, ``train.global_batch_size``."""
    epochs: PositiveInt = 10
    """Epochs of a trial that is not stopped early."""
    grace_epochs: PositiveInt = 2
    """Epochs that every trial gets before ASHA may stop it."""
    cpus_per_trial: PositiveFloat = 1.0
    max_concurrent_trials: PositiveInt | None = None
    """At most this many at once; None takes what the cluster holds."""

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        if wrong := [path for path in self.space if not path.startswith("model.") and path not in _TUNABLE]:
            raise ValueError(f"space must have paths of {', '.join(_TUNABLE)} or model.FIELD, got {wrong[0]!r}")
        return self


def apply_values(model: Model, train: TrainSpec, values: dict[str, Any]) -> tuple[Model, TrainSpec]:
    """Return the sections with a trial's values (by path, ``train.lr``), validated again."""
    for path, value in values.items():
        section, *keys = path.split(".")
        if section == "model":
            model = type(model).model_validate(replace(model, tuple(keys), value))
        else:
            train = TrainSpec.model_validate(replace(train, tuple(keys), value))
    return model, train
