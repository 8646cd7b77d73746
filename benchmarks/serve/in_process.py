"""What arithmetic allows: rows a second in one loop with one thread, nothing checked.

python benchmarks/serve/in_process.py PACKAGE ROWS SECONDS

ROWS images a run in onnxruntime alone; or records of a table, whose JSON orjson reads and writes.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson

_OUTPUTS = ["label", "probabilities"]


def main() -> None:
    """Print the rate."""
    folder, rows, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(folder / "model.onnx"), options)
    step = images(session, rows) if session.get_inputs()[0].name == "image" else records(session, folder, rows)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        count += rows
    print(count / elapsed)


def images(session: ort.InferenceSession, rows: int) -> Callable[[], object]:
    """Return what runs a batch of images."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, *session.get_inputs()[0].shape[1:]), np.uint8)
    return lambda: session.run(_OUTPUTS, {"image": pixels})


def records(session: ort.InferenceSession, folder: Path, rows: int) -> Callable[[], object]:
    """Return what answers a body of records."""
    columns = list(json.loads((folder / "signature.json").read_text())["columns"])
    body = json.dumps(json.loads((folder / "golden_records.json").read_text())["records"][:rows])

    def step() -> object:
        numbers = np.array([[record[name] for name in columns] for record in orjson.loads(body)], np.float64)
        label, probabilities = session.run(_OUTPUTS, {"numbers": numbers})
        answer = {"label": label.tolist(), "probabilities": probabilities}
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    return step


if __name__ == "__main__":
    main()
