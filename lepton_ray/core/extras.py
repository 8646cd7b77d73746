"""Optional dependencies: imported when first needed, with the install command in the error."""

import importlib
from typing import Any

from lepton_ray.core.errors import MissingExtraError

_EXTRA_OF_MODULE = {
    "ray": "pipeline",
    "onnx": "pipeline",
    "sklearn": "pipeline",
    "matplotlib": "pipeline",
    "PIL": "pipeline",
    "optuna": "pipeline",
    "safetensors": "torch",
    "torch": "torch",
    "mlflow": "mlflow",
    "starlette": "serve",
}


def require(module: str, purpose: str) -> Any:
    """Import ``module`` and return it.

    Raises:
        MissingExtraError: If it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        extra = _EXTRA_OF_MODULE.get(root, "pipeline")
        message = (
            f"{purpose} needs the package {root!r}, which is not installed. Run: pip install 'lepton-ray[{extra}]'."
        )
        raise MissingExtraError(message) from error
