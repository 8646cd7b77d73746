"""Checkpoints: safetensors and JSON, no pickle.

model.safetensors      weights after the last finished epoch
average.safetensors    their moving average, where one is kept
best.safetensors       weights of the best epoch
optimizer.safetensors  its tensors, as INDEX.NAME
state.json             history, best epoch, the optimizer's settings
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.files import read_json, write_json
from lepton_ray.train.torch_loop import TrainState


def save(state: TrainState, folder: Path) -> None:
    """Write a checkpoint to an existing folder."""
    save_file(_contiguous(state.model.state_dict()), folder / "model.safetensors")
    if state.averaged is not None:
        save_file(_contiguous(state.averaged.state_dict()), folder / "average.safetensors")
    save_file(_contiguous(state.best_weights), folder / "best.safetensors")
    optimizer = state.optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, slots in optimizer["state"].items() for name, value in slots.items()}
    save_file(
        _contiguous({name: torch.as_tensor(value) for name, value in tensors.items()}), folder / "optimizer.safetensors"
    )
    facts = {"history": state.history, "best_epoch": state.best_epoch, "optimizer_groups": optimizer["param_groups"]}
    write_json(folder / "state.json", facts)


def restore(state: TrainState, folder: Path, with_settings: bool = True) -> None:
    """Bring a fresh state to where the checkpoint was written; without the optimizer's settings it keeps its own.

    Raises:
        ArtifactError: If the checkpoint does not fit the model.
    """
    try:
        facts = read_json(folder / "state.json")
        state.model.load_state_dict(load_file(folder / "model.safetensors"))
        if state.averaged is not None:
            state.averaged.load_state_dict(load_file(folder / "average.safetensors"))
        slots: dict[int, dict[str, Any]] = {}
        for name, value in load_file(folder / "optimizer.safetensors").items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = value
        groups = facts["optimizer_groups"] if with_settings else state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        _lay_out(state.optimizer)
        state.history, state.best_epoch = facts["history"], facts["best_epoch"]
        best = load_file(folder / "best.safetensors")
    except (RuntimeError, KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} must be a checkpoint of this model ({type(error).__name__}). Run with --from train"
        ) from error
    device = next(state.model.parameters()).device
    state.best_weights = {name: value.to(device) for name, value in best.items()}


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Bring tensors into the order in memory of their weights: fused optimizers take the n-th number of each, unasked."""
    for weight, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == weight.shape:
                slots[name] = torch.empty_like(weight).copy_(value)


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights to a file."""
    save_file(_contiguous(weights), path)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Give a model the weights of a file."""
    model.load_state_dict(load_file(path))


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies: safetensors refuses tensors that share memory, as tied weights do."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
