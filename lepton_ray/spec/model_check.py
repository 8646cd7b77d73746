"""Section ``model`` against what the features give: what can be known not to fit before any row is read.

The inputs of a model are ``features`` (the flat features; the image where there are none), ``ids``, ``tokens``, ``steps`` and
``pixels``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lepton_ray.spec.data import CategoryColumn, Column, DataSpec, ImageColumn, SeriesColumn, Task, TextColumn
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_category import CategoryFeatures, CategoryIdsEncoding
from lepton_ray.spec.features_content import IdsEncoding, SeriesFeatures, TextFeatures
from lepton_ray.spec.model import (
    AutoencoderModel,
    CnnModel,
    CustomModel,
    Encoder,
    FactorizationModel,
    FusionModel,
    Model,
    TwoTowersModel,
)

InputKind = Literal["table", "image", "tokens", "steps", "ids"]

_TAKES: dict[str, tuple[InputKind, ...]] = {
    "linear": ("table", "image", "steps"),
    "mlp": ("table", "image", "steps"),
    "cnn": ("image",),
    "resnet": ("image",),
    "rnn": ("tokens", "steps"),
    "transformer": ("tokens", "steps"),
    "autoencoder": ("table", "image", "steps"),
    "factorization": ("ids",),
    "two_towers": ("ids",),
    "pretrained": ("image", "tokens"),
    "custom": ("table", "image", "tokens", "steps", "ids"),
}
_OF_ANOMALIES = ("autoencoder",)
_WORDS = {
    "table": "columns",
    "image": "an image",
    "tokens": "token ids (a text with encode: ids)",
    "steps": "steps (a series with encode: steps)",
    "ids": "ids (categories with encode: ids)",
}


def inputs_of(features: FeaturesSpec, data: DataSpec) -> dict[str, InputKind]:
    """Return what a model gets: the kind of each input by its name, in their order."""
    made = {_made_of(column, features.of(name, column.kind)) for name, column in data.features.items()}
    in_order: tuple[InputKind, ...] = ("table", "ids", "tokens", "steps")
    inputs = {"features" if kind == "table" else kind: kind for kind in in_order if kind in made}
    if "image" in made:
        inputs["pixels" if inputs else "features"] = "image"
    return inputs


def id_columns(features: FeaturesSpec, data: DataSpec) -> tuple[str, ...]:
    """Return the columns of the input ``ids``, in their order."""
    return tuple(n for n, column in data.features.items() if _made_of(column, features.of(n, column.kind)) == "ids")


def _made_of(column: Column, section: Any) -> InputKind:
    if isinstance(column, ImageColumn):
        return "image"
    if isinstance(column, SeriesColumn):
        return "steps" if isinstance(section, SeriesFeatures) and section.encode == "steps" else "table"
    if isinstance(column, CategoryColumn) and isinstance(section, CategoryFeatures):
        return "ids" if isinstance(section.encode, CategoryIdsEncoding) else "table"
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


def check_model(
    model: Model, inputs: Mapping[str, InputKind], image: tuple[int, int, int] | None, ids: Sequence[str] = ()
) -> list[str]:
    """Return a sentence for each thing that does not fit, which begins with the path of the setting; ``ids`` are ``id_columns``."""
    if isinstance(model, FusionModel):
        return list(_check_fusion(model, inputs, image, ids))
    if len(inputs) > 1 and not isinstance(model, CustomModel):
        shown = ", ".join(f"{name}: {_WORDS[kind]}" for name, kind in inputs.items())
        return [
            f"model.kind must be 'fusion' or 'custom' for several inputs ({shown}), got {model.kind!r}, which takes one. "
            "Give each an encoder, or ignore the other columns"
        ]
    return [problem for kind in inputs.values() for problem in _check_encoder("model", model, kind, image, ids)]


def check_task(model: Model, task: Task | None) -> str | None:
    """Return a sentence if a kind of model is not for a task."""
    if isinstance(model, CustomModel) or (model.kind in _OF_ANOMALIES) == (task == "anomaly_detection"):
        return None
    if task == "anomaly_detection":
        return f"model.kind must be {' or '.join(map(repr, _OF_ANOMALIES))} or 'custom' for data.anomalies, got {model.kind!r}. Change one"
    return f"model.kind must be one that predicts a label, got {model.kind!r}. Change it, or give data.anomalies"


def _check_fusion(
    model: FusionModel, inputs: Mapping[str, InputKind], image: tuple[int, int, int] | None, ids: Sequence[str]
) -> Iterator[str]:
    for name in (name for name in model.encoders if name not in inputs):
        yield f"model.encoders must name inputs of the model ({', '.join(inputs)}), got {name!r}. Remove it"
    for name, kind in inputs.items():
        if name not in model.encoders:
            yield f"model.encoders must have an encoder for {name!r} ({_WORDS[kind]}), got none. Add it"
        else:
            yield from _check_encoder(f"model.encoders.{name}", model.encoders[name], kind, image, ids)


def _check_encoder(
    place: str,
    model: Encoder | AutoencoderModel,
    kind: InputKind,
    image: tuple[int, int, int] | None,
    ids: Sequence[str],
) -> Iterator[str]:
    if kind not in _TAKES[model.kind]:
        of_task = [
            name for name in _TAKES if (name in _OF_ANOMALIES) == (model.kind in _OF_ANOMALIES) or name == "custom"
        ]
        fitting = ", ".join(repr(name) for name in of_task if kind in _TAKES[name])
        wanted = " or ".join(_WORDS[word] for word in _TAKES[model.kind])
        yield (
            f"{place}.kind must be one of {fitting} for {_WORDS[kind]}, got {model.kind!r}, which takes {wanted}. "
            "Change the kind or the features"
        )
    elif isinstance(model, CnnModel) and image is not None:
        yield from _check_channels(place, model, min(image[1:]))
    elif isinstance(model, FactorizationModel) and len(ids) < 2:  # noqa: PLR2004  of a pair
        yield f"{place}.kind must not be 'factorization' for one column of ids, got {ids[0]}. Encode another as ids"
    elif isinstance(model, TwoTowersModel):
        yield from _check_sides(place, model, ids)


def _check_sides(place: str, model: TwoTowersModel, ids: Sequence[str]) -> Iterator[str]:
    named = [*model.user, *model.item]
    for side in ("user", "item"):
        for name in getattr(model, side):
            if name not in ids:
                yield f"{place}.{side} must name columns with encode: ids ({', '.join(ids)}), got {name!r}. Name one of them"
    if twice := sorted({name for name in named if named.count(name) > 1}):
        yield f"{place}.user and item must name each column once, got {twice[0]!r} twice. Remove one"
    if left := [name for name in ids if name not in named]:
        yield (
            f"{place}.user or item must name every column with encode: ids, got {left[0]!r} in neither. Add it, or encode it "
            "another way"
        )


def _check_channels(place: str, model: CnnModel, side: int) -> Iterator[str]:
    most, left = 0, model.next_side(side)
    while left:
        most, left = most + 1, model.next_side(left)
    if len(model.channels) > most:
        yield (
            f"{place}.channels must have at most {most} entries for images of side {side}, "
            f"got {len(model.channels)}. Remove some: each halves the image"
        )
