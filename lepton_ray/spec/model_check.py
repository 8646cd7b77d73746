"""Section ``model`` against what the features give: what can be known not to fit before any row is read.

The inputs of a model are ``features`` (the flat features; the image where there are none), ``tokens``, ``steps`` and ``pixels``.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lepton_ray.spec.data import Column, DataSpec, ImageColumn, SeriesColumn, TextColumn
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_content import IdsEncoding, SeriesFeatures, TextFeatures
from lepton_ray.spec.model import CnnModel, CustomModel, Encoder, FusionModel, Model

InputKind = Literal["table", "image", "tokens", "steps"]

_TAKES: dict[str, tuple[InputKind, ...]] = {
    "linear": ("table", "image", "steps"),
    "mlp": ("table", "image", "steps"),
    "cnn": ("image",),
    "resnet": ("image",),
    "rnn": ("tokens", "steps"),
    "transformer": ("tokens", "steps"),
    "pretrained": ("image", "tokens"),
    "custom": ("table", "image", "tokens", "steps"),
}
_WORDS = {
    "table": "columns",
    "image": "an image",
    "tokens": "token ids (a text with encode: ids)",
    "steps": "steps (a series with encode: steps)",
}


def inputs_of(features: FeaturesSpec, data: DataSpec) -> dict[str, InputKind]:
    """Return what a model gets: the kind of each input by its name, in their order."""
    made = {_made_of(column, features.of(name, column.kind)) for name, column in data.features.items()}
    inputs: dict[str, InputKind] = {}
    if "table" in made:
        inputs["features"] = "table"
    if "tokens" in made:
        inputs["tokens"] = "tokens"
    if "steps" in made:
        inputs["steps"] = "steps"
    if "image" in made:
        inputs["pixels" if inputs else "features"] = "image"
    return inputs


def _made_of(column: Column, section: Any) -> InputKind:
    if isinstance(column, ImageColumn):
        return "image"
    if isinstance(column, SeriesColumn):
        return "steps" if isinstance(section, SeriesFeatures) and section.encode == "steps" else "table"
    is_ids = isinstance(column, TextColumn) and isinstance(section, TextFeatures)
    return "tokens" if is_ids and isinstance(section.encode, IdsEncoding) else "table"


def image_shape(features: FeaturesSpec, data: DataSpec) -> tuple[int, int, int] | None:
    """Return channels, height and width of the image as the model sees it, if there is one."""
    for name, column in data.features.items():
        if isinstance(column, ImageColumn):
            section = features.of(name, "image")
            height, width = section.crop or section.resize or (column.height, column.width)
            return column.channels, height, width
    return None


def check_model(model: Model, inputs: Mapping[str, InputKind], image: tuple[int, int, int] | None) -> list[str]:
    """Return a sentence for each thing that does not fit, which begins with the path of the setting."""
    if isinstance(model, FusionModel):
        return list(_check_fusion(model, inputs, image))
    if len(inputs) > 1 and not isinstance(model, CustomModel):
        shown = ", ".join(f"{name}: {_WORDS[kind]}" for name, kind in inputs.items())
        return [
            f"model.kind must be 'fusion' or 'custom' for several inputs ({shown}), got {model.kind!r}, which takes one. "
            "Give each an encoder, or ignore the other columns"
        ]
    return [problem for kind in inputs.values() for problem in _check_encoder("model", model, kind, image)]


def _check_fusion(
    model: FusionModel, inputs: Mapping[str, InputKind], image: tuple[int, int, int] | None
) -> Iterator[str]:
    for name in (name for name in model.encoders if name not in inputs):
        yield f"model.encoders must name inputs of the model ({', '.join(inputs)}), got {name!r}. Remove it"
    for name, kind in inputs.items():
        if name not in model.encoders:
            yield f"model.encoders must have an encoder for {name!r} ({_WORDS[kind]}), got none. Add it"
        else:
            yield from _check_encoder(f"model.encoders.{name}", model.encoders[name], kind, image)


def _check_encoder(place: str, model: Encoder, kind: InputKind, image: tuple[int, int, int] | None) -> Iterator[str]:
    if kind not in _TAKES[model.kind]:
        fitting = ", ".join(repr(name) for name, kinds in _TAKES.items() if kind in kinds)
        wanted = " or ".join(_WORDS[word] for word in _TAKES[model.kind])
        yield (
            f"{place}.kind must be one of {fitting} for {_WORDS[kind]}, got {model.kind!r}, which takes {wanted}. "
            "Change the kind or the features"
        )
    elif isinstance(model, CnnModel) and image is not None:
        yield from _check_channels(place, model, min(image[1:]))


def _check_channels(place: str, model: CnnModel, side: int) -> Iterator[str]:
    most, left = 0, model.next_side(side)
    while left:
        most, left = most + 1, model.next_side(left)
    if len(model.channels) > most:
        yield (
            f"{place}.channels must have at most {most} entries for images of side {side}, "
            f"got {len(model.channels)}. Remove some: each halves the image"
        )
