"""The package on Ray Serve as its documentation shows it: a class with ``__call__`` that awaits the request's JSON.

But for ``max_ongoing_requests``, which is ours: at its default of 5, 64 connections would measure how Ray Serve's router waits.

python benchmarks/serve/plain_serve.py PACKAGE PORT
"""

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import ray
from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
class Model:
    """Holds a session."""

    def __init__(self, folder: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(f"{folder}/model.onnx", options)
        signature = json.loads(Path(folder, "signature.json").read_text())
        self.columns, self.classes = list(signature["columns"]), signature["classes"]

    async def __call__(self, request: Any) -> Any:
        """Answer records."""
        if request.url.path != "/predict":
            return {"ready": True}
        records = await request.json()
        numbers = np.array([[record[name] for name in self.columns] for record in records], np.float64)
        labels, rows = self.session.run(["label", "probabilities"], {"numbers": numbers})
        return {
            "predictions": [
                {"label": label, "probabilities": dict(zip(self.classes, row, strict=True))}
                for label, row in zip(labels.tolist(), rows.tolist(), strict=True)
            ]
        }


def main() -> None:
    """Serve until SIGTERM."""
    folder, port = sys.argv[1:]
    ended = threading.Event()
    ray.init(address="local", include_dashboard=False, object_store_memory=300 << 20, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after Ray, which sets one of its own
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config={"enable_access_log": False})
    serve.run(Model.bind(folder))
    ended.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
