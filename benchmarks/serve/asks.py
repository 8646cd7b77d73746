"""The same rows as each server wants them: where they are posted, in which form, and where its answer has the probabilities.

Forms: ``json`` (records; an image as nested numbers), ``raw`` (bytes of the tensor; in base64 where a server takes only
JSON), ``files`` (PNG files in base64).
"""

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from packages import Rows  # beside this file

TOLERANCE = 1e-5
_PATIENCE_S, _TOO_MANY = 10.0, 429


@dataclass(frozen=True)
class Ask:
    """One request, always the same."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Dialect:
    """How a server is asked, by form; a form that it does not know is not there."""

    forms: Mapping[str, Callable[[Rows], Ask]]
    read: Callable[[Any], Any]
    """Returns the probabilities in the JSON of an answer, a row for each."""


def check(url: str, dialect: Dialect, ask: Ask, rows: Rows) -> None:
    """Hold a server's answer against what it must be.

    Raises:
        RuntimeError: If it differs.
    """
    request = urllib.request.Request(url + ask.path, ask.body, dict(ask.headers))
    answer = _ask_patiently(request)
    got = np.array(dialect.read(json.loads(answer)), np.float64)
    if got.shape != rows.probabilities.shape or np.abs(got - rows.probabilities).max() > TOLERANCE:
        raise RuntimeError(f"{url}{ask.path} must answer {rows.probabilities.tolist()}, got {answer[:2000]!r}")


def _ask_patiently(request: urllib.request.Request) -> bytes:
    """Return what is answered; a limit on requests may begin empty."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as refusal:
            if refusal.code != _TOO_MANY or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _post(path: str, content: Any, **headers: str) -> Ask:
    return Ask(path, {"content-type": "application/json", **headers}, json.dumps(content).encode())


def _open_inference(rows: Rows) -> Ask:
    tensor = {"name": "image", "datatype": "UINT8", "shape": rows.tensor.shape}
    head = {"inputs": [{**tensor, "parameters": {"binary_data_size": rows.tensor.nbytes}}]}
    text = json.dumps({**head, "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
    return Ask(f"/v2/models/{rows.model}/infer", headers, text + rows.tensor.tobytes())


def _bytes(rows: Rows) -> Ask:
    return Ask("/predict", {"content-type": "application/octet-stream"}, rows.tensor.tobytes())


def _bytes_in_json(path: str) -> Callable[[Rows], Ask]:
    return lambda rows: _post(path, {"pixels": base64.b64encode(rows.tensor.tobytes()).decode()})


def _of_predictions(answer: Any) -> Any:
    return [list(row["probabilities"].values()) for row in answer["predictions"]]


def _of_ours(answer: Any) -> Any:
    if "predictions" in answer:
        return _of_predictions(answer)
    (output,) = answer["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


_RECORDS = {"json": lambda rows: _post("/predict", rows.records), "files": lambda rows: _post("/predict", rows.files())}
OURS = Dialect({**_RECORDS, "raw": _open_inference}, _of_ours)
PLAIN = Dialect({**_RECORDS, "raw": _bytes}, _of_predictions)
LITSERVE = Dialect({**_RECORDS, "raw": _bytes_in_json("/predict")}, _of_predictions)
BENTOML = Dialect(
    {
        "json": lambda rows: _post("/predict", {"records": rows.records}),
        "files": lambda rows: _post("/predict", {"records": rows.files()}),
        "raw": _bytes_in_json("/predict_bytes"),
    },
    _of_predictions,
)
MLFLOW = Dialect(
    {"json": lambda rows: _post("/invocations", {"inputs": rows.tensor.tolist()})},
    lambda answer: answer["predictions"]["probabilities"],
)
