"""Sparing processes that train the import of torch's compiler, a second each: optimizers import it, and nothing is compiled.

Of torch 2.13. Where the compiler is there already, as where a user's own module is compiled, optimizers are left to it.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch.optim import Optimizer

_COMPILER = "torch._dynamo"
_MARKED = (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict)
"""Methods that ``torch._compile._disable_dynamo`` marks as not to be compiled when each is called first."""


def spare_compiler() -> None:
    """Let the methods of optimizers that torch has marked do without it."""
    if _COMPILER in sys.modules:
        return
    for method in _MARKED:
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            setattr(plain, "__dynamo_disable", plain)  # in a class, the plain name would be another


def step_of(optimizer: Optimizer) -> Callable[[], object]:
    """Return what takes a step of an optimizer that has no hooks: torch's own function, below its wrappers for compiler and profiler.

    They take as long as the arithmetic of a small model's step.
    """
    if _COMPILER in sys.modules:
        return optimizer.step
    return torch.no_grad()(partial(inspect.unwrap(type(optimizer).step), optimizer))
