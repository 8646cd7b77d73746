"""A trial that goes on from another's state."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.stages.tune import start_trial
from lepton_ray.train.rows import TrainData


def _start(framework: Any, optimizer: Any, values: dict[str, Any], folder: Path | None = None) -> Any:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 2, 60)
    build = partial(build_model, inputs=[ModelInput(name="x", shape=(4,))], num_outputs=2, framework=framework)
    data = TrainData({"x": x[:40]}, y[:40], {"x": x[40:]}, y[40:])
    train = TrainSpec(framework=framework, epochs=6, global_batch_size=8, optimizer=optimizer)
    return start_trial(MlpModel(kind="mlp", hidden=(5,)), train, build, 3, values, data, folder)


@pytest.mark.parametrize(
    ("framework", "optimizer"), [("torch", "sgd"), ("torch", "adam"), ("torch", "adamw"), ("keras", "adamw")]
)
def test_a_trial_goes_on_with_the_weights_it_took_over_and_its_own_rate(
    framework: str, optimizer: str, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    first = _start(framework, optimizer, {"train.lr": 0.01})
    list(islice(first, 2))[-1].save(before)
    still = list(_start(framework, optimizer, {"train.lr": 1e-30}, before))
    assert len(still) == 4, "of six epochs two are done"
    still[-1].save(after)
    weights, moved = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert all((weights[name] == moved[name]).all() for name in weights), "its own rate is next to nothing"

    assert [epoch.loss for epoch in _start(framework, optimizer, {"train.lr": 0.01}, before)] == [
        epoch.loss for epoch in first
    ]
