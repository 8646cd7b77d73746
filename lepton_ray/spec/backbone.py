"""What the files of a pretrained backbone say of it, and the features that it must be given: those that it has learned from.

Files of its folder, in the form of Hugging Face: ``config.json``, and where they are there ``tokenizer.json`` (its vocabulary)
and ``preprocessor_config.json`` (how pixels were normalised). Those of keras.applications have a ``config.json`` like theirs.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lepton_ray.spec.data import DataSpec, ImageColumn, TextColumn
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_content import (
    ChannelNormalisation,
    IdsEncoding,
    ImageFeatures,
    SubwordTokens,
    TextFeatures,
)
from lepton_ray.spec.model import Framework, Model, PretrainedModel, backbones_of, library_of
from lepton_ray.spec.tokenizer_file import TokenizerFile, read_tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
KERAS_WEIGHTS = "model.weights.h5"
"""What ``save_weights`` of a Keras model writes; taken in place of ``WEIGHTS``."""
_TOKENIZER = "tokenizer.json"
_PREPROCESSOR = "preprocessor_config.json"
FILES = (CONFIG, WEIGHTS, KERAS_WEIGHTS, _TOKENIZER, _PREPROCESSOR)
"""All that is ever read of a backbone."""
_MAX_JSON_BYTES = 256 << 20
_MEAN_TOLERANCE = 0.01  # publishers round: 127/255 and 0.5 are one
_LEVELS = 255
_WIDEST = 4
_RGB = 3

Takes = Literal["tokens", "image"]
TAKES: dict[str, Takes] = {
    # whose tokenizers the graph of the features can compute
    **dict.fromkeys(("bert", "distilbert", "electra"), "tokens"),
    **dict.fromkeys(("vit", "resnet", "convnext", "efficientnet_lite"), "image"),
}
"""By ``model_type``; those of torch."""
_STAGED = ("resnet", "convnext")  # whose groups of layers are the stages, each of so many layers (``depths``)
BUILT_HERE = ("efficientnet_lite",)
"""What needs no library."""
KERAS_TYPE = "keras_applications"
"""The ``model_type`` of an image model of keras.applications."""


class Architecture(NamedTuple):
    """A model of keras.applications."""

    groups: tuple[str, ...]
    """How the names of the layers begin that a group of layers begins with, from the input; the first group is the stem."""
    options: tuple[str, ...] = ()
    """Arguments of its function that a ``config.json`` may have."""


_STAGES = ("conv1_", "conv2_", "conv3_", "conv4_", "conv5_")
ARCHITECTURES = {
    "MobileNetV2": Architecture(("Conv1", "expanded_conv_", *(f"block_{n}_" for n in range(1, 17))), ("alpha",)),
    **dict.fromkeys(("ResNet50V2", "ResNet101V2", "ResNet152V2"), Architecture(_STAGES)),
}
"""By name; all of them have learned from pixels between -1 and 1."""
_LEAST_SIDE = 32  # of an image, for keras.applications
_KERAS_PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


class Backbone(NamedTuple):
    """The folder's JSON files; those that are not there are empty."""

    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    preprocessor: Mapping[str, Any]

    @property
    def takes(self) -> Takes:
        """What it reads."""
        return TAKES.get(self.config["model_type"], "image")

    @property
    def library(self) -> Literal["torch", "keras"]:
        """What its layers are made in."""
        return "keras" if self.config["model_type"] == KERAS_TYPE else "torch"

    @property
    def num_groups(self) -> int | None:
        """Groups of layers, where the configuration tells."""
        if self.library == "keras":
            return len(ARCHITECTURES[self.config["architecture"]].groups)
        layers = self.config.get("num_hidden_layers", self.config.get("n_layers"))
        if self.config["model_type"] in _STAGED:
            layers = len(self.config.get("depths", ())) or None
        return None if layers is None else int(layers) + 1


def read_backbone(folder: Path) -> Backbone:
    """Read the files of a folder.

    Raises:
        ValueError: If it holds no backbone; says what it must hold.
    """
    _check_files(folder, WEIGHTS, KERAS_WEIGHTS)
    config, tokenizer, preprocessor = (_read(folder / name) for name in (CONFIG, _TOKENIZER, _PREPROCESSOR))
    check_type(config)
    if config["model_type"] == KERAS_TYPE:
        return Backbone(config, tokenizer, {**_KERAS_PIXELS, **preprocessor})
    _check_files(folder, WEIGHTS)
    return Backbone(config, tokenizer, preprocessor)


