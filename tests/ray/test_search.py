"""Searches through the real Tune on objectives in closed form, which say what each must find."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import EngineError
from lepton_ray.models.catalog import build_model
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.spec.tune import TuneSpec, apply_values
from lepton_ray.tune.journal import Journal, Trial
from lepton_ray.tune.place import place_of

from .conftest import REPOSITORY, wait_until
from .test_train import CLASSES, WIDTH, make_data

LR = {"train.lr": {"kind": "log_uniform", "low": 1e-3, "high": 1e-1}}
STEPS = {"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.6, "step": 0.1}}
ONE = {"cpus_per_trial": 4.0}  # at a time: in order, and with one process to start


def journal_in(folder: Path) -> Journal:
    return Journal(pafs.LocalFileSystem(), str(folder / "trials"))


def run_search(folder: Path, start: Any, heard: list[str] | None = None, seed: int = 1, **spec: Any) -> Any:
    from lepton_ray.tune import on_ray

    update = [].append if heard is None else heard.append
    asked = TuneSpec.model_validate(spec)
    place = place_of(asked, {}, 120.0)
    return on_ray.search(asked, start, np.arange(3), seed, journal_in(folder), update, place)  # type: ignore[arg-type]


def rates(trials: list[Trial]) -> list[float]:
    return [trial.values["train.lr"] for trial in trials]


def constant(values: dict[str, Any], data: Any, folder: Path | None) -> Iterator[Any]:
    """Every epoch's loss is lr; above 0.55 it fails, from 0.45 on it is no number."""
    from lepton_ray.tune.on_ray import Epoch

    assert data.tolist() == [0, 1, 2]
    lr = values["train.lr"]
    for _ in range(50):
        if lr > 0.55:
            raise ValueError(f"lr is {lr}")
        yield Epoch(math.nan if lr > 0.45 else lr, lambda folder: None)


def lost_once(marker: Path, values: dict[str, Any], data: Any, folder: Path | None) -> Iterator[Any]:
    """The process of the first trial is killed in its second epoch, once."""
    for number, epoch in enumerate(shrink(values, data, folder)):
        if number == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield epoch


@pytest.mark.slow
def test_a_trial_whose_process_is_lost_begins_anew(cluster: None, tmp_path: Path) -> None:
    asked = {"num_trials": 2, "epochs": 3, "searcher": "random", "scheduler": "none", "space": LR, **ONE}
    found = run_search(tmp_path, partial(lost_once, tmp_path / "lost"), **asked)
    assert (tmp_path / "lost").exists()
    assert [trial.loss for trial in found.trials] == pytest.approx([(1 - lr) ** 3 for lr in rates(found.trials)])
    assert [trial.epochs for trial in found.trials] == [3, 3]


def lost_at_its_start(marker: Path, values: dict[str, Any], data: Any, folder: Path | None) -> Iterator[Any]:
    """The process of a later trial is killed before its first epoch, once."""
    if values["train.lr"] == 0.4 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return shrink(values, data, folder)


@pytest.mark.slow
def test_a_trial_whose_process_is_lost_as_it_starts_begins_anew(cluster: None, tmp_path: Path) -> None:
    """A later one, in a process that has run another: models are built there, and memory is taken."""
    space = {"train.lr": {"kind": "choice", "values": [0.2, 0.4, 0.1]}}
    asked = {"epochs": 1, "searcher": "grid", "scheduler": "none", "space": space, "cpus_per_trial": 4.0}
    found = run_search(tmp_path, partial(lost_at_its_start, tmp_path / "lost"), **asked)
    assert (tmp_path / "lost").exists()
    assert {trial.values["train.lr"]: trial.loss for trial in found.trials} == pytest.approx(
        {0.2: 0.8, 0.4: 0.6, 0.1: 0.9}
    )
    assert found.failed == ""


class Shrinking:
    """A weight of 1 of which each epoch takes the share lr; its loss is the weight."""

    def __init__(self, values: dict[str, Any], folder: Path | None) -> None:
        self.lr = values["train.lr"]
        self.weight = json.loads((folder / "weight.json").read_text()) if folder else 1.0

    def epochs(self) -> Iterator[Any]:
        from lepton_ray.tune.on_ray import Epoch

        while True:
            self.weight *= 1 - self.lr
            yield Epoch(self.weight, self.save)

    def save(self, folder: Path) -> None:
        (folder / "weight.json").write_text(json.dumps(self.weight))


