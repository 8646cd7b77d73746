"""Kind of a model -> the module that builds it, imported when it is asked for."""

from typing import Any

from lepton_ray.core.extras import require
from lepton_ray.spec.model import CnnModel, MlpModel

_MODULES = {"mlp": "lepton_ray.models.torch.mlp", "cnn": "lepton_ray.models.torch.cnn"}


def build_model(spec: MlpModel | CnnModel, input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Return a torch module from model input (N, *input_shape) to logits (N, num_classes), with fresh weights.

    Raises:
        MissingExtraError: If torch is not installed.
    """
    require("torch", f"a model of kind {spec.kind!r}")
    return require(_MODULES[spec.kind], "building a model").build(spec, input_shape, num_classes)
