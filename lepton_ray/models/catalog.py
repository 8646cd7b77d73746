"""Framework and kind of a model -> the module that builds it, imported when it is asked for."""

from typing import Any

from lepton_ray.core.extras import require
from lepton_ray.spec.model import CnnModel, Framework, MlpModel

_MODULES = {"mlp": "lepton_ray.models.torch.mlp", "cnn": "lepton_ray.models.torch.cnn"}
_KERAS_MODULES = {"mlp": "lepton_ray.models.keras.mlp", "cnn": "lepton_ray.models.keras.cnn"}


def build_model(
    spec: MlpModel | CnnModel, input_shape: tuple[int, ...], num_classes: int, framework: Framework = "torch"
) -> Any:
    """Return a model from model input (N, *input_shape) to logits (N, num_classes), with fresh weights.

    Raises:
        MissingExtraError: If the framework is not installed.
    """
    module = (_KERAS_MODULES if framework == "keras" else _MODULES)[spec.kind]
    return require(module, f"a model of kind {spec.kind!r}").build(spec, input_shape, num_classes)
