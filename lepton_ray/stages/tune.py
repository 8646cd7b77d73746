"""tune: features -> the settings with the least validation loss, and all trials."""

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from lepton_ray.artifacts.kinds import FeatureSet, Trials
from lepton_ray.core.extras import require
from lepton_ray.engine.session import connect
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import Model, TrainSpec
from lepton_ray.spec.tune import TuneSpec, apply_values
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.train import load_data
from lepton_ray.train.frameworks import load_training

if TYPE_CHECKING:
    from lepton_ray.train.batches import TrainData

VERSION = 1


def tune(model: Model, train: TrainSpec, tune: TuneSpec, feature_set: FeatureSet, ctx: RunContext) -> Trials:
    """Search."""
    load_training(train.framework)
    require("optuna", "the search")
    connect()
    from lepton_ray.tune import on_ray  # noqa: PLC0415  Ray is imported by connect

    trials = on_ray.search(
        tune,
        partial(train_trial, model, train, tune.epochs, feature_set.shape, len(feature_set.classes), ctx.seed),
        load_data(feature_set, ctx),
        ctx.seed,
        on_ray.Journal(ctx.filesystem, f"{ctx.work_path}/trials"),
        ctx.update,
    )
    lines = [json.dumps(trial.__dict__) for trial in trials]
    (ctx.folder / "trials.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    best = min(trials, key=lambda trial: (trial.loss != trial.loss, trial.loss))
    num_stopped = sum(trial.stopped_early for trial in trials)
    return Trials(best=best.values, best_loss=best.loss, num_trials=len(trials), num_stopped_early=num_stopped)


def train_trial(
    model: Model,
    train: TrainSpec,
    epochs: int,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    values: dict[str, Any],
    data: "TrainData",
) -> Iterator[dict[str, float]]:
    """Train one trial in this process and yield the metrics of each epoch."""
    model, train = apply_values(model, train, {**values, "train.epochs": epochs})
    loop = load_training(train.framework).loop
    build = partial(build_model, model, input_shape, num_classes, train.framework)
    state = loop.start_state(build, train, seed)
    for state_now in loop.train_epochs(state, data, train, seed):
        yield state_now.history[-1]
