"""A backbone of keras.applications with weights learned elsewhere, dropout, and the classes.

Nothing but weights is read: no file of Keras' own form, which may hold code. Normalisation over a batch keeps the statistics of the
pretraining: what a row gives depends on that row alone.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import SpecError
from lepton_ray.engine.keras import keras
from lepton_ray.models.backbones import find_backbone
from lepton_ray.models.keras.layers import channels_last, dense, entry
from lepton_ray.spec.backbone import ARCHITECTURES, KERAS_TYPE, KERAS_WEIGHTS, check_type, find_weights, read_backbone
from lepton_ray.spec.model import PretrainedModel


@dataclass(frozen=True)
class LayerGroups:
    """Which layers learn together."""

    spec: PretrainedModel
    groups: list[list[Any]]
    """Layers with weights, from the input to the top; what stands behind the last group belongs to it."""


class Backbone(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A network that normalises by the statistics of its pretraining, also while it learns; it has no dropout.

    ``train/keras_layer_groups.py`` looks for its ``layer_groups``.
    """

    def __init__(self, network: Any, layer_groups: LayerGroups, name: str) -> None:
        super().__init__(name=name)
        self.network, self.layer_groups = network, layer_groups

    def call(self, image_NHWK: Any) -> Any:
        """Return a vector for each image; whoever calls with ``training`` does not reach the network."""
        return self.network(image_NHWK, training=False)


def build(spec: PretrainedModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build the model: the backbone with its weights, or with fresh ones where the section has a ``config``; the rest is fresh.

    Raises:
        SpecError: If the backbone cannot be had, cannot be built, or does not take such an input.
    """
    (given,) = inputs
    try:
        backbone, groups = _build_backbone(spec, given)
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError([f"model.{'' if str(error).startswith('freeze ') else 'backbone '}{error}"]) from error
    image = entry(given)
    vector = Backbone(backbone, LayerGroups(spec, groups), name="backbone")(channels_last(image))
    vector = keras.layers.Dropout(spec.dropout, name="dropout")(vector)
    return keras.Model(image, dense(vector, num_outputs, "logits"), name="pretrained")


def _build_backbone(spec: PretrainedModel, given: ModelInput) -> tuple[Any, list[list[Any]]]:
    """Return the backbone and its groups of layers, those frozen for good that are."""
    folder = find_backbone("model", spec) if spec.config is None else None
    config = read_backbone(folder).config if folder is not None else (spec.config or {})
    check_type(config)
    if config["model_type"] != KERAS_TYPE:
        raise ValueError(f"must be one of keras, got a {config['model_type']}. Take another, or train.framework torch")
    if given.kind != "image":
        raise ValueError(f"must be one that takes {given.kind}, got one that takes an image. Take another")
    backbone = _fresh(config, given)
    if folder is not None:
        _load(backbone, folder, config)
    groups = _groups(backbone, ARCHITECTURES[config["architecture"]].groups)
    if isinstance(spec.freeze, int) and spec.freeze >= len(groups):
        raise ValueError(
            f"freeze must be less than {len(groups)}, the backbone's groups of layers, got {spec.freeze}. Use all, or lower it"
        )
    for depth, group in enumerate(reversed(groups)):
        for layer in group:
            layer.trainable = spec.first_epoch(depth, len(groups)) is not None
    return backbone, groups


def _fresh(config: Mapping[str, Any], given: ModelInput) -> Any:
    channels, height, width = given.shape
    options = {name: config[name] for name in ARCHITECTURES[config["architecture"]].options if name in config}
    make = getattr(keras.applications, config["architecture"])
    return make(
        include_top=False,
        weights=None,
        input_shape=(height, width, channels),
        pooling="avg",
        name="backbone",
        **options,
    )


def _load(backbone: Any, folder: Path, config: Mapping[str, Any]) -> None:
    path = find_weights(folder, config)
    try:
        if path is None:
            raise ValueError("no weights")
        if path.name == KERAS_WEIGHTS:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Keras 3.15 only warns of weights that the file has not
                backbone.load_weights(path)
            return
        weights = load_file(path)
        prefix = _prefix(backbone)
        for variable in backbone.weights:
            variable.assign(weights[variable.path.removeprefix(prefix)])
    except (ValueError, KeyError, OSError, UserWarning, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"must hold weights that fit its config.json, got {str(folder)!r} ({reason}). Save the model anew"
        ) from error


def _prefix(backbone: Any) -> str:
    """Return what the paths of weights begin with where the backbone is an encoder among others."""
    first = backbone.weights[0].path
    return str(first.removesuffix("/".join(first.split("/")[-2:])))


def _groups(backbone: Any, begins: Sequence[str]) -> list[list[Any]]:
    groups: list[list[Any]] = [[] for _ in begins]
    group = 0
    for layer in backbone.layers:
        group = next((place for place, begin in enumerate(begins) if layer.name.startswith(begin)), group)
        if layer.weights:
            groups[group].append(layer)
    return groups