def shrink(values: dict[str, Any], data: Any, folder: Path | None) -> Iterator[Any]:
    return Shrinking(values, folder).epochs()


@pytest.mark.slow
def test_an_interrupted_random_search_tries_what_an_undisturbed_one_tries(cluster: None, tmp_path: Path) -> None:
    asked = {"num_trials": 4, "epochs": 2, "searcher": "random", "scheduler": "none", "space": LR, **ONE}
    heard: list[str] = []
    undisturbed = run_search(tmp_path, shrink, heard, **asked).trials
    assert len(set(rates(undisturbed))) == 4
    assert [trial.loss for trial in undisturbed] == pytest.approx([(1 - lr) ** 2 for lr in rates(undisturbed)])
    assert heard[-1] == f"trial 4 of 4, best validation loss {min(trial.loss for trial in undisturbed):.4f}"
    (tmp_path / "trials" / "00001.json").unlink()
    (tmp_path / "trials" / "00003.json").write_text('{"values": {"train.lr"')  # killed while writing this one
    resumed = run_search(tmp_path, shrink, **asked).trials
    assert resumed[:2] == [undisturbed[1], undisturbed[3]]
    assert sorted(rates(resumed)) == sorted(rates(undisturbed))


@pytest.mark.slow
def test_failed_trials_and_losses_that_are_no_number(cluster: None, tmp_path: Path) -> None:
    asked = {"epochs": 2, "searcher": "grid", "scheduler": "asha", "space": STEPS, **ONE}
    found = run_search(tmp_path, constant, max_failed_trials=1, **asked)
    assert {trial.values["train.lr"]: trial.loss for trial in found.trials} == {
        0.1: 0.1,
        0.2: 0.2,
        0.3: 0.3,
        0.4: 0.4,
        0.5: None,
    }
    assert found.best.values == {"train.lr": 0.1}
    assert found.failed.startswith("1 failed, the first with: ")
    assert "lr is 0.6" in found.failed
    with pytest.raises(EngineError, match=r"1 of 6 trials failed, more than tune.max_failed_trials \(0\).*lr is 0.6"):
        run_search(tmp_path, constant, **asked)


def beside_a_failure(folder: Path, values: dict[str, Any], data: Any, _: Path | None) -> Iterator[Any]:
    """The first of two trials fails as soon as the second has an epoch; that has no end."""
    from lepton_ray.tune.on_ray import Epoch

    begun = folder / "begun"
    if values["train.lr"] == 0.1:
        wait_until(begun.exists, "an epoch of the trial beside")
        raise ValueError("lr is 0.1")
    while True:
        yield Epoch(values["train.lr"])
        begun.touch()
        time.sleep(0.1)  # an epoch's length: results without end or pace would keep Tune from all else


@pytest.mark.slow
def test_trials_beside_the_one_too_many_that_failed_begin_anew(cluster: None, tmp_path: Path) -> None:
    """A repeated search does not take what a trial had come to for its end."""
    space = {"train.lr": {"kind": "choice", "values": [0.1, 0.2]}}
    asked = {"epochs": 10**9, "searcher": "grid", "scheduler": "asha", "space": space, "cpus_per_trial": 2.0}
    with pytest.raises(EngineError, match=r"1 of 2 trials failed, .*lr is 0.1"):
        run_search(tmp_path, partial(beside_a_failure, tmp_path), **asked)
    assert (tmp_path / "begun").exists()
    assert journal_in(tmp_path).read() == []


@pytest.mark.slow
def test_a_search_of_which_all_trials_failed_says_why(cluster: None, tmp_path: Path) -> None:
    space = {"train.lr": {"kind": "choice", "values": [0.6, 0.7]}}
    with pytest.raises(EngineError, match=r"got none of 0 trials \(2 failed, .*lr is 0\.[67]"):
        run_search(tmp_path, constant, max_failed_trials=2, epochs=2, searcher="grid", space=space, **ONE)


