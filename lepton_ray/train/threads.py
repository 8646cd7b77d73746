"""How many threads a step is worth: one, where work is so small that threads wait for each other longer than they compute.

Beside other processes that want the same cores, such waiting made steps of a small model a hundred times slower.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from lepton_ray.train.rows import Inputs

_FEW_OPERATIONS = 10_000_000  # floating-point, of a forward pass: with more, two threads were faster on a quiet machine
_STEPS_DIMENSIONS = 3  # rows, steps, series
_DENSE = (nn.Linear, nn.ReLU, nn.Dropout, nn.Flatten)
"""Layers that use each weight once a row."""


def threads_for(model: nn.Module, x: Inputs, rows: int) -> int:
    """Return how many threads to run a step of ``rows`` rows with: all that torch has, or 1. ``x`` may hold fewer rows."""
    length = max(x.shape[1] if x.dtype == np.int64 or x.ndim == _STEPS_DIMENSIONS else 1 for x in x.values())
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    dense: float = 2 * rows * length * num_weights  # of recurrent layers, which are not counted
    if dense < _FEW_OPERATIONS and not all(type(m) in _DENSE for m in model.modules() if not list(m.children())):
        dense = max(dense, _count(model, x, rows))
    return 1 if dense < _FEW_OPERATIONS else torch.get_num_threads()


def _count(model: nn.Module, x: Inputs, rows: int) -> float:
    """Return the operations of a forward pass as torch counts them, which takes its compiler a second to import."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415  slow

    batch = {name: values[:rows].copy() for name, values in x.items()}
    is_training = model.training
    with torch.random.fork_rng(devices=()), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*map(torch.from_numpy, batch.values()))
    model.train(is_training)
    operations: float = counter.get_total_flops() * rows / min(map(len, batch.values()))
    return operations


@contextlib.contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
