"""The small training that tests of training share: its data, models and settings, and workers as threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import Group, TrainState, start_state, train_epochs

SEED = 5
MLP = MlpModel(kind="mlp", hidden=(6,))
DROPOUT = MlpModel(kind="mlp", hidden=(6,), dropout=0.4)
AUGMENT = {"table": {"noise_std": 0.3, "noise_fraction": 0.8}, "mixup_alpha": 0.4, "balance": "weights"}


def make_data(rows: int = 33, val_rows: int = 7, width: int = 3, classes: int = 3) -> TrainData:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows + val_rows, width)).astype(np.float32)
    y = (x @ rng.normal(size=(width, classes)) + rng.gumbel(size=(rows + val_rows, classes))).argmax(1)
    return TrainData({"x": x[:rows]}, y[:rows], {"x": x[rows:]}, y[rows:])


def make_spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": 4, "global_batch_size": 12, "lr": 0.05, **changes})


def build_of(model: MlpModel = MLP) -> Any:
    return partial(build_model, model, [ModelInput(name="x", shape=(3,))], 3)


def train_alone(spec: TrainSpec, data: TrainData, model: MlpModel = MLP) -> TrainState:
    state = start_state(build_of(model), spec, SEED)
    for _ in train_epochs(state, data, spec, SEED):
        pass
    return state


def weights_of(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


class Threads:
    """Workers as threads: tensors are added up at a barrier, gradients averaged as each becomes ready."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._values: dict[int, torch.Tensor] = {}

    def group(self, rank: int) -> Group:
        def add_up(values: torch.Tensor) -> None:
            self._values[rank] = values.clone()
            self._barrier.wait()
            total = sum(self._values[other] for other in range(self.world_size))
            self._barrier.wait()
            values.copy_(total)

        def average(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            add_up(parameter.grad)
            parameter.grad /= self.world_size

        def wrap(model: nn.Module) -> nn.Module:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(average)
            return model

        return Group(rank, self.world_size, "cpu", add_up, wrap)

    def train(self, spec: TrainSpec, data: TrainData, build: Any = None) -> list[TrainState]:
        states = [start_state(build or build_of(), spec, SEED) for _ in range(self.world_size)]

        def work(rank: int) -> None:
            for _ in train_epochs(states[rank], data, spec, SEED, self.group(rank)):
                pass

        with ThreadPoolExecutor(self.world_size) as pool:
            list(pool.map(work, range(self.world_size)))
        return states


def assert_equal(got: TrainState, wanted: TrainState) -> None:
    assert got.history == wanted.history
    assert got.best_epoch == wanted.best_epoch
    for mine, theirs in ((got.model.state_dict(), wanted.model.state_dict()), (got.best_weights, wanted.best_weights)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
