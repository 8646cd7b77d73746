"""``tune.searcher`` and ``tune.scheduler`` as Ray Tune has them.

Searchers see the least loss of a trial so far, which is what decides; schedulers see the loss of the epoch. A loss that
is no number is ``DIVERGED`` for both: quantiles and Parzen estimators have no place for NaN or infinity.
"""

import contextlib
import itertools
import logging
import math
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher

from lepton_ray.spec.tune import (
    AshaScheduler,
    Choice,
    Domain,
    GridSearcher,
    HyperbandScheduler,
    HyperoptSearcher,
    LogUniform,
    MedianScheduler,
    OptunaSearcher,
    PbtScheduler,
    TuneSpec,
    size_of,
    values_of,
)
from lepton_ray.tune.journal import Trial
from lepton_ray.tune.space import Point, Space, clip, encode, grid

LOSS = "val_loss"
BEST = "best_loss"
COST = "cost"
DIVERGED = 1e30
_EPOCHS = "training_iteration"
_MAX_STARTUP_TRIALS = 10
_PROPOSALS_PER_TRIAL = 20  # some milliseconds each
_DRAWS_PER_TRIAL = 1000  # of a small space most draws are repeats; past these it is taken for used up


def build_search(spec: TuneSpec, seed: int, done: Sequence[Trial], max_concurrent: int) -> dict[str, Any]:
    """Return what proposes the trials that are missing, told of those that are done: arguments of Tune.

    Returns:
        ``search_alg``, and ``param_space`` where the searcher does not have the space.
    """
    searcher = spec.searcher
    if isinstance(spec.scheduler, PbtScheduler):  # takes no other searcher; all trials live at once and take turns
        rng = np.random.RandomState(seed + len(done))
        return {"search_alg": BasicVariantGenerator(random_state=rng), "param_space": _to_tune_space(spec)}
    if isinstance(searcher, OptunaSearcher | HyperoptSearcher):
        unlimited = _learning(searcher, spec, seed + len(done), done)
        if size_of(spec.space) is not None:
            unlimited = _Once(unlimited, spec.space, _missing_points(spec, seed, done), done)
    else:
        unlimited = _Listed(_missing_points(spec, seed, done))
    return {"search_alg": ConcurrencyLimiter(unlimited, max_concurrent=max_concurrent)}