@pytest.mark.slow
def test_pbt_goes_on_from_the_weights_of_the_best(cluster: None, tmp_path: Path) -> None:
    """A trial's loss is the product over the epochs of its schedule, through all the weights that it took over."""
    space = {"train.lr": {"kind": "uniform", "low": 0.0, "high": 0.3}}
    asked = {"num_trials": 6, "epochs": 8, "searcher": "random", "space": space, "cpus_per_trial": 2.0}
    trials = run_search(tmp_path, shrink, scheduler={"kind": "pbt", "resample_fraction": 0}, **asked).trials
    assert len(trials) == 6
    assert any(len(trial.schedule) > 1 for trial in trials), "some were the worst"
    for trial in trials:
        starts = [part["from_epoch"] for part in trial.schedule] + [9]
        factors = [
            (1 - part["values"]["train.lr"]) ** (end - start)
            for part, start, end in zip(trial.schedule, starts, starts[1:], strict=False)
        ]
        assert trial.epochs == 8
        assert trial.loss == pytest.approx(math.prod(factors))
        assert trial.values == trial.schedule[-1]["values"]
        for before, after in zip(trial.schedule, trial.schedule[1:], strict=False):
            ratio = after["values"]["train.lr"] / before["values"]["train.lr"]
            assert ratio == pytest.approx(0.8) or ratio == pytest.approx(1.2) or after["values"]["train.lr"] == 0.3


@pytest.mark.slow
def test_pbt_keeps_no_states_that_nobody_goes_on_from(cluster: None, tmp_path: Path) -> None:
    """With a look after every epoch each trial saves up to twice an epoch; every exchange still finds what it takes over."""
    space = {"train.lr": {"kind": "uniform", "low": 0.0, "high": 0.3}}
    scheduler = {"kind": "pbt", "perturb_epochs": 1, "quantile_fraction": 0.5}
    asked = {"num_trials": 4, "epochs": 12, "searcher": "random", "space": space, "cpus_per_trial": 2.0}
    trials = run_search(tmp_path, shrink, scheduler=scheduler, **asked).trials
    assert [trial.epochs for trial in trials] == [12] * 4
    assert sum(len(trial.schedule) > 2 for trial in trials), "exchanges"
    assert 4 <= len(list((tmp_path / "trials").rglob("weight.json"))) <= 4 * 3


@pytest.mark.slow
def test_a_replayed_schedule_comes_to_the_loss_of_its_trial(cluster: None, tmp_path: Path) -> None:
    """To the bit: what Tune did with a trial, pauses and weights of others included, is what its schedule says."""
    from lepton_ray.stages.tune import start_trial
    from lepton_ray.train import in_process
    from lepton_ray.train.replay import Part
    from lepton_ray.tune import on_ray

    model, train = MlpModel(kind="mlp", hidden=(8,), dropout=0.2), TrainSpec(epochs=6, global_batch_size=32)
    space = {
        "train.lr": {"kind": "log_uniform", "low": 1e-4, "high": 0.5},
        "train.global_batch_size": {"kind": "integer", "low": 16, "high": 64, "step": 16},
        "model.dropout": {"kind": "uniform", "low": 0.0, "high": 0.4, "step": 0.1},
    }
    spec = TuneSpec.model_validate(
        {
            "num_trials": 4,
            "epochs": 6,
            "searcher": "random",
            "scheduler": {"kind": "pbt", "perturb_epochs": 1, "quantile_fraction": 0.5},
            "space": space,
            "cpus_per_trial": 2.0,
        }
    )
    start = partial(start_trial, model, train, build_small, 5)
    place = place_of(spec, {}, 120.0)
    found = on_ray.search(spec, start, make_data(), 1, journal_in(tmp_path), [].append, place)  # type: ignore[arg-type]
    assert any(len(trial.schedule) > 1 for trial in found.trials), "some were the worst"
    for number, trial in enumerate(found.trials):
        parts = [
            Part(part["from_epoch"], partial(build_small, sections[0]), sections[1])
            for part in trial.schedule
            for sections in [apply_values(model, train, part["values"])]
        ]
        folder = tmp_path / str(number)
        state = in_process.fit(parts[0].build_model, make_data(), parts[0].spec, 5, folder, [].append, later=parts[1:])  # type: ignore[arg-type]
        assert min(metrics["val_loss"] for metrics in state.history) == trial.loss


def build_small(model: MlpModel) -> Any:
    return build_model(model, [ModelInput(name="x", shape=(WIDTH,))], CLASSES)


