"""``train.parallelism: fsdp``: two processes that hold parts of a model take the steps that one takes, and leave its checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lepton_ray.spec.model import TrainSpec
from lepton_ray.train import checkpoint, torch_loop, torch_shards
from lepton_ray.train.rows import TrainData

from .families import FAMILIES, NUM_CLASSES

KINDS = ("mlp", "lstm", "fusion")
SPEC = TrainSpec(
    num_workers=2,
    parallelism="fsdp",
    epochs=3,
    global_batch_size=16,
    optimizer="sgd",  # Adam makes whole steps of a key's bias, whose gradient is 0 but for rounding
    lr=5e-2,
    weight_decay=1e-2,
    clip_norm=0.5,
    average_decay=0.9,
    max_rows_per_pass=6,
)
SEED = 5


def data_of(kind: str) -> TrainData:
    """61 rows end with a batch of 13: 7 rows in two passes beside 6 in one. 21 for validation are shared unequally too."""
    family, y = FAMILIES[kind], np.arange(61) % NUM_CLASSES
    return TrainData(family.rows(61), y, family.rows(21, seed=1), y[:21])


def start(kind: str, seed: int = SEED, **split: Any) -> torch_loop.TrainState:
    return torch_loop.start_state(FAMILIES[kind].build, SPEC, seed, **split)


def train(state: torch_loop.TrainState, kind: str, group: torch_loop.Group | None = None) -> Iterator[Any]:
    return torch_loop.train_epochs(state, data_of(kind), SPEC, SEED, group)


def work(rank: int, folder: Path) -> None:
    """One of two processes: two epochs, a checkpoint, and the third of a state that goes on from it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    group = torch_loop.Group(rank, 2, add_up=lambda values: torch.distributed.all_reduce(values))

    def save(state: Any, name: str) -> None:
        (folder / name).mkdir(exist_ok=True)
        checkpoint.save(state, folder / name if rank == 0 else None)
        torch.distributed.barrier()

    for kind in KINDS:
        state = start(kind, split=torch_shards.split)
        epochs = train(state, kind, group)
        next(epochs), next(epochs)
        parts = sum(parameter.to_local().numel() for parameter in state.model.parameters())  # type: ignore[operator]
        assert parts < 0.8 * torch_loop.num_parameters(state.model), "about half of the weights"
        save(state, f"{kind}-2")
        resumed = start(kind, SEED + 1, split=torch_shards.split)
        checkpoint.restore(resumed, folder / f"{kind}-2")
        list(train(resumed, kind, group))
        next(epochs)
        save(resumed, f"{kind}-3")
        assert resumed.history == state.history
        from_one = start(kind, SEED + 1, split=torch_shards.split)
        checkpoint.restore(from_one, folder / f"{kind}-alone-2")
        list(train(from_one, kind, group))
        save(from_one, f"{kind}-from-one-3")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one process and of two."""
    folder = tmp_path_factory.mktemp("shards")
    for kind in KINDS:
        for state in train(start(kind), kind):
            if state.epoch > 1:
                (folder / f"{kind}-alone-{state.epoch}").mkdir()
                checkpoint.save(state, folder / f"{kind}-alone-{state.epoch}")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_parts_take_the_steps_of_one(folder: Path, kind: str) -> None:
    """Also where the third epoch goes on from a checkpoint of the other kind.

    Sums in float32 depend on their order: 1e-6 after 12 steps is rounding, a wrong share or norm is 1000 times that.
    """
    alone = {path.name: load_file(path) for path in (folder / f"{kind}-alone-3").glob("*.safetensors")}
    to_one = start(kind, SEED + 1)
    checkpoint.restore(to_one, folder / f"{kind}-2")
    list(train(to_one, kind))
    (folder / f"{kind}-to-one-3").mkdir()
    checkpoint.save(to_one, folder / f"{kind}-to-one-3")
    for name in ("3", "from-one-3", "to-one-3"):
        parts = {path.name: load_file(path) for path in (folder / f"{kind}-{name}").glob("*.safetensors")}
        assert parts.keys() == alone.keys()
        for file, tensors in alone.items():
            assert parts[file].keys() == tensors.keys()
            for key, value in tensors.items():
                torch.testing.assert_close(parts[file][key], value, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_momentum_and_second_moments_are_split_and_joined(folder: Path) -> None:
    """The slots of an optimizer have the shapes of whole weights in the checkpoint."""
    slots = load_file(folder / "mlp-3" / "optimizer.safetensors")
    shapes = [parameter.shape for parameter in start("mlp").model.parameters()]
    assert sorted(value.shape for value in slots.values()) == sorted(shapes)


def test_a_weight_that_stands_in_two_layers_stays_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        torch_shards.split(model)
        assert model[2].weight is model[0].weight
        assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters()), "all are split"
    finally:
        torch.distributed.destroy_process_group()
