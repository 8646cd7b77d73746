"""Kind of a model -> the module that builds it, imported when it is asked for."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.extras import require
from lepton_ray.spec.model import Model

_MODULES = {
    "linear": "lepton_ray.models.torch.linear",
    "mlp": "lepton_ray.models.torch.mlp",
    "cnn": "lepton_ray.models.torch.cnn",
    "resnet": "lepton_ray.models.torch.resnet",
    "rnn": "lepton_ray.models.torch.rnn",
    "transformer": "lepton_ray.models.torch.transformer",
    "fusion": "lepton_ray.models.torch.fusion",
    "custom": "lepton_ray.models.torch.custom",
}


def build_model(spec: Model, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Return a torch module with fresh weights.

    It is called with one tensor (N, ...) for each input, in their order, and gives logits (N, num_outputs).

    Raises:
        MissingExtraError: If torch is not installed.
        SpecError: If a custom model cannot be built, or is not what a model must be.
    """
    require("torch", f"a model of kind {spec.kind!r}")
    return require(_MODULES[spec.kind], "building a model").build(spec, inputs, num_outputs)