@pytest.mark.slow
def test_the_training_after_pbt_is_the_best_trial_again(cluster: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{a:.4f},{b:.4f},{'yes' if a * b + 0.3 * c > 0 else 'no'}" for a, b, c in rng.normal(size=(400, 3))]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,label", *rows]))
    spec = {
        "name": "replayed",
        "storage": str(tmp_path / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(tmp_path / "rows.csv")},
            "label": "label",
            "columns": {"a": "number", "b": "number", "label": "category"},
        },
        "model": {"kind": "mlp", "hidden": [8]},
        "train": {"epochs": 5, "global_batch_size": 32},
        "tune": {
            "num_trials": 4,
            "epochs": 5,
            "searcher": "random",
            "scheduler": {"kind": "pbt", "perturb_epochs": 1, "quantile_fraction": 0.5},
            "space": {"train.lr": {"kind": "log_uniform", "low": 1e-4, "high": 0.5}},
        },
    }
    result = run(parse_spec(json.dumps(spec), source="x"))
    trials, trained = result["tune"], result["train"]
    assert trials.schedule[-1]["values"] == trials.best
    assert min(metrics["val_loss"] for metrics in trained.history) == trials.best_loss
    assert json.loads((trained.folder / "train.json").read_text())["lr"] == trials.best["train.lr"]


def trade(values: dict[str, Any], data: Any, folder: Path | None) -> Iterator[Any]:
    """The loss is lr, the number of weights falls with it: every trial is on the front."""
    from lepton_ray.tune.on_ray import Epoch

    yield Epoch(values["train.lr"], lambda folder: None, num_parameters=round(1000 - 1000 * values["train.lr"]))