def _check_files(folder: Path, *weights: str) -> None:
    is_there = {CONFIG: (folder / CONFIG).is_file(), WEIGHTS: any((folder / name).is_file() for name in weights)}
    if lacking := [name for name, found in is_there.items() if not found]:
        raise ValueError(
            f"must be a folder with {CONFIG} and {WEIGHTS}, got {str(folder)!r} without {lacking[0]}. Add it"
        )


def find_weights(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Return the file with the weights; None where there is none."""
    names = (WEIGHTS, KERAS_WEIGHTS) if config.get("model_type") == KERAS_TYPE else (WEIGHTS,)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def check_type(config: Mapping[str, Any]) -> None:
    """Check that a configuration is of a kind that can be built.

    Raises:
        ValueError: If it is not.
    """
    kind = config.get("model_type")
    if kind == KERAS_TYPE:
        _check_architecture(config)
    elif kind not in TAKES:
        raise ValueError(
            f"must have a model_type of {', '.join([*TAKES, KERAS_TYPE])} in {CONFIG}, got {kind!r}. Take another backbone"
        )


def _check_architecture(config: Mapping[str, Any]) -> None:
    name = config.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"must have an architecture of {', '.join(ARCHITECTURES)} in {CONFIG}, got {name!r}. Take another backbone"
        )
    known = ("model_type", "architecture", *ARCHITECTURES[name].options)
    if wrong := sorted(set(config) - {*known, *_KERAS_PIXELS}):
        raise ValueError(
            f"must have nothing but {', '.join(known)} in the {CONFIG} of {name}, got {wrong[0]!r}. Remove it"
        )
    alpha = config.get("alpha", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= _WIDEST:
        raise ValueError(
            f"must have an alpha above 0 and at most {_WIDEST} in {CONFIG}, got {alpha!r}. Write that of its weights"
        )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    if (size := path.stat().st_size) > _MAX_JSON_BYTES:
        raise ValueError(f"must have a {path.name} of at most {_MAX_JSON_BYTES:,} bytes, got {size:,}. Save it anew")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"must have a {path.name} that is JSON, got {str(path)!r} ({error}). Save it anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"must have a {path.name} that is a mapping, got {str(path)!r}. Save it anew")
    return content


def check_local_backbones(
    model: Model | None, framework: Framework, features: FeaturesSpec, data: DataSpec
) -> list[str]:
    """Return a sentence for each thing that does not fit a backbone whose folder is there; others are looked at in the run."""
    problems: list[str] = []
    for place, part in backbones_of(model).items():
        folder = Path(part.backbone).expanduser()
        if part.config is None and folder.is_dir():
            try:
                problems += check_backbone(place, part, read_backbone(folder), framework, features, data)
            except ValueError as error:
                problems.append(f"{place}.backbone {error}")
    return problems


def check_backbone(
    place: str,
    model: PretrainedModel,
    backbone: Backbone,
    framework: Framework,
    features: FeaturesSpec,
    data: DataSpec,
) -> Iterator[str]:
    """Yield a sentence for each thing that does not fit, which begins with the path of the setting."""
    if backbone.library != library_of(framework):
        kind = backbone.config["model_type"]
        yield (
            f"{place}.backbone must be one of train.framework {framework!r}, got a {kind}, which is one of {backbone.library}. "
            f"Use train.framework {backbone.library}, or another backbone"
        )
        return
    groups = backbone.num_groups
    if isinstance(model.freeze, int) and groups is not None and model.freeze >= groups:
        yield f"{place}.freeze must be less than {groups}, the backbone's groups of layers, got {model.freeze}. Use all, or lower it"
    kind = backbone.config["model_type"]
    if model.pooling != "mean" and backbone.takes == "image" and kind != "vit":
        yield f"{place}.pooling must be mean for a {kind}, which has no place of its own for the whole image, got {model.pooling!r}. Remove it"
    found = False
    for name, column in data.features.items():
        section = features.of(name, column.kind)
        where = f"features.columns.{name}" if name in features.columns else f"features.{column.kind}s"
        if backbone.takes == "tokens" and isinstance(column, TextColumn) and isinstance(section, TextFeatures):
            if isinstance(section.encode, IdsEncoding):
                found = True
                yield from _check_text(where, section, section.encode, backbone)
        elif backbone.takes == "image" and isinstance(column, ImageColumn) and isinstance(section, ImageFeatures):
            found = True
            yield from _check_image(where, section, column, backbone)
    if not found:
        wanted = "a text with encode: ids" if backbone.takes == "tokens" else "an image"
        yield f"{place}.backbone must be given {wanted}, which a {backbone.config['model_type']} takes, got none. Take another"


def _check_text(place: str, section: TextFeatures, encode: IdsEncoding, backbone: Backbone) -> Iterator[str]:
    longest = backbone.config.get("max_position_embeddings", 512)
    if encode.max_length > longest:
        yield f"{place}.encode.max_length must be at most {longest}, which the backbone has learned, got {encode.max_length}. Lower it"
    if not isinstance(section.tokens, SubwordTokens):
        yield (
            f"{place}.tokens must be subwords of the backbone's {_TOKENIZER}, whose ids it has learned, got {section.tokens.kind!r}. "
            "Write tokens: {kind: subwords, tokenizer_file: ...}"
        )
        return
    try:
        file = read_tokenizer(section.tokens.tokenizer_file)
    except ValueError:
        return  # the features tell of it
    for problem in _compare_tokenizers(file, backbone):
        yield f"{place}.tokens.tokenizer_file {problem}. Take the {_TOKENIZER} of the backbone"


def _compare_tokenizers(file: TokenizerFile, backbone: Backbone) -> Iterator[str]:
    size, padding = backbone.config.get("vocab_size", 30522), backbone.config.get("pad_token_id", 0)
    if (most := max(file.vocabulary.values())) >= size:
        yield f"must have ids below {size}, the backbone's vocabulary, got {most}"
    if file.pad_id != padding:
        yield f"must pad with the id {padding}, as the backbone does, got {file.pad_id}"
    own = backbone.tokenizer.get("model", {}).get("vocab")
    if own and dict(own) != dict(file.vocabulary):
        differing = next(token for token in {**own, **file.vocabulary} if own.get(token) != file.vocabulary.get(token))
        yield (
            f"must have the backbone's own vocabulary, got {differing!r} as {file.vocabulary.get(differing)}, "
            f"which the backbone knows as {own.get(differing)}"
        )
    elif (file.before, file.after) != (frame := _frame(file)):
        yield (
            f"must begin and end each text with [CLS] and [SEP] ({list(frame[0])}, {list(frame[1])}), as the backbone has learned, "
            f"got {list(file.before)} and {list(file.after)}"
        )


def _frame(file: TokenizerFile) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the family puts around a text, as far as the vocabulary has them."""
    first, last = (file.vocabulary.get(token) for token in ("[CLS]", "[SEP]"))
    return (() if first is None else (first,)), (() if last is None else (last,))


def _check_image(place: str, section: ImageFeatures, column: ImageColumn, backbone: Backbone) -> Iterator[str]:
    facts = {**backbone.config, **backbone.preprocessor}
    channels = facts.get("num_channels", _RGB)
    if column.channels != channels:
        yield f"data.columns must give images of {channels} channels to the backbone, got {column.channels}. Set channels: {channels}"
        return
    shape = section.crop or section.resize or (column.height, column.width)
    if backbone.library == "keras" and min(shape) < _LEAST_SIDE:
        yield f"{place}.resize must give the backbone at least {_LEAST_SIDE}x{_LEAST_SIDE}, got {list(shape)}. Set it"
    side = facts.get("image_size")
    if backbone.config["model_type"] == "vit" and isinstance(side, int) and shape != (side, side):
        yield f"{place}.resize must be {[side, side]}, which the backbone takes alone, got {list(shape)}. Set it"
    if "image_mean" not in facts or "image_std" not in facts:
        return
    wanted = {"mean": list(facts["image_mean"]), "std": list(facts["image_std"])}
    given = section.normalise
    got: Any = given
    if isinstance(given, ChannelNormalisation):
        unit = 1 if section.scale == "unit" else 1 / _LEVELS
        got = {name: [value * unit for value in getattr(given, name)] for name in wanted}
        if all(abs(a - b) <= _MEAN_TOLERANCE for name in wanted for a, b in zip(got[name], wanted[name], strict=True)):
            return
    yield (
        f"{place}.normalise must be what the backbone has learned from, mean {wanted['mean']} and std {wanted['std']} of pixels from 0 "
        f"to 1, got {got!r}. Write normalise: {{kind: given, mean: {wanted['mean']}, std: {wanted['std']}}}"
    )
