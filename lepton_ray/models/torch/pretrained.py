"""A backbone with weights learned elsewhere. Legend: N rows, L tokens or patches, W width of the backbone, C classes.

Backbones are those of transformers, loaded from safetensors alone and never with code of their own, and EfficientNet-Lite.
Normalisation over a batch keeps the statistics of the pretraining: what a row gives depends on that row alone.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import SpecError
from lepton_ray.core.extras import require
from lepton_ray.models.backbones import find_backbone
from lepton_ray.models.torch.efficientnet_lite import EfficientNetLite
from lepton_ray.models.torch.lora import LowRank, add_lora
from lepton_ray.models.torch.tokens import mean_of_tokens, to_front
from lepton_ray.spec.backbone import BUILT_HERE, TAKES, WEIGHTS, check_type, read_backbone
from lepton_ray.spec.model import PretrainedModel

_LAYERS = {
    "bert": "encoder.layer",
    "distilbert": "transformer.layer",
    "electra": "encoder.layer",
    "vit": "layers",
    "resnet": "encoder.stages",
    "convnext": "encoder.stages",
    "efficientnet_lite": "blocks",
}
_WITH_POOLER = ("bert", "vit")  # which is left out: it has learned another task


class TextBackbone(nn.Module):
    """An encoder of transformers on token ids, to a vector a text."""

    def __init__(self, encoder: Any, pooling: str, padding_id: int) -> None:
        super().__init__()
        self.encoder, self.pooling, self.padding_id = encoder, pooling, padding_id
        self.width = int(encoder.config.hidden_size)

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Return (N, W); padding may stand anywhere, and a text without a token gives zeros with ``mean``."""
        ids_NL, is_token_NL = to_front(ids_NL, self.padding_id)
        is_seen_NL = is_token_NL | ~is_token_NL.any(1, keepdim=True)  # attention to nothing at all would be NaN
        values_NLW = self.encoder(input_ids=ids_NL, attention_mask=is_seen_NL.long()).last_hidden_state
        return values_NLW[:, 0] if self.pooling == "first" else mean_of_tokens(values_NLW, is_token_NL)


