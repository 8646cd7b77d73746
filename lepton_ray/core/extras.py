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
    "pandas": "pipeline",
    "onnxscript": "torch",
    "safetensors": "torch",
    "torch": "torch",
    "mlflow": "mlflow",
    "starlette": "serve",
}


def require(module: str, purpose: str) -> Any:
    """Import ``module`` and return it.

    Raises:
        MissingExtraError: If it, or what it imports, is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if explained := explain(error, purpose):
            raise explained from error
        raise


def explain(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """Return an error that names the extra which brings the missing package, or None if no extra does."""
    root = (error.name or "").partition(".")[0]
    if root not in _EXTRA_OF_MODULE:
        return None
    install = f"pip install 'lepton-ray[{_EXTRA_OF_MODULE[root]}]'"
    return MissingExtraError(f"{purpose} needs the package {root!r}, which is not installed. Run: {install}.")
