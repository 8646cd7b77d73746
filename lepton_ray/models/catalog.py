"""Framework and kind of a model -> the module that builds it, imported when it is asked for."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.extras import require
from lepton_ray.spec.model import Framework, Model

_MODULES = {
    "torch": {
        kind: f"lepton_ray.models.torch.{kind}"
        for kind in (
            "linear",
            "mlp",
            "cnn",
            "resnet",
            "rnn",
            "transformer",
            "factorization",
            "two_towers",
            "autoencoder",
            "pretrained",
            "fusion",
            "custom",
        )
    },
    "keras": {kind: f"lepton_ray.models.keras.{kind}" for kind in ("linear", "mlp", "cnn", "autoencoder")},
}


def build_model(spec: Model, inputs: Sequence[ModelInput], num_outputs: int, framework: Framework = "torch") -> Any:
    """Return a model with fresh weights.

    It is called with one tensor (N, ...) for each input, in their order, and gives what ``Target`` says, (N, num_outputs).

    Raises:
        MissingExtraError: If the framework is not installed.
        SpecError: If a custom model cannot be built, or is not what a model must be.
    """
    require(framework, f"a model of kind {spec.kind!r}")
    return require(_MODULES[framework][spec.kind], "building a model").build(spec, inputs, num_outputs)
