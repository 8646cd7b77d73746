"""A package's graph as an MLflow model behind ``mlflow models serve``: python server.py PACKAGE PORT."""

import os
import sys
import tempfile
from pathlib import Path

import mlflow.onnx
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

OPTIONS = {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "execution_mode": "sequential"}


def signature_of(graph: onnx.ModelProto) -> ModelSignature:
    """Return type and shape of the one input, without which whole numbers would be int64."""
    tensor = graph.graph.input[0].type.tensor_type
    shape = (-1, *(axis.dim_value for axis in tensor.shape.dim[1:]))
    return ModelSignature(Schema([TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)]))


def main() -> None:
    """Save the model and become its server."""
    package, port = sys.argv[1:]
    model = str(Path(tempfile.mkdtemp(prefix="lepton_bench_mlflow")) / "model")
    graph = onnx.load(f"{package}/model.onnx")
    mlflow.onnx.save_model(graph, model, signature=signature_of(graph), onnx_session_options=OPTIONS)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", port, "--workers", "1"])


if __name__ == "__main__":
    main()
