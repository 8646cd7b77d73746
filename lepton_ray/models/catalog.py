"""Library and kind of a model -> the module that builds it, imported when it is asked for."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.extras import require
from lepton_ray.spec.model import Framework, Model, library_of


def build_model(spec: Model, inputs: Sequence[ModelInput], num_outputs: int, framework: Framework = "torch") -> Any:
    """Return a model with fresh weights.

    It is called with one tensor (N, ...) for each input, in their order, and gives what ``Target`` says, (N, num_outputs); in
    Keras with the list of them, or the one alone.

    Raises:
        MissingExtraError: If the framework is not installed.
        SpecError: If a custom model cannot be built, or is not what a model must be.
    """
    module = require(f"lepton_ray.models.{library_of(framework)}.{spec.kind}", f"a model of kind {spec.kind!r}")
    return module.build(spec, inputs, num_outputs)
