"""Section ``tune``: the search for better settings of ``model`` and ``train``."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lepton_ray.spec.base import FiniteFloat, PositiveFloat, PositiveInt, Section, raise_problems, replace, short_form
from lepton_ray.spec.model import Model, TrainSpec

Scalar = int | float | str | bool
_MAX_TRIALS = 10_000
_DEFAULT_TRIALS = 8
_WHOLE = 1e-9  # how far a number of steps may be from a whole one, for rounding
_DIGITS = 12  # of a value on a step: 0.3, not 0.30000000000000004


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

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        texts = [json.dumps(value) for value in self.values]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise ValueError(f"values must hold each value once, got {twice} twice. Remove one")
        return self


class _Range(Section):
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high ({self.high}), got {self.low}. Swap them")
        return self


class Uniform(_Range):
    """A number between ``low`` and ``high``, each equally likely; with ``step`` only ``low``, ``low + step`` and so on."""

    kind: Literal["uniform"]
    step: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check_step(self) -> Self:
        if self.step is not None:
            _check_step(self.low, self.high, self.step)
        return self


class LogUniform(_Range):
    """A number between ``low`` and ``high``, each order of magnitude equally likely; ``low`` > 0."""

    kind: Literal["log_uniform"]
    low: PositiveFloat


Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""Searchers hold numbers as float64, which has every whole number up to here."""


class Integer(Section):
    """A whole number from ``low`` to ``high``, both included; with ``step`` only ``low``, ``low + step`` and so on."""

    kind: Literal["integer"]
    low: Whole
    high: Whole
    step: PositiveInt = 1

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high ({self.high}), got {self.low}. Swap them")
        _check_step(self.low, self.high, self.step)
        return self


def _check_step(low: float, high: float, step: float) -> None:
    steps = (high - low) / step
    if math.isinf(steps):
        raise ValueError(f"step must make at most {_MAX_TRIALS} values, got {step:g}. Raise it, or leave it out")
    if round(steps) < 1 or abs(steps - round(steps)) > _WHOLE * max(1.0, steps):
        raise ValueError(f"step must divide high - low ({high - low:g}), got {step:g}. Change step or high")
    if steps >= _MAX_TRIALS and not (step == 1 and isinstance(step, int)):  # of whole numbers no list is made
        raise ValueError(f"step must make at most {_MAX_TRIALS} values, got {step:g}. Raise it, or leave it out")


Domain = Annotated[Choice | Uniform | LogUniform | Integer, Field(discriminator="kind")]


def values_of(domain: Domain) -> Sequence[Any] | None:
    """Return the values of a domain in order, a list where one is several; None if they cannot be counted."""
    if isinstance(domain, Choice):
        return [list(value) if isinstance(value, tuple) else value for value in domain.values]
    if isinstance(domain, Integer):
        return range(domain.low, domain.high + 1, domain.step)
    if isinstance(domain, Uniform) and domain.step is not None:
        steps = range(round((domain.high - domain.low) / domain.step) + 1)
        return [float(f"{domain.low + index * domain.step:.{_DIGITS}g}") for index in steps]
    return None


class RandomSearcher(Section):
    """Settings drawn at random, none twice."""

    kind: Literal["random"]


class GridSearcher(Section):
    """Each setting of the space once."""

    kind: Literal["grid"]


class SecondObjective(Section):
    """What is minimised beside the loss.

    The training takes, of the trials that no other beats in both, the one with the least of ``what`` whose loss is near the least.
    """

    what: Literal["num_parameters", "epoch_s"]
    """Weights of the model, frozen ones too, or mean seconds of an epoch, measured while other trials run."""
    max_loss_excess_fraction: Annotated[FiniteFloat, Field(ge=0)] = 0.05
    """How far above the least loss the loss may be, as a share of it."""


class OptunaSearcher(Section):
    """Optuna's tree of Parzen estimators (TPE): proposes what resembles the better of the finished trials."""

    kind: Literal["optuna"]
    startup_trials: PositiveInt | None = None
    """Random trials before it proposes; None takes a quarter of all, at most 10."""
    also_minimise: SecondObjective | None = None
    """A second objective; needs ``scheduler: none``."""


