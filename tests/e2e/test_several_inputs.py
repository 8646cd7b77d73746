"""A table, a text and an image together through a fusion with an encoder of the user's own: from records to an endpoint."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import Workplace

_OWN = """
import torch


class Bag(torch.nn.Module):
    def __init__(self, num_ids, width, num_outputs):
        super().__init__()
        self.embedding = torch.nn.Embedding(num_ids, width)
        self.head = torch.nn.Linear(width, num_outputs)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).sum(1))


def build(spec, inputs, num_outputs):
    (tokens,) = inputs
    return Bag(tokens.num_ids, spec.options["width"], num_outputs)


def build_wrong(spec, inputs, num_outputs):
    return Bag(inputs[0].num_ids, spec.options["width"], num_outputs + 1)
"""
_SPEC = """
name: several
seed: 2
data:
  source: {kind: parquet, uri: rows.parquet}
  label: y
  columns:
    size: number
    note: text
    photo: {kind: image, height: 6, width: 4, channels: 3}
    y: category
features:
  texts: {encode: {kind: ids, max_length: 5, min_count: 1}}
model:
  kind: fusion
  encoders:
    features: {kind: mlp, hidden: [4]}
    tokens: {kind: custom, module: "own_module:build", options: {width: 4}}
    pixels: {kind: cnn, channels: [4], hidden: 8}
  encoding_width: 6
  hidden: [8]
train:
  num_workers: 2
  epochs: 15
  global_batch_size: 16
  lr: 2e-2
  augment:
    text: {dropout_fraction: 0.05}
    image: {horizontal_flip_fraction: 0.5}
    table: {noise_std: 0.1}
tune:
  num_trials: 2
  epochs: 2
  space: {model.encoders.tokens.options.width: {kind: choice, values: [3, 4]}}
evaluate:
  gates: {accuracy: {min: 0.8}}
serve: {port: 0}
"""


def _write(workplace: Workplace) -> None:
    """The label is whether two of three say so: a number, a word, and how bright the image is."""
    rng = np.random.default_rng(0)
    votes = rng.random((240, 3)) < 0.5
    pixels = np.where(votes[:, 2, None], 170, 80) + rng.integers(-40, 40, (240, 6 * 4 * 3))
    words = np.array(["bad", "good"])[votes[:, 1].astype(int)]
    table = {
        "size": rng.normal(votes[:, 0] * 4.0, 1),
        "note": [f"a {word} item" if n % 9 else word for n, word in enumerate(words)],
        "photo": [row.astype(np.uint8).tobytes() for row in pixels],
        "y": np.array(["no", "yes"])[(votes.sum(1) > 1).astype(int)],
    }
    pq.write_table(pa.table(table), workplace.folder / "rows.parquet")
    (workplace.folder / "own_module.py").write_text(_OWN)
    (workplace.folder / "spec.yaml").write_text(_SPEC)


@pytest.fixture(scope="module")
def stages(shared_workplace: Workplace) -> Any:
    _write(shared_workplace)
    return shared_workplace.run_json("run", "spec.yaml")["stages"]


@pytest.mark.slow
def test_every_input_reaches_the_endpoint(stages: Any, shared_workplace: Workplace) -> None:
    assert [given["name"] for given in stages["featurize"]["inputs"]] == ["features", "tokens", "pixels"]
    assert stages["tune"]["best"]["model.encoders.tokens.options.width"] in (3, 4)
    assert stages["evaluate"]["metrics"]["accuracy"] >= 0.8
    assert stages["export"]["parity"]["http"] <= 1e-5
    assert stages["deploy"]["parity"] <= 1e-5
    package = shared_workplace.folder / stages["export"]["folder"] / "package"
    record = json.loads((package / "golden_records.json").read_text())["records"][0]
    assert set(record) == {"size", "note", "photo"}


@pytest.mark.slow
def test_a_module_that_gives_another_shape_stops_before_training(stages: Any, shared_workplace: Workplace) -> None:
    wrong = "model.encoders.tokens.module=own_module:build_wrong"
    done = shared_workplace.run("run", "spec.yaml", "--set", wrong)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "must give logits of the shape (rows, 6), (2, 6) for two rows, got (2, 7)" in done.stderr
    assert "tune" not in done.stdout, "the search has not begun"
    done = shared_workplace.run("run", "spec.yaml", "--set", "model.encoders.tokens.module=own_module:absent")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "model.encoders.tokens.module must name a function" in done.stderr
    assert "got 'own_module:absent' (AttributeError" in done.stderr
    assert not done.stdout, "nothing was read"
