"""The spec on images of CIFAR-10's form, which the test makes: each class has a colour that a network can learn."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.pipeline import run
from lepton_ray.spec import load_spec

from .conftest import REPOSITORY

SPEC = REPOSITORY / "jobs/specs/cifar10.yaml"
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COLOURS = np.random.default_rng(1).permutation(
    [(r, g, b) for r in (40, 130, 220) for g in (60, 200) for b in (60, 200)]
)


def write(folder: Path, rows: int) -> None:
    """Six files of so many images; a tenth of each class has the colour of another."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        labels = rng.permutation(np.arange(rows) % 10)
        seen = np.where(rng.random(rows) < 0.1, rng.integers(0, 10, rows), labels)
        planes = COLOURS[seen][:, :, None] + rng.normal(0, 25, (rows, 3, 1024))
        pixels = planes.clip(0, 255).astype(np.uint8).reshape(rows, 3072)
        (folder / name).write_bytes(np.hstack([labels[:, None].astype(np.uint8), pixels]).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join([*NAMES, ""]))


def settings(folder: Path, more: Sequence[str] = ()) -> list[str]:
    """No server, no registry, and data of the test's own."""
    return [f"data.source.uri={folder / 'cifar10'}", f"storage={folder / 'runs'}", "register=null", "serve=null", *more]


def test_the_spec_is_valid_and_reads_whole_files(tmp_path: Path) -> None:
    write(tmp_path / "cifar10", rows=20)
    spec = load_spec(SPEC, settings(tmp_path, ["model=null", "evaluate.gates={}"]))
    done = run(spec)
    assert done["clean"].ledger.rows_in == 120
    rows = Counter[str]()
    for split in done["clean"].class_rows.values():
        rows.update(split)
    assert rows == dict.fromkeys(NAMES, 12)


@pytest.mark.slow
def test_the_spec_meets_its_gate_on_made_images(tmp_path: Path) -> None:
    write(tmp_path / "cifar10", rows=100)
    done = run(load_spec(SPEC, settings(tmp_path, ["train.epochs=8"])))
    assert done["clean"].ledger.rows_in == 600
    assert 0.6 <= done["evaluate"].metrics["accuracy"] < 1
    assert done["export"].parity["package"] < 1e-5
    package = open_package(str(done["export"].folder / "package"))
    image = np.broadcast_to(COLOURS[3].astype(np.uint8), (1, 32, 32, 3))
    (label,) = np.argmax(Predictor(package).run({"image": np.ascontiguousarray(image)})["probabilities"], axis=1)
    assert package.signature.classes[label] == "cat", "red, green and blue are where serving expects them"
