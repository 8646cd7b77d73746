"""Data and sections that the tests of augmentation share."""

from typing import Any

import numpy as np

from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.train import augment
from lepton_ray.train.rows import TrainData

SEED = 5
PADDING = 0
ALL_IMAGE = {
    "horizontal_flip_fraction": 0.5,
    "vertical_flip_fraction": 0.5,
    "crop_padding_pixels": 2,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "cutout_pixels": 3,
}


def images_of(rows: int = 7, shape: tuple[int, ...] = (3, 6, 5), seed: int = 0) -> augment.Floats:
    return np.random.default_rng(seed).random((rows, *shape), dtype=np.float32)


def tokens_of(rows: int, length: int, seed: int = 0) -> augment.Ints:
    """Rows that end in padding, of any length; some are empty, some full."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 50, (rows, length))
    tokens[np.arange(length) >= rng.integers(0, length + 1, rows)[:, None]] = PADDING
    return tokens


def data_of(kind: str, rows: int = 23, num_classes: int | None = None) -> TrainData:
    """Labels that name the row (as many classes as rows), unless a number of classes is given."""
    rng = np.random.default_rng(1)
    x: Any = {
        "image": lambda: images_of(rows, (3, 6, 6)),
        "tokens": lambda: tokens_of(rows, 9),
        "table": lambda: np.concatenate(
            [rng.normal(size=(rows, 3)), rng.integers(0, 2, (rows, 2))], 1, dtype=np.float32
        ),
    }[kind]()
    y = np.arange(rows) if num_classes is None else rng.integers(0, num_classes, rows) ** 2 // (num_classes - 1)
    return TrainData({"x": x}, y, {"x": x[:5]}, y[:5])


_SECTIONS: dict[str, dict[str, Any]] = {
    "image": {"image": ALL_IMAGE},
    "tokens": {"text": {"dropout_fraction": 0.3, "swap_fraction": 0.6}},
    "table": {"table": {"noise_std": 0.5, "noise_fraction": 0.7}},
}


def spec_of(kind: str, mixup_alpha: float = 0.0, balance: str | None = None) -> AugmentSpec:
    return AugmentSpec.model_validate({**_SECTIONS[kind], "mixup_alpha": mixup_alpha, "balance": balance})


VARIED: list[tuple[str, float, str | None]] = [
    ("image", 0.0, None),
    ("image", 0.4, "weights"),
    ("image", 0.4, "oversample"),
    ("tokens", 0.0, "undersample"),
    ("tokens", 0.0, "weights"),
    ("table", 0.0, None),
    ("table", 1.5, None),
    ("table", 1.5, "weights"),
]