class ImageBackbone(nn.Module):
    """An encoder of transformers on images, to a vector an image."""

    def __init__(self, encoder: Any, pooling: str) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        config = encoder.config
        self.width = int(getattr(config, "hidden_size", None) or config.hidden_sizes[-1])

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return (N, W)."""
        given = self.encoder(pixel_values=image_NKHW)
        if given.last_hidden_state.ndim == 3:  # noqa: PLR2004  rows, patches, width
            values_NLW: Tensor = given.last_hidden_state
            return values_NLW[:, 0] if self.pooling == "first" else values_NLW[:, 1:].mean(1)
        pooled_NW: Tensor = given.pooler_output.flatten(1)
        return pooled_NW


class Pretrained(nn.Module):
    """A backbone, dropout, and the classes."""

    def __init__(self, spec: PretrainedModel, backbone: nn.Module, layers: str, num_outputs: int) -> None:
        super().__init__()
        self.spec, self.backbone, self.layers = spec, backbone, layers
        if spec.lora is not None:
            add_lora(backbone, spec.lora)
        width: Any = backbone.width
        self.head = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(width, num_outputs))

    def forward(self, values: Tensor) -> Tensor:
        """Return logits (N, C) of ids (N, L) or an image (N, K, H, W)."""
        logits_NC: Tensor = self.head(self.backbone(values))
        return logits_NC

    def train(self, mode: bool = True) -> Self:
        """Switch dropout; normalisations over a batch keep their statistics."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return what each group of the backbone's layers may learn: what stands before the layers first, then layer by layer.

        What stands behind the layers belongs to the last of them. With LoRA only the thin matrices learn.
        """
        prefix = f"{self.layers}."
        layers: Any = self.backbone.get_submodule(self.layers)
        groups: list[list[nn.Parameter]] = [[] for _ in range(len(layers) + 1)]
        thin = {id(p) for m in self.backbone.modules() if isinstance(m, LowRank) for p in m.parameters()}
        group = 0
        for name, parameter in self.backbone.named_parameters():
            if name.startswith(prefix):
                group = 1 + int(name[len(prefix) :].partition(".")[0])
            if self.spec.lora is None or id(parameter) in thin:
                groups[group].append(parameter)
        return groups


def build(spec: PretrainedModel, inputs: Sequence[ModelInput], num_outputs: int) -> Pretrained:
    """Build the module: the backbone with its weights, or with fresh ones where the section has a ``config``; the rest is fresh.

    Raises:
        SpecError: If the backbone cannot be had, cannot be built, or does not take such an input.
        MissingExtraError: If transformers is not installed.
    """
    (given,) = inputs
    try:
        backbone, layers = _build_backbone(spec, given)
        model = Pretrained(spec, backbone, layers, num_outputs)
        if isinstance(spec.freeze, int) and spec.freeze >= (groups := len(model.layer_groups())):
            raise ValueError(
                f"freeze must be less than {groups}, the backbone's groups of layers, got {spec.freeze}. Use all, or lower it"
            )
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        place = "" if str(error).startswith(("lora.", "freeze ")) else "backbone "
        raise SpecError([f"model.{place}{error}"]) from error
    return model


def _build_backbone(spec: PretrainedModel, given: ModelInput) -> tuple[nn.Module, str]:
    """Return the backbone and where its layers are."""
    folder = find_backbone("model", spec) if spec.config is None else None
    config = read_backbone(folder).config if folder is not None else (spec.config or {})
    check_type(config)
    kind: str = config["model_type"]
    if kind not in TAKES:
        raise ValueError(f"must be one of torch, got a {kind}. Take another, or train.framework keras")
    if given.kind != TAKES[kind]:
        raise ValueError(f"must be one that takes {given.kind}, got a {kind}, which takes {TAKES[kind]}. Take another")
    if kind in BUILT_HERE:
        backbone = EfficientNetLite(config)
        if folder is not None:
            _load_lite(backbone, folder)
        return backbone, _LAYERS[kind]
    encoder = _build_encoder(config, folder)
    layers = f"encoder.{_LAYERS[kind]}"
    if TAKES[kind] == "image":
        return ImageBackbone(encoder, spec.pooling), layers
    _check_tokens(encoder.config, given)
    return TextBackbone(encoder, spec.pooling, given.padding_id), layers


def _load_lite(backbone: nn.Module, folder: Path) -> None:
    try:
        backbone.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise _no_weights(folder, str(error).splitlines()[-1].strip()) from error


def _build_encoder(config: Mapping[str, Any], folder: Path | None) -> Any:
    """Return an encoder of transformers: with the weights of a folder, or fresh ones without."""
    transformers = require("transformers", "a model of kind 'pretrained'")
    kind = config["model_type"]
    options: dict[str, Any] = {"add_pooling_layer": False} if kind in _WITH_POOLER else {}
    settings = {name: value for name, value in config.items() if name != "model_type"}
    try:
        shape = transformers.AutoConfig.for_model(kind, **settings)
        if folder is None:
            return transformers.AutoModel.from_config(shape, trust_remote_code=False, dtype=torch.float32, **options)
        with _quiet(transformers):
            encoder, report = transformers.AutoModel.from_pretrained(
                str(folder),
                config=shape,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (RuntimeError, TypeError, KeyError, AttributeError, OSError, SafetensorError) as error:
        raise _no_weights(folder or Path("model.config"), str(error).splitlines()[0]) from error
    if lacking := sorted(report["missing_keys"]):
        raise _no_weights(folder, f"{lacking[0]} missing")
    return encoder


def _no_weights(folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"must hold weights that fit its config.json, got {str(folder)!r} ({reason}). Save the model anew"
    )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing a bar and a table of weights that are left out on purpose."""
    log = transformers.utils.logging
    level, has_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if has_bar:
            log.enable_progress_bar()


def _check_tokens(config: Any, given: ModelInput) -> None:
    if (given.num_ids or 0) > config.vocab_size:
        raise ValueError(
            f"must know all token ids, got {given.num_ids} for its {config.vocab_size}. Take its tokenizer.json"
        )
    if given.shape[0] > config.max_position_embeddings:
        raise ValueError(
            f"must have learned texts of features.texts.encode.max_length ({given.shape[0]}), got {config.max_position_embeddings}. "
            "Lower max_length"
        )
    if given.padding_id != config.pad_token_id:
        raise ValueError(
            f"must pad with the id of the features ({given.padding_id}), got {config.pad_token_id}. Take its tokenizer.json"
        )
