"""Time augmentation: making the batches alone, and whole epochs with and without. Writes its section of RESULTS.md.

python benchmarks/augment.py [--runs 5] [--images 50000]
"""

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
from results import PATH, describe_machine, replace_section, spread

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, TrainSpec
from lepton_ray.train.batches import Batches
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import start_state, train_epochs

TRAINED_IMAGES = 6400
BATCH = 32
SHAPE = (3, 32, 32)
FLIP_CROP = {"horizontal_flip_fraction": 0.5, "crop_padding_pixels": 4}
COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
ALL = {"image": {**FLIP_CROP, **COLOURS, "cutout_pixels": 8}, "mixup_alpha": 0.2, "balance": "weights"}
CASES: dict[str, Any] = {
    "none": None,
    "flip": {"image": {"horizontal_flip_fraction": 0.5}},
    "flip, crop": {"image": FLIP_CROP},
    "brightness, contrast, saturation": {"image": COLOURS},
    "cutout": {"image": {"cutout_pixels": 8}},
    "mixup": {"mixup_alpha": 0.2},
    "class weights": {"balance": "weights"},
    "all of them": ALL,
}
TRAINED = ("none", "flip, crop", "all of them")


def main() -> None:
    """Let the cases take turns and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    data = make_data(options.images)
    made: dict[str, list[float]] = {name: [] for name in CASES}
    trained: dict[str, list[float]] = {name: [] for name in TRAINED}
    for number in range(options.runs):
        print(f"run {number + 1} of {options.runs}", flush=True)
        for name in CASES:
            made[name].append(1e6 / time_batches(data, name, number))
        for name in TRAINED:
            trained[name].append(time_training(data, name))
    replace_section("augmentation", write_tables(made, trained, options.runs))
    print(f"wrote {PATH}")


def make_data(images: int) -> TrainData:
    """Random images in ten classes: what is timed does not look at them."""
    rng = np.random.default_rng(0)
    x, y = rng.random((images, *SHAPE), dtype=np.float32), rng.integers(0, 10, images)
    return TrainData({"x": x}, y, {"x": x[:BATCH]}, y[:BATCH])


def spec_of(name: str) -> TrainSpec:
    """Return the section of a case."""
    return TrainSpec.model_validate({"epochs": 1, "global_batch_size": BATCH, "augment": CASES[name]})


def time_batches(data: TrainData, name: str, epoch: int) -> float:
    """Images per second of making an epoch's batches."""
    batches = Batches(data, spec_of(name).augment, BATCH, 0)
    start_s = time.perf_counter()
    rows = sum(len(share.x["x"]) for share in batches.shares(epoch, 0, 1))
    return rows / (time.perf_counter() - start_s)


def time_training(data: TrainData, name: str) -> float:
    """Images per second of an epoch on some of the images."""
    part = TrainData({"x": data.x_train["x"][:TRAINED_IMAGES]}, data.y_train[:TRAINED_IMAGES], data.x_val, data.y_val)
    build = partial(
        build_model, CnnModel(kind="cnn", channels=(32, 64), hidden=64), [ModelInput(name="x", shape=SHAPE)], 10
    )
    training = train_epochs(start_state(build, spec_of(name), 0), part, spec_of(name), 0)
    start_s = time.perf_counter()
    next(training)
    return len(part.y_train) / (time.perf_counter() - start_s)


def write_tables(made_us: dict[str, list[float]], trained: dict[str, list[float]], runs: int) -> str:
    """Return the section's text."""
    none_us = min(made_us["none"])
    lines = [
        f"""## Augmentation

`python benchmarks/augment.py --runs {runs}`: images of 32x32x3 in batches of {BATCH}, cases in turn; median (least to greatest).
{describe_machine("numpy", "torch")}

| making batches | microseconds an image | more than none, least against least |
|---|---|---|"""
    ]
    lines += [f"| {name} | {spread(values, 1)} | {min(values) - none_us:.1f} |" for name, values in made_us.items()]
    lines += ["", "| training (cnn of 32 and 64 channels, 64 hidden) | images per second |", "|---|---|"]
    lines += [f"| {name} | {spread(values, 0)} |" for name, values in trained.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
