"""train: features -> the weights of the best epoch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_part
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lepton_ray.artifacts.kinds import Checkpoint, FeatureSet, Target, Trials
from lepton_ray.core.errors import EngineError, SpecError
from lepton_ray.core.extras import require
from lepton_ray.core.files import write_json
from lepton_ray.core.imports import load_function, source_digest
from lepton_ray.engine.session import connect
from lepton_ray.models.backbones import digests, find_backbone
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.backbone import BUILT_HERE, Backbone, check_backbone, read_backbone
from lepton_ray.spec.base import replace
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.model import CustomModel, Framework, Model, PretrainedModel, TrainSpec, backbones_of, parts_of
from lepton_ray.spec.tune import apply_values
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.train_data import load_data, target_of
from lepton_ray.train import in_process
from lepton_ray.train.frameworks import load_library
from lepton_ray.train.replay import Part
from lepton_ray.train.resources import is_in_driver

VERSION = 7
WITHOUT_EFFECT = {"train": {"max_failures", "start_timeout_s"}}


def train(
    model: Model, train: TrainSpec, feature_set: FeatureSet, trials: Trials | None, ctx: RunContext
) -> Checkpoint:
    """Train with the best settings that the search found, as they were in each epoch of its trial, or with those of the spec."""
    checkpoint = load_library(train.framework).checkpoint
    schedule = [(1, trials.best if trials else {})]
    if trials is not None and trials.schedule:
        schedule = [(part["from_epoch"], part["values"]) for part in trials.schedule]
    target = target_of(feature_set)
    model, build = with_backbones(apply_values(model, train, schedule[0][1])[0], feature_set, train, ctx.seed)
    parts = []
    for from_epoch, values in schedule:  # what stands at the end is the last part's, and written down
        model, train = apply_values(model, train, values)
        parts.append(Part(from_epoch, partial(build_of(feature_set, train.framework), model), train))
    state = _fit([replace_part(parts[0], build_model=build), *parts[1:]], feature_set, ctx)
    if not math.isfinite(state.best_metrics["val_loss"]):
        raise EngineError(
            f"train.lr must let the training converge, got {train.lr:g}: the loss is not finite in epoch {len(state.history)}. Lower it"
            f"{', or correct model.module' if isinstance(model, CustomModel) else ''}"
        )
    checkpoint.save_weights(state.best_weights, ctx.folder / "model.safetensors")
    write_json(ctx.folder / "model.json", model.model_dump(mode="json"))
    write_json(ctx.folder / "train.json", train.model_dump(mode="json"))
    ctx.work.update(rows=feature_set.split_rows["train"], epochs=len(state.history), processes=train.num_workers)
    return Checkpoint(
        best_epoch=state.best_epoch,
        metrics=_in_units(state.best_metrics, target),
        history=tuple(_in_units(metrics, target) for metrics in state.history),
        num_workers=train.num_workers,
    )


def preflight(model: Model | None, train: TrainSpec, features: FeaturesSpec, data: DataSpec) -> None:
    """Import the modules of custom models and find pretrained backbones, before anything is read.

    Raises:
        SpecError: If one cannot be imported, or a backbone cannot be had or does not fit the features.
    """
    for place, part in parts_of(model).items():
        if isinstance(part, CustomModel):
            load_library(train.framework)  # prepares what the module may import itself
            load_function(part.module, f"{place}.module")
    problems: list[str] = []
    for place, part in _to_be_read(model).items():
        backbone = _read(place, part)
        if backbone.library == "torch" and backbone.config["model_type"] not in BUILT_HERE:
            require("transformers", f"{place} of kind 'pretrained'")
        problems += check_backbone(place, part, backbone, train.framework, features, data)
    if problems:
        raise SpecError(problems)


def fingerprint(model: Model | None) -> dict[str, Any] | None:
    """Return what the stage's result depends on outside of the spec: the files of backbones, the code of modules; None without one."""
    files = {place: digests(find_backbone(place, part)) for place, part in _to_be_read(model).items()}
    code = {
        place: source_digest(part.module) for place, part in parts_of(model).items() if isinstance(part, CustomModel)
    }
    return {**files, **code} or None


def _to_be_read(model: Model | None) -> dict[str, PretrainedModel]:
    return {place: part for place, part in backbones_of(model).items() if part.config is None}


def _read(place: str, model: PretrainedModel) -> Backbone:
    try:
        return read_backbone(find_backbone(place, model))
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError([f"{place}.backbone {error}"]) from error


def with_backbones(
    model: Model, feature_set: FeatureSet, train: TrainSpec, seed: int
) -> tuple[Model, Callable[[], Any]]:
    """Return the model as it is trained and stored, and what builds it anywhere.

    The files of pretrained backbones are read here and once: their configurations go into the section, their weights along with
    what is returned. So no worker, and nobody who has the checkpoint, needs them.
    """
    build = build_of(feature_set, train.framework)
    parts = _to_be_read(model)
    if not parts:
        return model, partial(build, model)
    described = model
    for place, part in parts.items():
        path = (*place.split(".")[1:], "config")
        data = replace(described, {path: dict(_read(place, part).config)})
        described = TypeAdapter[Model](Model).validate_python(data)
    library = load_library(train.framework)
    start = library.loop.start_state(partial(build, model), train, seed)
    return described, BuildWithWeights(
        partial(build, described), library.checkpoint.weights_of(start.model), train.framework
    )


def build_of(feature_set: FeatureSet, framework: Framework) -> Callable[[Model], Any]:
    """Return what builds a model for the features; it travels to workers."""
    target = target_of(feature_set)
    return partial(build_model, inputs=feature_set.inputs, num_outputs=target.num_outputs, framework=framework)


@dataclass(frozen=True)
class BuildWithWeights:
    """Builds a model and gives it weights that travel along."""

    build: Callable[[], Any]
    weights: dict[str, Any]
    framework: Framework

    def __call__(self) -> Any:
        """Return the model."""
        model = self.build()
        load_library(self.framework).checkpoint.give_weights(model, self.weights)
        return model


def _fit(parts: Sequence[Part], feature_set: FeatureSet, ctx: RunContext) -> Any:
    first, *later = parts
    build, train = first.build_model, first.spec
    data = load_data(feature_set, train, ctx)
    if is_in_driver(train, ctx.is_local):
        return in_process.fit(build, data, train, ctx.seed, Path(ctx.work_path), ctx.update, ctx.over_budget, later)
    connect()
    from lepton_ray.train import on_ray  # noqa: PLC0415  Ray is imported by connect

    storage = on_ray.Storage(ctx.filesystem, ctx.work_path)
    return on_ray.fit(build, data, train, ctx.seed, storage, ctx.update, ctx.over_budget, later)


def _in_units(metrics: dict[str, float], target: Target) -> dict[str, float]:
    """Return metrics with errors in the label's units; the loss stays that of the scaled number."""
    return {name: value * target.std if name.endswith("_mae") else value for name, value in metrics.items()}
