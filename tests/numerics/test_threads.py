"""A step of little work takes one thread, whatever the machine has; a step of much work takes them all."""

from typing import Any

import numpy as np
import pytest
import torch

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, MlpModel, RnnModel, TrainSpec
from lepton_ray.train import torch_loop
from lepton_ray.train.rows import TrainData
from lepton_ray.train.threads import threads_for, use_threads

_TABLE, _IMAGE = ModelInput(name="x", shape=(20,)), ModelInput(name="x", shape=(3, 32, 32))
_STEPS = ModelInput(name="x", shape=(50, 3))


@pytest.mark.parametrize(
    ("spec", "given", "rows", "is_light"),
    [
        (MlpModel(kind="mlp", hidden=(32,)), _TABLE, 64, True),
        (MlpModel(kind="mlp", hidden=(1024, 1024)), _TABLE, 64, False),
        (MlpModel(kind="mlp", hidden=(32,)), _TABLE, 8192, False),
        (CnnModel(kind="cnn"), _IMAGE, 32, False),
        (RnnModel(kind="rnn", hidden=8), _STEPS, 4, True),
        (RnnModel(kind="rnn", hidden=64), _STEPS, 64, False),
    ],
)
def test_threads_follow_the_work(spec: Any, given: ModelInput, rows: int, is_light: bool) -> None:
    model = build_model(spec, [given], 3).train()
    x = {"x": np.zeros((rows, *given.shape), np.float32)}
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    with use_threads(2):
        assert threads_for(model, x, rows) == (1 if is_light else 2)
    assert model.training
    assert torch.equal(torch.rand(1), drawn)


def test_an_epoch_of_little_work_runs_with_one_thread_and_gives_the_others_back() -> None:
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(values)

    x, y = np.zeros((8, 2), np.float32), np.zeros(8, np.int64)
    spec = TrainSpec(epochs=2, global_batch_size=4)
    state = torch_loop.start_state(lambda: Model(2, 2), spec, 0)
    with use_threads(2):
        for _ in torch_loop.train_epochs(state, TrainData({"x": x}, y, {"x": x}, y), spec, 0):
            assert torch.get_num_threads() == 2
    assert seen == [2, *([1] * 6)]  # the first weighs the work; then two steps and a validation an epoch
