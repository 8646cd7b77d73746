"""train: features -> the weights of the best epoch."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import Checkpoint, FeatureSet, Target, Trials
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import EngineError
from lepton_ray.core.files import write_json
from lepton_ray.core.imports import load_function
from lepton_ray.engine.session import connect
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CustomModel, FusionModel, Model, TrainSpec
from lepton_ray.spec.tune import apply_values
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.featurize import feature_names, load_split
from lepton_ray.train import in_process
from lepton_ray.train.batches import TrainData
from lepton_ray.train.frameworks import load_training

VERSION = 4


def train(
    model: Model, train: TrainSpec, feature_set: FeatureSet, trials: Trials | None, ctx: RunContext
) -> Checkpoint:
    """Train with the best settings that the search found, or those of the spec."""
    checkpoint = load_training(train.framework).checkpoint
    if trials is not None:
        model, train = apply_values(model, train, trials.best)
    target = target_of(feature_set)
    build = partial(build_model, model, feature_set.inputs, target.num_outputs, train.framework)
    state = _fit(build, feature_set, train, ctx)
    if not math.isfinite(state.best_metrics["val_loss"]):
        raise EngineError(
            f"train.lr must let the training converge, got {train.lr:g}: the loss is not finite. Lower it"
        )
    checkpoint.save_weights(state.best_weights, ctx.folder / "model.safetensors")
    write_json(ctx.folder / "model.json", model.model_dump(mode="json"))
    write_json(ctx.folder / "train.json", train.model_dump(mode="json"))
    return Checkpoint(
        best_epoch=state.best_epoch,
        metrics=_in_units(state.best_metrics, target),
        history=tuple(_in_units(metrics, target) for metrics in state.history),
        num_workers=train.num_workers,
    )


def preflight(model: Model | None) -> None:
    """Import the modules of custom models, before anything is read.

    Raises:
        SpecError: If one cannot be imported.
    """
    parts: dict[str, Model | None] = {"model": model}
    if isinstance(model, FusionModel):
        parts = {f"model.encoders.{name}": encoder for name, encoder in model.encoders.items()}
    for place, part in parts.items():
        if isinstance(part, CustomModel):
            load_function(part.module, f"{place}.module")


def _fit(build: Any, feature_set: FeatureSet, train: TrainSpec, ctx: RunContext) -> Any:
    data = load_data(feature_set, ctx)
    if train.num_workers == 1 and not train.use_gpu and ctx.is_local:
        return in_process.fit(build, data, train, ctx.seed, Path(ctx.work_path), ctx.update)
    connect()
    from lepton_ray.train import on_ray  # noqa: PLC0415  Ray is imported by connect

    return on_ray.fit(build, data, train, ctx.seed, on_ray.Storage(ctx.filesystem, ctx.work_path), ctx.update)


def load_data(feature_set: FeatureSet, ctx: RunContext) -> TrainData:
    """Read the prepared splits into memory."""
    signature = Signature.model_validate_json((feature_set.folder / "signature.json").read_bytes())
    numbers = tuple(name if name in signature.of_kind("number") else None for name in feature_names(feature_set))
    target = target_of(feature_set)
    (x_train, y_train), (x_val, y_val) = (load_split(feature_set, split, ctx) for split in ("train", "val"))
    data = TrainData(x_train, _scale(y_train, target), x_val, _scale(y_val, target), number_columns=numbers)
    tokens = next((i for i in feature_set.inputs if i.kind == "tokens"), None)
    return data if tokens is None else replace(data, unknown_id=tokens.unknown_id, padding_id=tokens.padding_id)


def target_of(feature_set: FeatureSet) -> Target:
    """Return what the model of a run predicts.

    Raises:
        ValueError: If there is no label; the spec is not valid then.
    """
    if feature_set.target is None:
        raise ValueError("a model must have a label")
    return feature_set.target


def _scale(y: Any, target: Target) -> Any:
    return y if target.classes else ((y - target.mean) / target.std).astype(np.float32)


def _in_units(metrics: dict[str, float], target: Target) -> dict[str, float]:
    """Return metrics with errors in the label's units; the loss stays that of the scaled number."""
    return {name: value * target.std if name.endswith("_mae") else value for name, value in metrics.items()}