class HyperoptSearcher(Section):
    """HyperOpt's tree of Parzen estimators."""

    kind: Literal["hyperopt"]
    startup_trials: PositiveInt | None = None
    """Random trials before it proposes; None takes a quarter of all, at most 10."""


Searcher = Annotated[
    RandomSearcher | GridSearcher | OptunaSearcher | HyperoptSearcher,
    Field(discriminator="kind"),
    BeforeValidator(short_form),
]


class NoScheduler(Section):
    """Every trial gets all its epochs."""

    kind: Literal["none"]


class AshaScheduler(Section):
    """ASHA, successive halving without waiting: a trial goes on past a rung if it is among the best that came to it."""

    kind: Literal["asha"]
    grace_epochs: PositiveInt = 2
    """Epochs that every trial gets; the first rung. Each further rung is ``reduction_factor`` times as far."""
    reduction_factor: Annotated[FiniteFloat, Field(gt=1)] = 4.0
    """One trial in so many goes past a rung."""


class HyperbandScheduler(Section):
    """HyperBand without waiting: several ASHAs beside each other, whose first rungs are further and further out.

    With a searcher that learns this is BOHB: HyperBand decides how long, TPE what is tried.
    """

    kind: Literal["hyperband"]
    grace_epochs: PositiveInt = 1
    """First rung of the first bracket, in epochs."""
    reduction_factor: Annotated[FiniteFloat, Field(gt=1)] = 3.0
    """One trial in so many goes past a rung."""
    brackets: Annotated[int, Field(ge=2, le=10)] = 3
    """ASHAs beside each other; that of number b starts at ``grace_epochs * reduction_factor**b``, counted from 0."""


class MedianScheduler(Section):
    """Stops a trial whose best loss is worse than the median of the other trials' mean losses up to that epoch."""

    kind: Literal["median"]
    grace_epochs: PositiveInt = 2
    """Epochs that every trial gets."""
    min_trials: PositiveInt = 3
    """Other trials that must have come as far before one is stopped."""


class PbtScheduler(Section):
    """Population based training: the worst go on from the best one's weights with its values, changed a little.

    A number is multiplied by 0.8 or 1.2, what has steps or choices goes to a neighbour; all stays inside its domain.
    """

    kind: Literal["pbt"]
    perturb_epochs: PositiveInt = 2
    """Epochs between two looks at a trial."""
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that are the worst, and the best."""
    resample_fraction: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How often a value is drawn anew from its domain instead."""


Scheduler = Annotated[
    NoScheduler | AshaScheduler | HyperbandScheduler | MedianScheduler | PbtScheduler,
    Field(discriminator="kind"),
    BeforeValidator(short_form),
]
_TUNABLE = ("train.lr", "train.weight_decay", "train.optimizer", "train.global_batch_size")
_CHANGEABLE = ("train.lr", "train.weight_decay", "train.global_batch_size", "model.dropout")
"""What a model in training can be given another value of: its weights and the optimizer's state stay what they are."""


