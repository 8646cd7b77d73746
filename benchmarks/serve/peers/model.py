"""What all peers do alike: a package's graph in onnxruntime with one thread, and rows in and out of it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image


class Model:
    """Of the small table, or of images."""

    def __init__(self, folder: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(f"{folder}/model.onnx", options)
        signature = json.loads(Path(folder, "signature.json").read_text())
        self._columns, self._classes = list(signature["columns"]), signature["classes"]
        (tensor,) = self._session.get_inputs()
        self._input, self._shape = tensor.name, tuple(tensor.shape[1:])

    def read_records(self, records: list[dict[str, Any]]) -> NDArray[Any]:
        """Return the tensor of records from JSON: numbers, nested pixels, or image files in base64."""
        if self._input == "image":
            return np.stack([_read_image(record["image"]) for record in records])
        return np.array([[record[name] for name in self._columns] for record in records], np.float64)

    def read_raw(self, body: bytes) -> NDArray[Any]:
        """Return the tensor of raw pixels."""
        return np.frombuffer(body, np.uint8).reshape(-1, *self._shape)

    def predict(self, tensor: NDArray[Any]) -> list[dict[str, Any]]:
        """Return what is answered for each row."""
        labels, rows = self._session.run(["label", "probabilities"], {self._input: tensor})
        return [
            {"label": label, "probabilities": dict(zip(self._classes, row, strict=True))}
            for label, row in zip(labels.tolist(), rows.tolist(), strict=True)
        ]


def _read_image(value: Any) -> NDArray[np.uint8]:
    if isinstance(value, dict):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(value["b64"]))))
    return np.array(value, np.uint8)
