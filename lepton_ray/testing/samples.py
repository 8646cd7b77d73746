"""Real data sets that scikit-learn ships, written out as the raw files a user would have.

A spec names these functions as ``data.source.prepare``; they need scikit-learn, and no network.
"""

import csv
import shutil
from pathlib import Path

from lepton_ray.core.extras import require

_DIGIT_LEVELS = 16  # the digits' pixels are counts from 0 to 16


def write_medical_diagnosis(path: str) -> None:
    """Write the Wisconsin breast cancer records (Street, Wolberg, Mangasarian 1993; 569 rows) as CSV."""
    datasets = require("sklearn.datasets", "the sample data")
    bunch = datasets.load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["record", *names, "diagnosis"])
        for number, (row, label) in enumerate(zip(bunch.data, bunch.target, strict=True), start=1):
            writer.writerow([number, *(repr(float(value)) for value in row), bunch.target_names[label]])
    temporary.replace(target)


def write_handwritten_digits(path: str) -> None:
    """Write the handwritten digits (Alpaydin, Kaynak 1998; 1797 images of 8x8) as PNG files in a folder a class."""
    datasets = require("sklearn.datasets", "the sample data")
    image_module = require("PIL.Image", "the sample data")
    bunch = datasets.load_digits()
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for label in range(10):
        (temporary / str(label)).mkdir(parents=True)
    pixels = (bunch.images * 255 / _DIGIT_LEVELS).round().astype("uint8")
    for number, (image, label) in enumerate(zip(pixels, bunch.target, strict=True)):
        image_module.fromarray(image).save(temporary / str(label) / f"{number:04d}.png")
    temporary.rename(target)