class TuneSpec(Section):
    """Search through Ray Tune; minimises the validation loss."""

    num_trials: Annotated[int, Field(ge=1, le=_MAX_TRIALS)] | None = None
    """None takes 8, or as many as the space has settings if these are fewer; with the grid all of them."""
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """What to vary, by its path in the spec: fields of ``model`` (``model.encoders.tokens.width`` too), and ``train.lr``, ``train.weight_decay``,
    ``train.optimizer``, ``train.global_batch_size``."""
    searcher: Searcher = OptunaSearcher(kind="optuna")
    """What proposes the settings."""
    scheduler: Scheduler = AshaScheduler(kind="asha")
    """What stops the poor ones early."""
    epochs: PositiveInt = 10
    """Epochs of a trial that is not stopped early."""
    workers_per_trial: PositiveInt = 1
    """1: a trial is one process on CPUs, also where the training that follows has workers and GPUs. More: each trial is a run of
    Ray Train on so many workers, with ``train.cpus_per_worker`` and ``train.use_gpu``; it takes about 10 s longer to start."""
    cpus_per_trial: PositiveFloat = 1.0
    """Of the one process."""
    max_concurrent_trials: PositiveInt | None = None
    """At most this many at once; None takes what the cluster holds."""
    max_seconds: PositiveFloat | None = None
    """Ends the search after so many seconds, those before an interruption included; None waits for all trials."""
    stop_after_trials_without_improvement: PositiveInt | None = None
    """Ends the search when so many trials in a row were no better than the best before them."""
    max_failed_trials: Annotated[int, Field(ge=0)] = 0
    """The search goes on without so many trials that failed twice; one more ends it as an error."""

    @property
    def total_trials(self) -> int:
        """Number of trials that the search is to run."""
        size = size_of(self.space)
        if isinstance(self.searcher, GridSearcher) and size is not None:
            return size
        if self.num_trials is not None or isinstance(self.scheduler, PbtScheduler):
            return self.num_trials or _DEFAULT_TRIALS
        return min(_DEFAULT_TRIALS, size or _DEFAULT_TRIALS)

    @property
    def second_objective(self) -> SecondObjective | None:
        """What is minimised beside the loss."""
        return self.searcher.also_minimise if isinstance(self.searcher, OptunaSearcher) else None

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        if wrong := [path for path in self.space if not path.startswith("model.") and path not in _TUNABLE]:
            raise ValueError(f"space must have paths of {', '.join(_TUNABLE)} or model.FIELD, got {wrong[0]!r}")
        return self

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        problems = [*self._grid_problems(), *self._pbt_problems(), *self._worker_problems(), *self._idle_problems()]
        if self.second_objective and not isinstance(self.scheduler, NoScheduler):
            problems.append(
                f"tune.scheduler must be none for tune.searcher.also_minimise, got {self.scheduler.kind!r}, which compares "
                "trials by their loss alone. Set tune.scheduler to none"
            )
        raise_problems(problems)
        return self

    def _grid_problems(self) -> Iterator[str]:
        size = size_of(self.space)
        if not isinstance(self.searcher, GridSearcher):
            is_once = not isinstance(self.scheduler, PbtScheduler)
            if is_once and size is not None and self.num_trials is not None and self.num_trials > size:
                yield f"tune.num_trials must be at most {size}, the settings of tune.space, got {self.num_trials}. Lower it"
            return
        if uncounted := [path for path, domain in self.space.items() if values_of(domain) is None]:
            yield (
                f"tune.space.{uncounted[0]} must have values that can be counted for the grid, got kind "
                f"{self.space[uncounted[0]].kind!r}. Use choice, integer or uniform with a step, or another tune.searcher"
            )
        elif size is not None and size > _MAX_TRIALS:
            yield f"tune.space must have at most {_MAX_TRIALS} settings for the grid, got {size}. Use fewer values, or tune.searcher random"
        elif self.num_trials not in (None, size):
            yield f"tune.num_trials must be left out for the grid, which tries all {size} settings, got {self.num_trials}. Remove it, or use tune.searcher random"

    def _pbt_problems(self) -> Iterator[str]:
        if not isinstance(self.scheduler, PbtScheduler):
            return
        if not isinstance(self.searcher, RandomSearcher):
            yield (
                f"tune.searcher must be random for pbt, which changes the values itself while trials run, "
                f"got {self.searcher.kind!r}. Set tune.searcher to random, or another tune.scheduler"
            )
        for path in self.space:
            if path not in _CHANGEABLE:
                yield (
                    f"tune.space.{path} must be left out for pbt, which goes on with a model in training. "
                    f"Vary {', '.join(_CHANGEABLE)}, or use another tune.scheduler"
                )
        if self.total_trials < _MIN_POPULATION:
            yield f"tune.num_trials must be at least {_MIN_POPULATION} for pbt, got {self.total_trials}. Raise it"
        if self.epochs <= self.scheduler.perturb_epochs:
            yield (
                f"tune.epochs must be more than tune.scheduler.perturb_epochs ({self.scheduler.perturb_epochs}), "
                f"got {self.epochs}. Raise it: nothing would be changed"
            )
        if self.stop_after_trials_without_improvement is not None:
            yield (
                "tune.stop_after_trials_without_improvement must be left out for pbt, whose trials end together, "
                f"got {self.stop_after_trials_without_improvement}. Remove it, or use max_seconds"
            )
        if self.max_concurrent_trials is not None:
            yield (
                f"tune.max_concurrent_trials must be left out for pbt, whose trials take turns, "
                f"got {self.max_concurrent_trials}. Remove it, or raise tune.cpus_per_trial"
            )

    def _worker_problems(self) -> Iterator[str]:
        if self.workers_per_trial == 1:
            return
        way_out = "or set tune.workers_per_trial to 1"
        if self.cpus_per_trial != type(self).model_fields["cpus_per_trial"].default:
            yield (
                f"tune.cpus_per_trial must be left out for trials of several workers, got {self.cpus_per_trial:g}. "
                f"Set train.cpus_per_worker, {way_out}"
            )
        if isinstance(self.scheduler, PbtScheduler):
            yield f"tune.scheduler must not be pbt for trials of several workers, which cannot pause. Use another, {way_out}"
        if self.second_objective and self.second_objective.what == "epoch_s":
            yield (
                "tune.searcher.also_minimise.what must be num_parameters for trials of several workers, whose epochs are not "
                f"told one by one, got 'epoch_s'. Change it, {way_out}"
            )

    def _idle_problems(self) -> Iterator[str]:
        """What was asked for and could never act; defaults give way to a short search."""
        given = {name: getattr(self.scheduler, name) for name in self.scheduler.model_fields_set}
        searcher, trials = self.searcher, self.total_trials
        if (grace := given.get("grace_epochs", 0)) >= self.epochs:
            yield (
                f"tune.scheduler.grace_epochs must be less than tune.epochs ({self.epochs}), got {grace}. "
                "Lower it, or raise tune.epochs: no trial would be stopped early"
            )
        if (others := given.get("min_trials", 0)) >= trials:
            yield (
                f"tune.scheduler.min_trials must be less than the number of trials ({trials}), got {others}. "
                "Lower it, or raise tune.num_trials: no trial would be stopped early"
            )
        if isinstance(searcher, OptunaSearcher | HyperoptSearcher) and (searcher.startup_trials or 0) >= trials:
            yield (
                f"tune.searcher.startup_trials must be less than the number of trials ({trials}), got {searcher.startup_trials}. "
                "Lower it, raise tune.num_trials, or use tune.searcher random: nothing would be learned from"
            )
        patience = self.stop_after_trials_without_improvement
        if patience is not None and patience >= trials:
            yield (
                f"tune.stop_after_trials_without_improvement must be less than the number of trials ({trials}), got {patience}. "
                "Lower it, or raise tune.num_trials: the search would never end by it"
            )


_MIN_POPULATION = 2


def size_of(space: Mapping[str, Domain]) -> int | None:
    """Return the number of settings of a space; None if they cannot be counted."""
    counts = [None if (values := values_of(domain)) is None else len(values) for domain in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def apply_values(model: Model, train: TrainSpec, values: dict[str, Any]) -> tuple[Model, TrainSpec]:
    """Return the sections with a trial's values (by path, ``train.lr``), validated again, all at once: some only fit together."""
    paths = {path: tuple(path.split(".")) for path in values}
    of_model = {keys[1:]: values[path] for path, keys in paths.items() if keys[0] == "model"}
    of_train = {keys[1:]: values[path] for path, keys in paths.items() if keys[0] != "model"}
    described = TypeAdapter[Model](Model).validate_python(replace(model, of_model))  # its kind may be another
    return described, TrainSpec.model_validate(replace(train, of_train))
