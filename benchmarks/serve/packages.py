"""What is served: two small packages, each trained once, rows of them with their answers, and a caller's token."""

import base64
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from images import make_images  # benchmarks/train
from numpy.typing import NDArray
from PIL import Image

from lepton_ray.artifacts.predictor import open_session
from lepton_ray.serve.tokens import create_token

REPOSITORY = Path(__file__).parents[2]
TABLE, IMAGES = "medical_diagnosis", "cifar10"
"""Names of specs and so of models."""
BATCH_ROWS = 32
_IMAGE_ROWS = 2_000
_DEVIATION, _MIDDLE = 40.0, 128.0  # of made images, as bytes


@dataclass(frozen=True)
class Rows:
    """Rows to ask for, and what the model says of them."""

    model: str
    records: list[dict[str, Any]]
    """As JSON has them; an image as nested lists."""
    tensor: NDArray[Any]
    """The same rows as the graph's input."""
    probabilities: NDArray[Any]
    """(rows, classes)."""

    def files(self) -> list[dict[str, Any]]:
        """Return the records of images as PNG files in base64."""
        return [{"image": {"b64": base64.b64encode(_png(image)).decode()}} for image in self.tensor]


def table_rows(package: Path) -> Rows:
    """Return one row, with the answer that the training code gave."""
    records = json.loads((package / "golden_records.json").read_text())["records"][:1]
    columns = list(json.loads((package / "signature.json").read_text())["columns"])
    tensor = np.array([[record[name] for name in columns] for record in records])
    expected = json.loads((package / "golden_outputs.json").read_text())["probabilities"][:1]
    return Rows(TABLE, records, tensor, np.array(expected))


def image_rows(package: Path, count: int) -> Rows:
    """Return made images, with the answers of onnxruntime alone."""
    tensor = _make_bytes(count, 2)[0]
    (probabilities,) = open_session(str(package / "model.onnx")).run(["probabilities"], {"image": tensor})
    return Rows(IMAGES, [{"image": image.tolist()} for image in tensor], tensor, probabilities)


def make_table_package(folder: Path) -> Path:
    """Train a small model of 30 numbers; returns its package."""
    return _run(folder, TABLE, "tune=null")


def make_image_package(folder: Path) -> Path:
    """Train the plain CNN for one epoch: how well does not matter here; returns its package."""
    source = folder / "made_cifar10"
    source.mkdir(parents=True, exist_ok=True)
    images, labels = _make_bytes(_IMAGE_ROWS, 0)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    np.column_stack([labels.astype(np.uint8), planes]).tofile(source / "data_batch_1.bin")
    files = ['data.source.files=["data_batch_1.bin"]', f"data.source.uri={source}", "data.source.prepare=null"]
    return _run(folder, IMAGES, *files, "train.epochs=1", "evaluate.gates={}")


def make_token(folder: Path) -> tuple[Path, str]:
    """Return a new token file and the one token in it."""
    path = folder / f"tokens_{os.getpid()}.json"  # another run in this folder has its own
    path.unlink(missing_ok=True)
    return path, create_token(path, "bench", ("predict", "metadata"), None, None)


def _run(folder: Path, name: str, *overrides: str) -> Path:
    settings = [f"storage={folder / 'serve_runs'}", "serve=null", "register=null", *overrides]
    command = [sys.executable, "-m", "lepton_ray", "run", f"jobs/specs/{name}.yaml"]
    command += [item for setting in settings for item in ("--set", setting)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the package must be made, got {done.returncode}:\n{done.stderr[-3000:]}")
    return (folder / "serve_runs" / name / "latest" / "export" / "package").resolve()


def _make_bytes(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    x_NCHW, y_N = make_images(count, seed)
    bytes_NCHW = np.clip(x_NCHW * _DEVIATION + _MIDDLE, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(bytes_NCHW.transpose(0, 2, 3, 1)), y_N


def _png(image: NDArray[np.uint8]) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()
