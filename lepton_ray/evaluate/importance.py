"""How much of the differences between trials each setting explains, whichever searcher proposed them."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MIN_TRIALS = 8  # with fewer a share is a guess
_MAX_TRIALS = 256  # the trees take seconds for more; these are spread over the search
_NUM_TREES = 32
_LOG_RATIO = 20.0
_FAR = 2.0


def importance(trials: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of the variance of the trials' losses by path, the greatest first.

    A few losses of trainings that almost diverged would be all the variance: what is further above the median than
    ``_FAR`` times the way from the best to it is cut off there, and a loss that is no number counts as that.

    Args:
        trials: With ``values`` by path and ``loss``.

    Returns:
        Shares that sum to 1; empty for fewer than ``MIN_TRIALS`` trials, one setting or losses that are all equal.

    Source:
        Hutter et al. 2014, An efficient approach for assessing hyperparameter importance (fANOVA), as Optuna has it.
    """
    finite = [trial["loss"] for trial in trials if trial["loss"] is not None]
    if len(trials) < MIN_TRIALS or len(trials[0]["values"]) < 2 or not finite:  # noqa: PLR2004  two to compare
        return {}
    best, median, worst = min(finite), float(np.median(finite)), max(finite)
    far = median + _FAR * ((median - best) or (worst - best) or 1.0)
    losses = [far if trial["loss"] is None else min(trial["loss"], far) for trial in trials]
    if len(set(losses)) == 1:
        return {}
    chosen = np.unique(np.linspace(0, len(trials) - 1, min(len(trials), _MAX_TRIALS)).round().astype(int))
    shares = _fanova([trials[index]["values"] for index in chosen], [losses[index] for index in chosen])
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _fanova(settings: Sequence[Mapping[str, Any]], losses: Sequence[float]) -> dict[str, float]:
    import optuna  # noqa: PLC0415  takes its time
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # noqa: PLC0415

    logging.getLogger("optuna").setLevel(logging.WARNING)
    columns = {path: _column([values[path] for values in settings]) for path in settings[0]}
    distributions = {path: _distribution(column) for path, column in columns.items()}
    study = optuna.study.create_study(storage=optuna.storages.InMemoryStorage(), study_name="importance")
    for index, loss in enumerate(losses):
        params = {path: column[index] for path, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(value=float(loss), params=params, distributions=distributions))
    evaluator = FanovaImportanceEvaluator(n_trees=_NUM_TREES, seed=0)
    return {path: float(share) for path, share in get_param_importances(study, evaluator=evaluator).items()}


def _column(values: Sequence[Any]) -> list[Any]:
    """Numbers, their logarithms where they span orders of magnitude, or the texts of what are not all numbers.

    The logarithm is taken here: fANOVA in Optuna 5 takes each value of a range for equally likely, also a logarithmic one.
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [json.dumps(value) for value in values]
    is_log = min(values) > 0 and max(values) / min(values) >= _LOG_RATIO
    return [math.log(value) if is_log else float(value) for value in values]


def _distribution(column: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: PLC0415  takes its time

    if isinstance(column[0], str):
        return CategoricalDistribution(sorted(set(column)))
    return FloatDistribution(min(column), max(column))
