"""Checkpoints of Keras: the files of ``checkpoint``, with variables by their paths.

model.safetensors      weights after the last step
average.safetensors    their moving average, where one is kept
best.safetensors       weights of the best epoch
optimizer.safetensors  its variables, among them the learning rate and the number of steps
state.json             history, best epoch, place in the epoch under way
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.files import read_json, write_json
from lepton_ray.train.keras_state import TrainState, Weights, weights_of


def save(state: TrainState, folder: Path) -> None:
    """Write a checkpoint to an existing folder."""
    save_weights(weights_of(state.model), folder / "model.safetensors")
    if state.averaged is not None:
        save_weights(weights_of(state.averaged), folder / "average.safetensors")
    save_weights(state.best_weights, folder / "best.safetensors")
    optimizer = {variable.path: np.array(variable.numpy()) for variable in state.optimizer.variables}
    save_weights(optimizer, folder / "optimizer.safetensors")
    write_json(folder / "state.json", state.facts)


def restore(state: TrainState, folder: Path) -> None:
    """Bring a fresh state to where the checkpoint was written.

    Raises:
        ArtifactError: If the checkpoint does not fit the model.
    """
    try:
        facts = read_json(folder / "state.json")
        load_weights(state.model, folder / "model.safetensors")
        if state.averaged is not None:
            load_weights(state.averaged, folder / "average.safetensors")
        _assign(state.optimizer.variables, load_file(folder / "optimizer.safetensors"))
        state.go_on_from(facts)
        state.best_weights = load_file(folder / "best.safetensors")
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} must be a checkpoint of this model ({type(error).__name__}). Run with --from train"
        ) from error


def save_weights(weights: Weights, path: Path) -> None:
    """Write weights to a file."""
    save_file(weights, path)


def give_weights(model: Any, weights: Weights) -> None:
    """Give a model the weights of another of its form."""
    _assign(model.weights, weights)


def load_weights(model: Any, path: Path) -> None:
    """Give a model the weights of a file."""
    give_weights(model, load_file(path))


def _assign(variables: Iterable[Any], values: Weights) -> None:
    by_path = {variable.path: variable for variable in variables}
    if by_path.keys() != values.keys():
        raise ValueError(f"variables must be {', '.join(by_path)}, got {', '.join(values)}")
    for path, variable in by_path.items():
        variable.assign(values[path])
