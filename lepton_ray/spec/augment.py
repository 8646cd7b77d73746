"""Section ``train.augment``: how training batches are varied. Everything is off until it is asked for."""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lepton_ray.core.frozen import Texts
from lepton_ray.spec.base import FiniteFloat, Fraction, Section

_COLOUR_CHANNELS = 3  # red, green, blue: saturation needs them

PartFraction = Annotated[float, Field(ge=0, lt=1)]
Pixels = Annotated[int, Field(ge=0)]


class ImageAugment(Section):
    """Changes of images. The fill of crops and cut-outs is 0 as the model sees it: after ``features.images``."""

    horizontal_flip_fraction: Fraction = 0.0
    """Share of images that are mirrored left to right; 0.5 where left and right mean the same."""
    vertical_flip_fraction: Fraction = 0.0
    """Share of images that are turned upside down by mirroring."""
    crop_padding_pixels: Pixels = 0
    """Frame around each image, from which a window of the image's own size is then cut at random."""
    brightness: Fraction = 0.0
    """Pixels are multiplied by 1 - brightness to 1 + brightness, drawn for each image."""
    contrast: Fraction = 0.0
    """Distances from the image's mean grey are multiplied by 1 - contrast to 1 + contrast."""
    saturation: Fraction = 0.0
    """Distances from the pixel's grey are multiplied by 1 - saturation to 1 + saturation; needs three channels."""
    cutout_pixels: Pixels = 0
    """Side of a square of 0 around a random pixel; at the border only a part of it lies in the image."""


class TextAugment(Section):
    """Changes of token ids; padding stays what and where it is."""

    dropout_fraction: PartFraction = 0.0
    """Share of tokens that become the unknown token."""
    swap_fraction: Fraction = 0.0
    """Share of neighbouring pairs that change places; a token moves by one place at most."""


class TableAugment(Section):
    """Changes of numbers; what encodes a category (one-hot and the like) is left alone."""

    noise_std: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Standard deviation of Gaussian noise, in standard deviations of the column over the training split."""
    noise_fraction: Fraction = 1.0
    """Share of values that noise is added to, drawn for each row and column."""
    columns: Annotated[Texts, Field(min_length=1)] | None = None
    """Number columns that noise is added to; None takes all."""

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            twice = next(name for name in self.columns if self.columns.count(name) > 1)
            raise ValueError(f"columns must name each column once, got {twice!r} twice. Remove one")
        if self.noise_std == 0 and (self.noise_fraction != 1 or self.columns is not None):
            given = "noise_fraction" if self.noise_fraction != 1 else "columns"
            raise ValueError(
                f"{given} must come with a noise_std above 0, got noise_std {self.noise_std}. Set noise_std"
            )
        if self.noise_std > 0 and self.noise_fraction == 0:
            raise ValueError("noise_fraction must be above 0 for noise, got 0.0. Raise it or remove noise_std")
        return self


class AugmentSpec(Section):
    """Variation of training batches; validation, test and serving never see it.

    What a row becomes follows from the run's seed, the epoch and the row's place in it, so neither the number of workers
    nor a resume changes it.
    """

    image: ImageAugment = ImageAugment()
    text: TextAugment = TextAugment()
    table: TableAugment = TableAugment()
    mixup_alpha: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Each row is mixed with another of its batch, inputs and labels alike, with a share drawn from
    Beta(alpha, alpha); 0.2 is usual for images, 0 is off."""
    balance: Literal["oversample", "undersample", "weights"] | None = None
    """Classes of unequal size: ``oversample`` repeats rows until each class has as many as the largest, ``undersample``
    takes as many as the smallest has, other ones in each epoch, ``weights`` weighs each class in the loss by
    1 / its rows."""


def check_augment(
    spec: AugmentSpec,
    kinds: Collection[str],
    *,
    has_classes: bool = True,
    image_shape: tuple[int, int, int] | None = None,
    number_columns: Collection[str] | None = None,
) -> list[str]:
    """Return a sentence for each setting that the data gives nothing to do for, or cannot stand.

    Args:
        spec: The section.
        kinds: Of the model's inputs: ``image``, ``tokens``, ``table`` (columns of numbers), ``ids`` (of categories).
        has_classes: Whether the label is a category: each row of one class.
        image_shape: Channels, height and width of the image as the model sees it, where they are known.
        number_columns: Names of the columns that are numbers for the model, where they are known.
    """
    problems = [
        f"train.augment.{name} must be left out for data without {what}, got {_settings(section)}. Remove it"
        for name, section, kind, what in (
            ("image", spec.image, "image", "an image column"),
            ("text", spec.text, "tokens", "token ids"),
            ("table", spec.table, "table", "number columns"),
        )
        if section != type(section)() and kind not in kinds
    ]
    if spec.balance is not None and not has_classes:
        problems.append(
            f"train.augment.balance must be left out for a label that is a number or tags, got {spec.balance!r}. Remove it"
        )
    if spec.mixup_alpha and ("tokens" in kinds or "ids" in kinds):
        problems.append(
            f"train.augment.mixup_alpha must be 0 for data with {'token ids' if 'tokens' in kinds else 'ids of categories'}, "
            f"which have no middle, got {spec.mixup_alpha}. Remove it"
        )
    if "image" in kinds and image_shape is not None:
        problems += _check_image(spec.image, image_shape)
    if "table" in kinds and number_columns is not None:
        problems += _check_columns(spec.table, number_columns)
    return problems


def _settings(section: Section) -> str:
    return ", ".join(f"{name} {value}" for name, value in section.model_dump(exclude_defaults=True).items())


def _check_image(spec: ImageAugment, image_shape: tuple[int, int, int]) -> list[str]:
    channels, height, width = image_shape
    side = min(height, width)
    problems = [
        f"train.augment.image.{name} must be less than the image's shorter side ({side}), got {pixels}. Lower it"
        for name, pixels in (
            ("crop_padding_pixels", spec.crop_padding_pixels),
            ("cutout_pixels", spec.cutout_pixels),
        )
        if pixels >= side
    ]
    if spec.saturation and channels != _COLOUR_CHANNELS:
        problems.append(
            f"train.augment.image.saturation must be 0 for images without three channels, got {spec.saturation} "
            f"for {channels} channels. Remove it"
        )
    return problems


def _check_columns(spec: TableAugment, number_columns: Collection[str]) -> list[str]:
    known = ", ".join(sorted(number_columns)) or "none"
    wrong = [name for name in spec.columns or () if name not in number_columns]
    if not wrong and spec.noise_std and not number_columns:
        return ["train.augment.table must be left out for data without number columns, got noise_std. Remove it"]
    return [
        f"train.augment.table.columns must name number columns ({known}), got {name!r}. Correct or remove it"
        for name in wrong
    ]
