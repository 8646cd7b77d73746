"""Images of ten classes, 32x32x3 float32 with channels first: each class a blurred pattern, shifted, faint beside noise."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE, CHANNELS, CLASSES = 32, 3, 10
_PATTERN, _SHIFT = 24, 8  # sides in pixels: a pattern may start at 0 to 8
_AMPLITUDE, _BLUR = 0.14, 3  # beside noise of deviation 1; passes of a mean over 3x3
_SEED = 7


def make_images(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images (N, 3, 32, 32) and their classes (N,); the same for the same seed."""
    patterns = np.random.default_rng(_SEED).normal(size=(CLASSES, CHANNELS, _PATTERN, _PATTERN))
    for axis in (2, 3):
        for _ in range(_BLUR):
            patterns = (np.roll(patterns, 1, axis) + patterns + np.roll(patterns, -1, axis)) / 3
    patterns = (_AMPLITUDE * patterns / patterns.std(axis=(1, 2, 3), keepdims=True)).astype(np.float32)
    rng = np.random.default_rng([_SEED, seed])
    x_NKHW = rng.standard_normal((rows, CHANNELS, SIDE, SIDE), np.float32)
    y_N = rng.integers(0, CLASSES, rows)
    for image, label, (down, right) in zip(x_NKHW, y_N, rng.integers(0, _SHIFT + 1, (rows, 2)), strict=True):
        image[:, down : down + _PATTERN, right : right + _PATTERN] += patterns[label]
    return x_NKHW, y_N


def write_images(folder: Path, rows: int, val_rows: int) -> None:
    """Write the arrays of a training and a held-out set, where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", rows, 0), ("val", val_rows, 1)):
        if not (folder / f"y_{name}.npy").exists():
            x, y = make_images(count, seed)
            np.save(folder / f"x_{name}.npy", x)
            np.save(folder / f"y_{name}.npy", y)
