"""tune: features -> the settings with the least validation loss, and all trials."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_ray.artifacts.kinds import FeatureSet, Trials
from lepton_ray.core.extras import require
from lepton_ray.engine.session import connect
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import Model, TrainSpec
from lepton_ray.spec.tune import TuneSpec, apply_values
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.train import load_data, target_of
from lepton_ray.train.frameworks import load_training

if TYPE_CHECKING:
    from lepton_ray.train.batches import TrainData
    from lepton_ray.tune.on_ray import Epoch

VERSION = 3


def preflight(tune: TuneSpec) -> None:
    """Check that the searcher is installed."""
    if tune.searcher.kind in ("optuna", "hyperopt"):
        require(tune.searcher.kind, f"tune.searcher {tune.searcher.kind}")


def tune(model: Model, train: TrainSpec, tune: TuneSpec, feature_set: FeatureSet, ctx: RunContext) -> Trials:
    """Search."""
    load_training(train.framework)
    connect()
    from lepton_ray.tune import on_ray  # noqa: PLC0415  Ray is imported by connect
    from lepton_ray.tune.journal import Journal  # noqa: PLC0415

    build = partial(
        build_model,
        inputs=feature_set.inputs,
        num_outputs=target_of(feature_set).num_outputs,
        framework=train.framework,
    )
    build(model)  # what cannot be built fails here, not in a trial
    found = on_ray.search(
        tune,
        partial(start_trial, *apply_values(model, train, {"train.epochs": tune.epochs}), build, ctx.seed),
        load_data(feature_set, ctx),
        ctx.seed,
        Journal(ctx.filesystem, f"{ctx.work_path}/trials"),
        ctx.update,
    )
    lines = [
        json.dumps({**asdict(trial), "taken": trial is found.best, "on_front": trial in found.front}, allow_nan=False)
        for trial in found.trials
    ]
    (ctx.folder / "trials.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Trials(
        best=found.best.values,
        best_loss=found.best.rank,
        num_trials=len(found.trials),
        num_stopped_early=sum(trial.stopped_early for trial in found.trials),
        stopped=found.stopped,
    )


def start_trial(
    model: Model,
    train: TrainSpec,
    build: Callable[[Model], Any],
    seed: int,
    values: dict[str, Any],
    data: "TrainData",
    folder: Path | None,
) -> "Iterator[Epoch]":
    """Start training one trial in this process; from ``folder`` with the weights there, but its own settings."""
    from lepton_ray.tune.on_ray import Epoch  # noqa: PLC0415  Ray is there in a worker

    loop, checkpoint = load_training(train.framework)
    model, train = apply_values(model, train, values)
    state = loop.start_state(partial(build, model), train, seed)
    if folder is not None:
        checkpoint.restore(state, folder, with_settings=False)
    num_parameters = loop.num_parameters(state.model)
    return (
        Epoch(state_now.history[-1]["val_loss"], partial(checkpoint.save, state_now), num_parameters)
        for state_now in loop.train_epochs(state, data, train, seed)
    )
