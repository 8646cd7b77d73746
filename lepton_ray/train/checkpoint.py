"""Checkpoints: safetensors and JSON, no pickle.

model.safetensors      weights after the last step
average.safetensors    their moving average, where one is kept
best.safetensors       weights of the best epoch
optimizer.safetensors  its tensors, as INDEX.NAME
state.json             history, best epoch, place in the epoch under way
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.files import read_json, write_json
from lepton_ray.train.torch_loop import TrainState


def save(state: TrainState, folder: Path | None) -> None:
    """Write a checkpoint to an existing folder.

    Where workers hold parts of the state, all of them call it; without a folder a worker gives its parts alone.
    """
    optimizer = state.optimizer.state_dict()
    slots = {f"{index}.{name}": value for index, slots in optimizer["state"].items() for name, value in slots.items()}
    files = {
        "model.safetensors": state.model.state_dict(),
        **({} if state.averaged is None else {"average.safetensors": state.averaged.state_dict()}),
        "best.safetensors": state.best_weights,
        "optimizer.safetensors": {name: torch.as_tensor(value) for name, value in slots.items()},
    }
    for name, tensors in files.items():
        if folder is None:
            _gather(tensors)
        else:
            save_file(_contiguous(tensors), folder / name)
    if folder is None:
        return
    write_json(folder / "state.json", state.facts)


def restore(state: TrainState, folder: Path) -> None:
    """Bring a fresh state to where the checkpoint was written; its optimizer keeps its own settings, which may be others.

    Raises:
        ArtifactError: If the checkpoint does not fit the model.
    """
    try:
        facts = read_json(folder / "state.json")
        load_weights(state.model, folder / "model.safetensors")
        if state.averaged is not None:
            load_weights(state.averaged, folder / "average.safetensors")
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        slots: dict[int, dict[str, Any]] = {}
        for name, value in load_file(folder / "optimizer.safetensors").items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = _part(value, parameters[int(index)])
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        _lay_out(state.optimizer)
        state.go_on_from(facts)
        kept = state.evaluated.state_dict()
        best = {name: _part(value, kept[name]) for name, value in load_file(folder / "best.safetensors").items()}
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, OSError, SafetensorError) as error:
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


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights by their names."""
    return dict(model.state_dict())


def give_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give a model the weights of another of its form."""
    model.load_state_dict(weights)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Give a model the weights of a file."""
    there = model.state_dict()
    weights = load_file(path)
    model.load_state_dict({name: _part(value, there.get(name)) for name, value in weights.items()})


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies: safetensors refuses tensors that share memory, as tied weights do."""
    return {
        name: _whole(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _gather(tensors: dict[str, torch.Tensor]) -> None:
    for value in tensors.values():
        _whole(value)


def _whole(value: Any) -> torch.Tensor:
    """Return a tensor with the parts of all workers, which all call this."""
    whole: torch.Tensor = value.full_tensor() if _is_parted(value) else value
    return whole


def _is_parted(value: Any) -> bool:
    """Whether it is a tensor of which each worker holds a part; without the half second that importing ``DTensor`` takes."""
    return hasattr(value, "full_tensor")


def _part(value: torch.Tensor, like: Any) -> torch.Tensor:
    """Return this worker's part of a whole tensor, where ``like`` is one of its shape."""
    if like is None or not _is_parted(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415  slow, and of parted models alone

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