class _Listed(Searcher):  # type: ignore[misc]  # Ray has no types
    """Proposes points that are known beforehand."""

    def __init__(self, points: Sequence[Point]) -> None:
        super().__init__(metric=BEST, mode="min")
        self._points = iter(points)

    def suggest(self, trial_id: str) -> Any:
        """Return the next point."""
        return next(self._points, Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing."""

    def save(self, checkpoint_path: str) -> None:
        """The journal is what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


class _Once(Searcher):  # type: ignore[misc]  # Ray has no types
    """Proposes what one that learns does, but nothing twice: of settings that can be counted TPE takes the best again and again."""

    def __init__(self, learning: Searcher, space: Space, others: Sequence[Point], done: Sequence[Trial]) -> None:
        super().__init__(metric=learning.metric, mode=learning.mode)
        self._learning, self._space, self._others = learning, space, iter(others)
        self._tried = {tuple(encode(space, trial.values).values()) for trial in done}
        self._names: dict[str, str] = {}
        """By trial: its name where its values come from the one that learns."""

    def suggest(self, trial_id: str) -> Any:
        """Return a point that is new; a drawn one where only others were proposed."""
        for number in range(_PROPOSALS_PER_TRIAL):
            name = f"{trial_id}-{number}"
            point = self._learning.suggest(name)
            if self._is_new(point):
                self._names[trial_id] = name
                return point
            self._learning.on_trial_complete(name, error=True)  # which it learns nothing from
        return next(filter(self._is_new, self._others), Searcher.FINISHED)

    def _is_new(self, point: Point) -> bool:
        key = tuple(point[path] for path in self._space)
        is_new = key not in self._tried
        self._tried.add(key)
        return is_new

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on what a trial has come to."""
        if trial_id in self._names:
            self._learning.on_trial_result(self._names[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on what a trial came to."""
        if (name := self._names.pop(trial_id, None)) is not None:
            self._learning.on_trial_complete(name, result, error)

    def save(self, checkpoint_path: str) -> None:
        """The journal is what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


def _missing_points(spec: TuneSpec, seed: int, done: Sequence[Trial]) -> list[Point]:
    points = grid(spec.space) if isinstance(spec.searcher, GridSearcher) else _draw(spec, seed)
    tried = {tuple(encode(spec.space, trial.values).values()) for trial in done}
    return [point for point in points if tuple(point.values()) not in tried]


def _draw(spec: TuneSpec, seed: int) -> Iterator[Point]:
    """Yield different points; the same for the same seed."""
    rng = np.random.RandomState(seed)
    domains = _to_tune_space(spec)
    draws = ({path: domain.sample(random_state=rng) for path, domain in domains.items()} for _ in itertools.count())
    points = (clip(spec.space, draw) for draw in itertools.islice(draws, _DRAWS_PER_TRIAL * spec.total_trials))
    seen = set()
    for point in points:
        if tuple(point.values()) not in seen:
            seen.add(tuple(point.values()))
            yield point
        if len(seen) == spec.total_trials:
            return


def _learning(section: OptunaSearcher | HyperoptSearcher, spec: TuneSpec, seed: int, done: Sequence[Trial]) -> Searcher:
    domains = _to_tune_space(spec)
    known = [encode(spec.space, trial.values) for trial in done]
    startup = section.startup_trials or max(1, min(_MAX_STARTUP_TRIALS, spec.total_trials // 4))
    if isinstance(section, HyperoptSearcher):
        searcher = _hyperopt(domains, known, startup, seed)
    else:
        searcher = _optuna(domains, known, startup, seed, section.also_minimise is not None)
    for number, trial in enumerate(done):
        searcher.suggest(f"known-{number}")
        result = {BEST: DIVERGED if trial.loss is None else trial.loss, COST: trial.cost}
        searcher.on_trial_complete(f"known-{number}", result)
    return searcher


def _optuna(domains: dict[str, Any], known: list[Point], startup: int, seed: int, has_cost: bool) -> Searcher:
    from optuna.samplers import TPESampler  # noqa: PLC0415  optional
    from ray.tune.search.optuna import OptunaSearch  # noqa: PLC0415

    logging.getLogger("optuna").setLevel(logging.WARNING)
    return OptunaSearch(
        space=OptunaSearch.convert_search_space(domains),
        metric=[BEST, COST] if has_cost else BEST,
        mode=["min", "min"] if has_cost else "min",
        sampler=TPESampler(n_startup_trials=startup, seed=seed),
        points_to_evaluate=known or None,
    )


def _hyperopt(domains: dict[str, Any], known: list[Point], startup: int, seed: int) -> Searcher:
    from ray.tune.search.hyperopt import HyperOptSearch  # noqa: PLC0415  optional

    logging.getLogger("hyperopt").setLevel(logging.WARNING)
    return HyperOptSearch(
        space=HyperOptSearch.convert_search_space(domains),
        metric=BEST,
        mode="min",
        n_initial_points=startup,
        random_state_seed=seed,
        points_to_evaluate=known or None,
    )


def _to_tune_space(spec: TuneSpec) -> dict[str, Any]:
    return {path: _to_tune(domain) for path, domain in spec.space.items()}


def _to_tune(domain: Domain) -> Any:
    values = values_of(domain)
    if isinstance(domain, Choice):
        return tune.choice(list(range(len(domain.values))))
    if values is not None:
        return tune.randint(0, len(values))
    return (tune.loguniform if isinstance(domain, LogUniform) else tune.uniform)(domain.low, domain.high)


class _Seeded(TrialScheduler):  # type: ignore[misc]  # Ray has no types
    """Mixed into a scheduler that draws from Python's and NumPy's global generators, as Ray's do: they stand at the seed while it draws.

    Given results in the same order, as with trials one at a time, it decides the same.
    """

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self._states = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()  # noqa: S311

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Choose the bracket of a trial."""
        with self._own_draws():
            super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        """Choose whose weights a trial takes over, and what changes."""
        with self._own_draws():
            return super().on_trial_result(tune_controller, trial, result)

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        others = _swap_states(*self._states)
        try:
            yield
        finally:
            self._states = _swap_states(*others)


def _swap_states(of_python: Any, of_numpy: Any) -> tuple[Any, Any]:
    """Set the global generators; returns where they stood."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002  Ray draws from these
    random.setstate(of_python)
    np.random.set_state(of_numpy)  # noqa: NPY002
    return before


class _HyperBand(_Seeded, AsyncHyperBandScheduler):  # type: ignore[misc]
    """HyperBand whose brackets follow from the seed."""


class _Population(_Seeded, PopulationBasedTraining):  # type: ignore[misc]
    """PBT whose exchanges follow from the seed."""


def build_scheduler(spec: TuneSpec, seed: int) -> TrialScheduler:
    """Return what stops trials; ``seed`` is that of its draws."""
    scheduler = spec.scheduler
    common = {"time_attr": _EPOCHS, "metric": LOSS, "mode": "min"}
    match scheduler:
        case AshaScheduler() | HyperbandScheduler():
            return _HyperBand(
                seed,
                **common,
                max_t=spec.epochs,
                grace_period=min(scheduler.grace_epochs, spec.epochs),
                reduction_factor=scheduler.reduction_factor,
                brackets=scheduler.brackets if isinstance(scheduler, HyperbandScheduler) else 1,
            )
        case MedianScheduler():
            return MedianStoppingRule(
                **common,
                grace_period=scheduler.grace_epochs,
                min_samples_required=scheduler.min_trials,
                min_time_slice=math.inf,  # with another value trials are paused, and their weights are lost
            )
        case PbtScheduler():
            return _Population(
                seed,
                **common,
                perturbation_interval=scheduler.perturb_epochs,
                hyperparam_mutations={path: _mutation(domain) for path, domain in spec.space.items()},
                quantile_fraction=scheduler.quantile_fraction,
                resample_probability=scheduler.resample_fraction,
                custom_explore_fn=partial(clip, spec.space),
                log_config=False,
                synch=True,
            )
        case _:
            return FIFOScheduler()


def _mutation(domain: Domain) -> Any:
    """Places go to a neighbour, values are multiplied."""
    values = values_of(domain)
    return _to_tune(domain) if values is None else list(range(len(values)))
