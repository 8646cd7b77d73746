"""tune: features -> the settings with the least validation loss, and all trials."""

import json
import uuid
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_ray.artifacts.kinds import FeatureSet, Trials
from lepton_ray.core import settings
from lepton_ray.core.extras import require
from lepton_ray.engine.session import connect
from lepton_ray.spec.model import Model, TrainSpec
from lepton_ray.spec.tune import TuneSpec, apply_values
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.train import build_of
from lepton_ray.stages.train import fingerprint as fingerprint  # a search depends on what a training depends on
from lepton_ray.stages.train_data import load_data
from lepton_ray.train.frameworks import load_library, load_training
from lepton_ray.train.resources import worker_resources
from lepton_ray.tune.place import place_of

if TYPE_CHECKING:
    from lepton_ray.train.on_ray import Storage
    from lepton_ray.train.rows import Source
    from lepton_ray.tune.on_ray import Epoch

VERSION = 8
WITHOUT_EFFECT = {"train": {"max_failures", "start_timeout_s"}}
_SAID = {"num_parameters": "model parameters", "epoch_s": "seconds an epoch"}


def preflight(tune: TuneSpec) -> None:
    """Check that the searcher is installed."""
    if tune.searcher.kind in ("optuna", "hyperopt"):
        require(tune.searcher.kind, f"tune.searcher {tune.searcher.kind}")


def tune(model: Model, train: TrainSpec, tune: TuneSpec, feature_set: FeatureSet, ctx: RunContext) -> Trials:
    """Search."""
    load_library(train.framework)
    connect()
    from lepton_ray.tune import on_ray  # noqa: PLC0415  Ray is imported by connect
    from lepton_ray.tune.journal import Journal  # noqa: PLC0415

    build = build_of(feature_set, train.framework)
    build(model)  # what cannot be built fails here, not in a trial
    start, data = _trials(model, train, tune, build, feature_set, ctx)
    place = place_of(tune, worker_resources(train), train.start_timeout_s)
    journal = Journal(ctx.filesystem, f"{ctx.work_path}/trials")
    found = on_ray.search(tune, start, data, ctx.seed, journal, ctx.update, place, ctx.over_budget)
    ctx.work.update(
        rows=feature_set.split_rows["train"],
        epochs=sum(trial.epochs for trial in found.trials),
        processes=found.num_concurrent * tune.workers_per_trial,
    )
    lines = [
        json.dumps({**asdict(trial), "taken": trial is found.best, "on_front": trial in found.front}, allow_nan=False)
        for trial in found.trials
    ]
    (ctx.folder / "trials.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Trials(
        best=found.best.values,
        schedule=tuple(found.best.schedule),
        best_loss=found.best.rank,
        num_trials=len(found.trials),
        num_stopped_early=sum(trial.stopped_early for trial in found.trials),
        second_objective=_SAID[tune.second_objective.what] if tune.second_objective else "",
        stopped=found.stopped,
        failed=found.failed,
    )


def _trials(
    model: Model,
    train: TrainSpec,
    tune: TuneSpec,
    build: Callable[[Model], Any],
    feature_set: FeatureSet,
    ctx: RunContext,
) -> tuple[Any, Any]:
    """Return what starts a trial, and the data that it is given."""
    from lepton_ray.train import on_ray  # noqa: PLC0415  Ray is imported by connect

    data = load_data(feature_set, train, ctx)
    values = {"min_workers": None, "num_workers": tune.workers_per_trial, "epochs": tune.epochs}
    sections = apply_values(model, train, {f"train.{name}": value for name, value in values.items()})
    if tune.workers_per_trial == 1:
        return partial(start_trial, *sections, build, ctx.seed), data
    storage = on_ray.Storage(ctx.filesystem, f"{ctx.work_path}/runs")
    storage.remove()  # a killed search's
    return partial(start_nested_trial, *sections, build, ctx.seed, storage), on_ray.share(data)


def start_trial(
    model: Model,
    train: TrainSpec,
    build: Callable[[Model], Any],
    seed: int,
    values: dict[str, Any],
    data: "Source",
    folder: Path | None,
) -> "Generator[Epoch, None, None]":
    """Start training one trial in this process; from ``folder`` with the weights there, but its own settings."""
    from lepton_ray.tune.on_ray import Epoch  # noqa: PLC0415  Ray is there in a worker

    if train.framework == "jax":
        settings.train_on_jax()
    loop, checkpoint = load_training(train.framework)
    model, train = apply_values(model, train, values)
    state = loop.start_state(partial(build, model), train, seed)
    if folder is not None:
        checkpoint.restore(state, folder)
    num_parameters = loop.num_parameters(state.model)
    return (
        Epoch(state_now.history[-1]["val_loss"], partial(checkpoint.save, state_now), num_parameters)
        for state_now in loop.train_epochs(state, data, train, seed)
        if state_now.step == 0
    )


def start_nested_trial(
    model: Model,
    train: TrainSpec,
    build: Callable[[Model], Any],
    seed: int,
    storage: "Storage",
    values: dict[str, Any],
    shared_data: Any,
    folder: Path | None,
) -> "Generator[Epoch, None, None]":
    """Train one trial on ``train.num_workers`` workers, which are started with the first epoch; always anew."""
    from lepton_ray.train import on_ray  # noqa: PLC0415  Ray is there in a worker
    from lepton_ray.tune.on_ray import Epoch  # noqa: PLC0415

    model, train = apply_values(model, train, values)
    num_parameters = load_library(train.framework).loop.num_parameters(build(model))
    own = on_ray.Storage(storage.filesystem, f"{storage.path}/{uuid.uuid4().hex}")
    try:
        with closing(on_ray.stream(partial(build, model), shared_data, train, seed, own)) as epochs:
            for metrics in epochs:
                yield Epoch(metrics["val_loss"], num_parameters=num_parameters)
    finally:
        own.remove()