@pytest.mark.slow
def test_a_second_objective_takes_the_smallest_model_with_nearly_the_least_loss(cluster: None, tmp_path: Path) -> None:
    second = {"what": "num_parameters", "max_loss_excess_fraction": 1.0}
    searcher = {"kind": "optuna", "also_minimise": second}
    space = {"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.9}}
    asked = {"epochs": 1, "searcher": searcher, "scheduler": "none", "space": space, **ONE}
    run_search(tmp_path, trade, num_trials=3, **asked)
    found = run_search(tmp_path, trade, num_trials=6, **asked)
    assert [trial.cost for trial in found.trials] == [round(1000 - 1000 * lr) for lr in rates(found.trials)]
    assert rates(found.front) == sorted(rates(found.trials))
    least = min(rates(found.trials))
    assert found.best.loss == max(lr for lr in rates(found.trials) if lr <= 2 * least)


@pytest.mark.slow
def test_median_stops_what_is_worse_than_the_others_were(cluster: None, tmp_path: Path) -> None:
    """In order 0.1, 0.2, 0.3, 0.4: the last is the first with three before it, and worse than their median."""
    space = {"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.4, "step": 0.1}}
    scheduler = {"kind": "median", "grace_epochs": 3}
    found = run_search(tmp_path, constant, epochs=6, searcher="grid", scheduler=scheduler, space=space, **ONE)
    assert [trial.epochs for trial in found.trials] == [6, 6, 6, 3]
    assert [trial.stopped_early for trial in found.trials] == [False, False, False, True]


@pytest.mark.slow
def test_a_search_without_improvement_ends(cluster: None, tmp_path: Path) -> None:
    asked = {"epochs": 1, "searcher": "grid", "scheduler": "hyperband", "space": STEPS, **ONE}
    found = run_search(tmp_path, constant, stop_after_trials_without_improvement=2, **asked)
    assert rates(found.trials) == [0.1, 0.2, 0.3]
    assert found.stopped == "no improvement in 2 trials"


@pytest.mark.slow
def test_a_search_of_which_all_trials_ran_was_not_ended(cluster: None, tmp_path: Path) -> None:
    space = {"train.lr": {"kind": "choice", "values": [0.1, 0.2, 0.3]}}
    asked = {"epochs": 1, "searcher": "grid", "space": space, **ONE}
    found = run_search(tmp_path, constant, stop_after_trials_without_improvement=2, **asked)
    assert (rates(found.trials), found.stopped) == ([0.1, 0.2, 0.3], "")


def test_a_search_ends_when_its_seconds_are_over_and_uses_what_it_has(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only trial, which has no end, is cut off; the clock jumps when its first epoch is there."""
    from lepton_ray.tune import on_ray

    asked = {"num_trials": 1, "epochs": 10**9, "scheduler": "none", "space": LR, **ONE}
    journal = journal_in(tmp_path)
    journal.write_seconds(49)  # were spent before an interruption
    with pytest.raises(EngineError, match=r"got none of 0 trials \(max_seconds \(40\) were over\)"):
        run_search(tmp_path, shrink, max_seconds=40, **asked)
    monkeypatch.setattr(on_ray._Watcher, "seconds", property(lambda watcher: 2000 if watcher._running else 50))
    found = run_search(tmp_path, shrink, max_seconds=1000, **asked)
    assert found.stopped == "max_seconds (1000) were over"
    (trial,) = found.trials
    assert trial.epochs >= 1
    assert trial.stopped_early
    assert trial.loss == pytest.approx((1 - trial.values["train.lr"]) ** trial.epochs)
    assert found.trials == journal.read()
    assert journal.read_seconds() == 2000


def test_more_trials_than_the_cluster_holds_do_not_wait_for_each_other(cluster: None, tmp_path: Path) -> None:
    found = run_search(tmp_path, shrink, num_trials=5, epochs=4, cpus_per_trial=3.0, max_concurrent_trials=99, space=LR)
    assert len(found.trials) == 5


def test_a_trial_must_fit_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from lepton_ray.engine import resources

    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {}},
    ]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 5.0, "GPU": 1.0})
    held = [resources.num_held({"CPU": cpus}) for cpus in (0.3, 1, 1.5, 2, 3, 4)]
    assert held == [6 + 10, 5, 3, 2, 1, 0]
    assert resources.num_held({"CPU": 1, "GPU": 1}) == 1
    assert resources._lacking({"CPU": 4.0}, 1) == "machines with room for 1 of 4 CPU each (has room for 0)"
    assert resources._lacking({"CPU": 6.0}, 1) == "6 CPU (has 5)"
    assert not resources._lacking({"CPU": 1.0}, 5)


def test_brackets_of_hyperband_begin_further_and_further_out() -> None:
    from lepton_ray.tune.strategies.on_ray import build_scheduler

    section = {"kind": "hyperband", "grace_epochs": 2, "reduction_factor": 3, "brackets": 3}
    scheduler = build_scheduler(TuneSpec.model_validate({"epochs": 20, "scheduler": section, "space": LR}), seed=0)
    assert [sorted(rung for rung, _ in bracket._rungs) for bracket in scheduler._brackets] == [
        [2, 6, 18],
        [6, 18],
        [18],
    ]


def test_brackets_of_hyperband_follow_from_the_seed_alone() -> None:
    """Whatever else draws from NumPy's global generator, which the trials' numbers do not disturb in turn."""
    from lepton_ray.tune.strategies.on_ray import build_scheduler

    spec = TuneSpec.model_validate({"epochs": 20, "scheduler": "hyperband", "space": LR})

    def brackets(seed: int) -> list[int]:
        scheduler = build_scheduler(spec, seed)
        for number in range(50):
            np.random.random(number % 3)  # noqa: NPY002  others draw from it too
            scheduler.on_trial_add(None, SimpleNamespace(trial_id=number))
        return [scheduler._brackets.index(scheduler._trial_info[number]) for number in range(50)]

    np.random.seed(8)  # noqa: NPY002
    drawn = brackets(3)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(8)  # noqa: NPY002
    np.random.random(sum(number % 3 for number in range(50)))  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002
    assert brackets(3) == drawn != brackets(4)
    assert set(drawn) == {0, 1, 2}


@pytest.mark.slow
def test_a_population_of_one_process_is_the_same_for_the_same_seed(cluster: None, tmp_path: Path) -> None:
    """One trial at a time, so that results come in the same order."""
    space = {"train.lr": {"kind": "uniform", "low": 0.0, "high": 0.3}}
    asked = {"num_trials": 4, "epochs": 8, "searcher": "random", "scheduler": "pbt", "space": space, **ONE}
    first, again = (run_search(tmp_path / name, shrink, **asked).trials for name in ("first", "again"))
    assert [trial.schedule for trial in first] == [trial.schedule for trial in again]
    assert any(len(trial.schedule) > 1 for trial in first), "some were the worst"


@pytest.mark.parametrize("kind", ["optuna", "hyperopt"])
def test_a_learning_searcher_knows_the_trials_before_an_interruption(kind: str) -> None:
    """Told of 24 trials whose loss is the distance of log lr from that of 0.02, it proposes what is nearer than most of them."""
    from lepton_ray.tune.space import decode
    from lepton_ray.tune.strategies.on_ray import build_search

    space = {**LR, "model.hidden": {"kind": "choice", "values": [[8], [8, 4], [4]]}}
    spec = TuneSpec.model_validate({"num_trials": 100, "searcher": kind, "space": space})

    def loss(values: dict[str, Any]) -> float:
        return abs(math.log(values["train.lr"] / 0.02)) + len(values["model.hidden"])

    rng = np.random.default_rng(0)
    tried = [
        {
            "train.lr": float(np.exp(rng.uniform(np.log(1e-3), np.log(1e-1)))),
            "model.hidden": space["model.hidden"]["values"][n % 3],
        }
        for n in range(24)
    ]
    done = [Trial(values, None if n == 5 else loss(values), 1, stopped_early=False) for n, values in enumerate(tried)]
    search = build_search(spec, 7, done, max_concurrent=99)["search_alg"]
    proposed = [decode(spec.space, search.suggest(f"new-{n}")) for n in range(20)]
    assert {json.dumps(values) for values in proposed}.isdisjoint(json.dumps(values) for values in tried)
    untold = np.quantile([loss(values) for values in tried], 0.35)
    assert np.median([loss(values) for values in proposed]) < untold


@pytest.mark.parametrize("kind", ["optuna", "hyperopt"])
def test_a_learning_searcher_proposes_nothing_twice_where_settings_can_be_counted(kind: str) -> None:
    """Of six settings each comes once, that of a trial before an interruption included; then there is no other."""
    from ray.tune.search import Searcher

    from lepton_ray.tune.space import decode
    from lepton_ray.tune.strategies.on_ray import BEST, build_search

    space = {
        "train.optimizer": {"kind": "choice", "values": ["adam", "sgd"]},
        "model.hidden": {"kind": "choice", "values": [[8], [8, 4], [4]]},
    }
    spec = TuneSpec.model_validate({"space": space, "searcher": kind})
    assert spec.total_trials == 6
    tried: list[dict[str, Any]] = [{"train.optimizer": "adam", "model.hidden": [4]}]
    done = [Trial(values, 0.5, 1, stopped_early=False) for values in tried]
    search = build_search(spec, 7, done, max_concurrent=2)["search_alg"]
    for number in range(5):
        point = search.suggest(str(number))
        tried.append(decode(spec.space, point))
        search.on_trial_result(str(number), {BEST: 0.5, "training_iteration": 1})
        search.on_trial_complete(str(number), {BEST: 0.1 * number, "training_iteration": 2})
    assert len({json.dumps(values) for values in tried}) == 6
    assert search.suggest("6") == Searcher.FINISHED


def count_variables(values: dict[str, Any], data: Any, folder: Path | None) -> Iterator[Any]:
    """The loss is how many variables of an environment of its own the trial has."""
    import ray

    from lepton_ray.tune.on_ray import Epoch

    yield Epoch(float(len(ray.get_runtime_context().runtime_env.env_vars())))


def test_a_search_takes_workers_as_they_are_and_loads_nothing_for_reports_on_usage(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a trial with an environment of its own Ray ends a worker that waits, and starts another."""
    for name in ("mlflow", "comet", "wandb"):
        monkeypatch.delitem(sys.modules, f"ray.air.integrations.{name}", raising=False)
    trials = run_search(tmp_path, count_variables, num_trials=1, epochs=1, scheduler="none", space=LR, **ONE).trials
    assert trials[0].loss == 0
    assert not [name for name in sys.modules if name.startswith("ray.air.integrations.")]


_DRIVER = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
from pathlib import Path
sys.path.insert(0, {repository!r})
from lepton_ray.engine.session import close, connect
connect()
from tests.ray.test_search import LR, run_search, slow_second
run_search(Path({folder!r}), slow_second, num_trials=3, epochs=2, scheduler="none", max_concurrent_trials=1, space=LR)
print("ENDED")
close()
"""


def slow_second(values: dict[str, Any], data: Any, folder: Path | None) -> Iterator[Any]:
    """The first trial of a process ends; the next never does, until it is run in another process."""
    slow_second.calls = getattr(slow_second, "calls", 0) + 1  # type: ignore[attr-defined]
    if slow_second.calls == 2:  # type: ignore[attr-defined]
        time.sleep(600)
    return shrink(values, data, folder)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_killed_search_goes_on(cluster: None, tmp_path: Path, how: signal.Signals) -> None:
    code = _DRIVER.format(repository=str(REPOSITORY), folder=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_until(
            lambda: (tmp_path / "trials" / "00001.json").exists() or process.poll() is not None, "the first trial"
        )
        process.send_signal(how)
        output, errors = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert b"ENDED" not in output, "an interrupted search is not one that has ended"
    assert process.returncode != 0
    first = journal_in(tmp_path).read()
    assert len(first) == 1, errors.decode()
    found = run_search(tmp_path, shrink, num_trials=3, epochs=2, scheduler="none", space=LR, **ONE)
    assert found.trials[:1] == first
    assert len(set(rates(found.trials))) == 3
