"""tune: features -> the settings with the least validation loss, and all trials."""

import json
from functools import partial
from typing import Any

from lepton_ray.artifacts.kinds import FeatureSet, Trials
from lepton_ray.core.extras import require
from lepton_ray.engine.session import connect
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.base import replace
from lepton_ray.spec.model import Model, TrainSpec
from lepton_ray.spec.tune import TuneSpec
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.train import load_data

VERSION = 1


def tune(model: Model, train: TrainSpec, tune: TuneSpec, feature_set: FeatureSet, ctx: RunContext) -> Trials:
    """Search."""
    require("torch", "training")
    require("optuna", "the search")
    from lepton_ray.tune import on_ray  # noqa: PLC0415  after the friendly message on what is missing

    connect()
    trials = on_ray.search(
        tune,
        partial(settings_of, model, train),
        partial(build_model, input_shape=feature_set.shape, num_classes=len(feature_set.classes)),
        load_data(feature_set),
        ctx.seed,
        on_ray.Journal(ctx.filesystem, f"{ctx.work_path}/trials"),
        ctx.update,
    )
    lines = [json.dumps(trial.__dict__) for trial in trials]
    (ctx.folder / "trials.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    best = min(trials, key=lambda trial: (trial.loss != trial.loss, trial.loss))
    num_stopped = sum(trial.stopped_early for trial in trials)
    return Trials(best=best.values, best_loss=best.loss, num_trials=len(trials), num_stopped_early=num_stopped)


def settings_of(model: Model, train: TrainSpec, values: dict[str, Any]) -> tuple[Model, TrainSpec]:
    """Return the sections with a trial's values (by path, ``train.lr``), validated again."""
    for path, value in values.items():
        section, _, field = path.partition(".")
        if section == "model":
            model = type(model).model_validate(replace(model, (field,), value))
        else:
            train = TrainSpec.model_validate(replace(train, (field,), value))
    return model, train
