"""Rows a second of orjson, onnxruntime and orjson in one loop: python benchmarks/serve/in_process.py PACKAGE BODY."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson

SECONDS = 2.0


def main() -> None:
    """Print the rate."""
    folder, body = sys.argv[1:]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(f"{folder}/model.onnx", options)
    columns = list(json.loads(Path(folder, "signature.json").read_text())["columns"])
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        record = orjson.loads(body)[0]
        numbers = np.array([[record[name] for name in columns]], np.float64)
        label, probabilities = session.run(["label", "probabilities"], {"numbers": numbers})
        orjson.dumps({"label": label[0], "probabilities": probabilities[0]}, option=orjson.OPT_SERIALIZE_NUMPY)
        count += 1
    print(count / (time.perf_counter() - start))


if __name__ == "__main__":
    main()
