"""The search's section: what is refused before anything starts, and what the domains hold."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import parse_spec
from lepton_ray.spec.model import LinearModel, MlpModel
from lepton_ray.spec.tune import Domain, TuneSpec, apply_values, size_of, values_of

_TABLE = """\
name: table
data: {source: {kind: csv, uri: a.csv}, label: y, columns: {x: number, y: category}}
model: {kind: mlp}
"""
_LR = "train.lr: {kind: log_uniform, low: 1e-4, high: 1e-1}"
_STEPS = "model.dropout: {kind: uniform, low: 0.0, high: 0.5, step: 0.1}"
_HIDDEN = "model.hidden: {kind: choice, values: [[8], [16, 8]]}"
_DOMAIN: TypeAdapter[Any] = TypeAdapter(Domain)  # made once: it takes longer than Hypothesis gives an example


def _tune(text: str) -> TuneSpec:
    spec = parse_spec(f"{_TABLE}tune: {{{text}}}\n").tune
    assert spec is not None
    return spec


def _problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        _tune(text)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"searcher: grid, space: {{{_LR}}}",
            "line 4: tune.space.train.lr must have values that can be counted for the grid, got kind 'log_uniform'. Use choice",
        ),
        (
            f"searcher: grid, num_trials: 5, space: {{{_STEPS}}}",
            "tune.num_trials must be left out for the grid, which tries all 6",
        ),
        (
            "searcher: grid, space: {train.global_batch_size: {kind: integer, low: 1, high: 200}, "
            "model.hidden: {kind: choice, values: [[1], [2]]}, model.dropout: {kind: uniform, low: 0.0, high: 0.5, step: 0.01}}",
            "tune.space must have at most 10000 settings for the grid, got 20400.",
        ),
        (
            f"num_trials: 13, space: {{{_STEPS}, {_HIDDEN}}}",
            "tune.num_trials must be at most 12, the settings of tune.space, got 13.",
        ),
        (f"scheduler: pbt, space: {{{_LR}}}", "tune.searcher must be random for pbt"),
        (
            f"workers_per_trial: 2, searcher: random, scheduler: pbt, space: {{{_LR}}}",
            "tune.scheduler must not be pbt for trials of several workers",
        ),
        (
            f"workers_per_trial: 2, cpus_per_trial: 2, space: {{{_LR}}}",
            "tune.cpus_per_trial must be left out for trials of several workers, got 2. Set train.cpus_per_worker",
        ),
        (
            f"workers_per_trial: 2, scheduler: none, searcher: {{kind: optuna, also_minimise: {{what: epoch_s}}}}, space: {{{_LR}}}",
            "tune.searcher.also_minimise.what must be num_parameters for trials of several workers",
        ),
        (f"scheduler: pbt, searcher: random, space: {{{_HIDDEN}}}", "tune.space.model.hidden must be left out for pbt"),
        (
            f"scheduler: pbt, searcher: random, num_trials: 1, space: {{{_LR}}}",
            "tune.num_trials must be at least 2 for pbt",
        ),
        (
            f"scheduler: {{kind: pbt, perturb_epochs: 10}}, searcher: random, space: {{{_LR}}}",
            "tune.epochs must be more than tune.scheduler.perturb_epochs (10), got 10.",
        ),
        (
            f"scheduler: pbt, searcher: random, stop_after_trials_without_improvement: 2, space: {{{_LR}}}",
            "tune.stop_after_trials_without_improvement must be left out for pbt, whose trials end together, got 2",
        ),
        (
            f"scheduler: pbt, searcher: random, max_concurrent_trials: 2, space: {{{_LR}}}",
            "tune.max_concurrent_trials must be left out for pbt",
        ),
        (
            f"searcher: {{kind: optuna, also_minimise: {{what: epoch_s}}}}, space: {{{_LR}}}",
            "tune.scheduler must be none for tune.searcher.also_minimise, got 'asha'",
        ),
        (
            f"searcher: {{kind: hyperopt, also_minimise: {{what: epoch_s}}}}, scheduler: none, space: {{{_LR}}}",
            "tune.searcher.also_minimise must be a known key.",
        ),
        (
            f"searcher: bayes, space: {{{_LR}}}",
            "tune.searcher.kind must be one of 'random', 'grid', 'optuna', 'hyperopt'",
        ),
        (f"scheduler: {{kind: asha, brackets: 3}}, space: {{{_LR}}}", "tune.scheduler.brackets must be a known key."),
        (
            f"scheduler: {{kind: asha, reduction_factor: 1}}, space: {{{_LR}}}",
            "tune.scheduler.reduction_factor must be greater than 1",
        ),
        (f"max_seconds: 0, space: {{{_LR}}}", "tune.max_seconds must be greater than 0"),
        (
            f"epochs: 5, scheduler: {{kind: asha, grace_epochs: 5}}, space: {{{_LR}}}",
            "tune.scheduler.grace_epochs must be less than tune.epochs (5), got 5. Lower it",
        ),
        (
            f"epochs: 5, scheduler: {{kind: hyperband, grace_epochs: 6}}, space: {{{_LR}}}",
            "tune.scheduler.grace_epochs must be less than tune.epochs (5), got 6. Lower it",
        ),
        (
            f"scheduler: {{kind: median, grace_epochs: 10}}, space: {{{_LR}}}",
            "tune.scheduler.grace_epochs must be less than tune.epochs (10), got 10. Lower it",
        ),
        (
            f"num_trials: 4, scheduler: {{kind: median, min_trials: 4}}, space: {{{_LR}}}",
            "tune.scheduler.min_trials must be less than the number of trials (4), got 4. Lower it",
        ),
        (
            f"searcher: {{kind: optuna, startup_trials: 8}}, space: {{{_LR}}}",
            "tune.searcher.startup_trials must be less than the number of trials (8), got 8. Lower it",
        ),
        (
            f"searcher: {{kind: hyperopt, startup_trials: 3}}, space: {{{_HIDDEN}}}",
            "tune.searcher.startup_trials must be less than the number of trials (2), got 3. Lower it",
        ),
        (
            f"num_trials: 5, stop_after_trials_without_improvement: 5, space: {{{_LR}}}",
            "tune.stop_after_trials_without_improvement must be less than the number of trials (5), got 5. Lower it",
        ),
        (
            "space: {train.lr: {kind: uniform, low: 0.1, high: 1.0, step: 0.2}}",
            "tune.space.train.lr.step must divide high - low (0.9), got 0.2.",
        ),
        ("space: {train.lr: {kind: uniform, low: 0.1, high: 1.0, step: 2.0}}", "tune.space.train.lr.step must divide"),
        (
            "space: {train.lr: {kind: uniform, low: 0.1, high: 1.1, step: 0.00001}}",
            "step must make at most 10000 values",
        ),
        (
            "space: {model.dropout: {kind: uniform, low: 0, high: 20000, step: 1}}",
            "step must make at most 10000 values, got 1.",
        ),
        (
            "space: {train.global_batch_size: {kind: integer, low: 8, high: 20, step: 8}}",
            "step must divide high - low (12), got 8",
        ),
        (
            "space: {train.lr: {kind: choice, values: [0.1, 0.2, 0.1]}}",
            "values must hold each value once, got 0.1 twice.",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_next_action(text: str, expected: str) -> None:
    (problem,) = _problems(text)
    assert expected in problem
    assert problem.startswith("line 4: tune.")


def test_all_that_pbt_refuses_comes_at_once() -> None:
    assert len(_problems(f"scheduler: pbt, epochs: 1, max_concurrent_trials: 1, space: {{{_HIDDEN}, {_LR}}}")) == 4


@pytest.mark.parametrize(
    "text",
    [
        f"epochs: 1, num_trials: 1, space: {{{_LR}}}",
        f"epochs: 1, num_trials: 1, scheduler: median, space: {{{_LR}}}",
        f"epochs: 6, scheduler: {{kind: asha, grace_epochs: 5}}, space: {{{_LR}}}",
        f"num_trials: 5, scheduler: {{kind: median, min_trials: 4}}, space: {{{_LR}}}",
        f"num_trials: 5, searcher: {{kind: optuna, startup_trials: 4}}, space: {{{_LR}}}",
    ],
)
def test_a_short_search_is_taken_with_the_defaults_and_with_what_can_act(text: str) -> None:
    _tune(text)


@pytest.mark.parametrize(
    ("text", "trials"),
    [
        (f"space: {{{_LR}}}", 8),
        (f"space: {{{_HIDDEN}}}", 2),
        (f"space: {{{_STEPS}, {_HIDDEN}}}", 8),
        (f"num_trials: 3, space: {{{_HIDDEN}, {_LR}}}", 3),
        (f"searcher: grid, space: {{{_STEPS}, {_HIDDEN}}}", 12),
        (f"searcher: grid, num_trials: 12, space: {{{_STEPS}, {_HIDDEN}}}", 12),
        ("searcher: random, scheduler: pbt, num_trials: 9, space: {train.lr: {kind: choice, values: [0.1, 0.2]}}", 9),
    ],
)
def test_number_of_trials(text: str, trials: int) -> None:
    assert _tune(text).total_trials == trials


def test_a_trial_takes_every_kind_of_model_that_the_spec_takes() -> None:
    """A linear model has no other settings, so the spec is valid with the kind of another in its place."""
    text = "tune: {space: {model.kind: {kind: choice, values: [linear, mlp]}}}"
    spec = parse_spec(f"{_TABLE.replace('mlp', 'linear')}{text}\n")
    assert spec.model is not None
    models = [apply_values(spec.model, spec.train, {"model.kind": kind})[0] for kind in ("linear", "mlp")]
    assert models == [LinearModel(kind="linear"), MlpModel(kind="mlp")]


def test_one_and_true_are_different_choices() -> None:
    domain: Any = _DOMAIN.validate_python({"kind": "choice", "values": [1, True, 1.0, "1", [1]]})
    assert size_of({"model.x": domain}) == 5


@given(st.integers(-100, 100), st.integers(1, 60), st.sampled_from([0.1, 0.25, 1e-3, 1.0, 7.0, 1e-7]))
def test_steps_begin_and_end_where_the_range_does(start: int, steps: int, step: float) -> None:
    low, high = start * step, (start + steps) * step
    domain: Any = _DOMAIN.validate_python({"kind": "uniform", "low": low, "high": high, "step": step})
    values = values_of(domain)
    assert values is not None
    assert len(values) == steps + 1
    assert values == pytest.approx([(start + index) * step for index in range(steps + 1)])
    assert len(set(values)) == len(values)
