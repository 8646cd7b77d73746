"""A user's function that makes a model, and what is said when it is wrong; the same for every framework."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import LeptonError, SpecError
from lepton_ray.core.imports import load_function
from lepton_ray.spec.model import CustomModel

_PLACE = "model.module"
ROW_TOLERANCE = 1e-3  # relative, and of logits near 0: sums may be in another order
ROWS_APART = "make of a row what it makes of it alone"


def two_rows(inputs: Sequence[ModelInput]) -> list[NDArray[Any]]:
    """Return for each input a row of zeros and one of ones, or of the ids that are there."""
    dtypes = [np.float32 if given.num_ids is None else np.int64 for given in inputs]
    ones = [1 if given.num_ids is None else min(1, given.num_ids - 1) for given in inputs]
    return [
        np.stack([np.zeros(given.shape, dtype), np.full(given.shape, one, dtype)])
        for given, dtype, one in zip(inputs, dtypes, ones, strict=True)
    ]


def load_builder(spec: CustomModel) -> Callable[..., Any]:
    """Return the function.

    Raises:
        SpecError: If it cannot be imported.
    """
    return load_function(spec.module, _PLACE)


def call_builder(
    function: Callable[..., Any], spec: CustomModel, inputs: Sequence[ModelInput], num_outputs: int
) -> Any:
    """Return what the function makes.

    Raises:
        SpecError: If it fails.
    """
    try:
        return function(spec, inputs, num_outputs)
    except LeptonError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise wrong(spec, "build a model without an error", f"{type(error).__name__}: {error}") from error


def wrong(spec: CustomModel, rule: str, got: str) -> SpecError:
    """Return the error on a rule that the function does not keep."""
    return SpecError([f"{_PLACE} {spec.module!r} must {rule}, got {got}. Correct the function or model.options"])
