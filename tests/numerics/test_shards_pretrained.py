"""``train.parallelism: fsdp`` of a pretrained backbone, of which some layers learn: the steps of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lepton_ray.spec.model import TrainSpec
from lepton_ray.train import checkpoint, torch_loop, torch_shards

from .test_pretrained import _build, _data, _spec, write_backbone

SPEC = TrainSpec(
    num_workers=2,
    parallelism="fsdp",
    epochs=5,
    global_batch_size=8,
    optimizer="sgd",
    lr=0.2,  # so much that not every epoch is the best so far, of which a copy is made
    clip_norm=1.0,
    average_decay=0.5,
)
CASES: dict[str, dict[str, Any]] = {
    "unfreezing": {"unfreeze_every_epochs": 1},
    "frozen": {"freeze": "all"},
    "lora": {"freeze": 1, "lora": {"factor_rank": 2}},
}
SEED = 5


def train(folder: Path, case: str, group: torch_loop.Group | None = None, **split: Any) -> torch_loop.TrainState:
    state = torch_loop.start_state(_build(_spec(folder / "bert", **CASES[case])), SPEC, SEED, **split)
    list(torch_loop.train_epochs(state, _data(), SPEC, SEED, group))
    return state


def work(rank: int, folder: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    group = torch_loop.Group(rank, 2, add_up=lambda values: torch.distributed.all_reduce(values))
    for case in CASES:
        state = train(folder, case, group, split=torch_shards.split)
        (folder / case).mkdir(exist_ok=True)
        checkpoint.save(state, folder / case if rank == 0 else None)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of two processes, and the backbone."""
    folder = tmp_path_factory.mktemp("shards")
    write_backbone(folder / "bert", "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_parts_learn_what_one_learns(folder: Path, case: str) -> None:
    alone = train(folder, case)
    assert alone.averaged is not None
    losses = [metrics["val_loss"] for metrics in alone.history]
    assert losses != sorted(losses, reverse=True), "some epoch is no better than the one before"
    for file, module in (("average", alone.averaged), ("model", alone.model)):
        parts = load_file(folder / case / f"{file}.safetensors")
        for name, value in module.state_dict().items():
            torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=0)
    begin = torch_loop.start_state(_build(_spec(folder / "bert", **CASES[case])), SPEC, SEED).model.state_dict()
    moved = {name for name, value in parts.items() if not torch.equal(value, begin[name])}
    assert any("layer.1" in name for name in moved) == (case != "frozen")
