"""The public client of the Open Inference Protocol, in an environment of its own, at the listener."""

import asyncio
import json
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_ray.serve.connection import Connection
from lepton_ray.serve.endpoint import Limits
from lepton_ray.serve.grpc_connection import GrpcConnection

_INSTALL_TIMEOUT_S, _RUN_TIMEOUT_S = 240, 120
_CLIENT = """
import json, sys
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(f"127.0.0.1:{sys.argv[1]}")
kind, told = sys.argv[2], {}


def given(name, values, datatype, is_raw):
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=is_raw)
    return tensor


if kind == "mixed":
    numbers = np.array([[30, 10.5], [60, 1000]], np.float64)
    texts = np.array([["red", "S"], ["s\\u00fc\\u00df", "L"]], object)
    inputs = lambda is_raw: [given("numbers", numbers, "FP64", is_raw), given("categories", texts, "BYTES", is_raw)]
    wanted = lambda is_raw: [triton.InferRequestedOutput(name, binary_data=is_raw) for name in ("label", "probabilities")]
    pairs = ((True, wanted(True)), (True, wanted(False)), (False, wanted(True)), (False, wanted(False)), (True, None))
else:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
    inputs = lambda is_raw: [given("image", pixels, "UINT8", is_raw)]
    pairs = ((True, None), (False, None))
told["live"], told["ready"], told["model_ready"] = (
    client.is_server_live(), client.is_server_ready(), client.is_model_ready("demo"))
told["server"], told["metadata"] = client.get_server_metadata(), client.get_model_metadata("demo")
told["config"], told["index"] = client.get_model_config("demo"), client.get_model_repository_index()
told["answers"] = []
for is_raw, outputs in pairs:
    result = client.infer("demo", inputs(is_raw), outputs=outputs, request_id="seven")
    labels = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("label").tolist()]
    told["answers"].append([result.get_response()["id"], labels, result.as_numpy("probabilities").tolist()])
told["stats"] = client.get_inference_statistics("demo")["model_stats"], client.get_inference_statistics()["model_stats"]
try:
    client.infer("other", inputs(True))
except InferenceServerException as error:
    told["error"] = [error.status(), error.message()]
print(json.dumps(told))
"""
_GRPC_CLIENT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(f"127.0.0.1:{sys.argv[1]}")
kind, told = sys.argv[2], {}


def given(name, values, datatype):
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


if kind == "mixed":
    numbers = np.array([[30, 10.5], [60, 1000]], np.float64)
    texts = np.array([["red", "S"], ["s\\u00fc\\u00df", "L"]], object)
    inputs = [given("numbers", numbers, "FP64"), given("categories", texts, "BYTES")]
    wanted = [triton.InferRequestedOutput(name) for name in ("label", "probabilities")]
    choices = (wanted, None, None, None, None)
else:
    inputs = [given("image", np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1), "UINT8")]
    choices = (None, None)
told["live"], told["ready"], told["model_ready"] = (
    client.is_server_live(), client.is_server_ready(), client.is_model_ready("demo"))
told["server"] = client.get_server_metadata(as_json=True)
told["metadata"] = client.get_model_metadata("demo", as_json=True)
told["config"] = client.get_model_config("demo", as_json=True)["config"]
told["index"] = client.get_model_repository_index(as_json=True)["models"]
told["answers"] = []
for outputs in choices:
    result = client.infer("demo", inputs, outputs=outputs, request_id="seven", headers={"x-request-id": "job"})
    labels = [text.decode() for text in result.as_numpy("label").tolist()]
    told["answers"].append([result.get_response().id, labels, result.as_numpy("probabilities").tolist()])


def statistics(*name):
    (one,) = client.get_inference_statistics(*name, as_json=True)["model_stats"]
    success = one["inference_stats"]["success"]
    return [{"inference_count": int(one["inference_count"]), "inference_stats": {"success": {"count": int(success["count"])}}}]


told["stats"] = statistics("demo"), statistics()
try:
    client.infer("other", inputs)
except InferenceServerException as error:
    told["error"] = [{"StatusCode.NOT_FOUND": "404"}[error.status()], error.message()]
print(json.dumps(told))
"""


@pytest.fixture(scope="session")
def _client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the client: its older protobuf must not come into ours."""
    folder = tmp_path_factory.mktemp("triton")
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "tritonclient[http,grpc]"]
    try:
        venv.create(folder, with_pip=True)
        subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pip cannot install tritonclient: {(error.stderr or b'').decode(errors='replace')[-300:]}")
    return python


@pytest.fixture
def new_loop() -> Callable[[], Any]:
    return asyncio.new_event_loop


@pytest.fixture(params=[(_CLIENT, Connection), (_GRPC_CLIENT, GrpcConnection)], ids=["http", "grpc"])
def ask(
    request: pytest.FixtureRequest, _client_python: Path, listen: Callable[..., Any]
) -> Callable[[Path], dict[str, Any]]:
    """``ask(folder)`` returns what the client was told by a listener of a package."""

    def run(folder: Path) -> dict[str, Any]:
        script, connect = request.param
        port = listen(folder, limits=Limits(max_rows=9), connect=connect).port
        command = [_client_python, "-c", script, str(port), folder.name]
        done = subprocess.run(command, capture_output=True, timeout=_RUN_TIMEOUT_S, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run


@pytest.mark.slow
def test_the_client_gets_what_it_asks_for(ask: Any, mixed_package: Path, expected_probabilities: Any) -> None:
    told = ask(mixed_package)
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert "statistics" in told["server"]["extensions"]
    assert [tensor["name"] for tensor in told["metadata"]["inputs"]] == ["numbers", "categories"]
    assert told["config"]["max_batch_size"] == 9
    (entry,) = told["index"]
    assert (entry["name"], entry["version"], entry["state"]) == ("demo", told["metadata"]["versions"][0], "READY")
    records = [
        {"age": 30, "income": 10.5, "colour": "red", "size": "S"},
        {"age": 60, "income": 1000, "colour": "other", "size": "L"},
    ]
    expected = expected_probabilities(records)
    assert len(told["answers"]) == 5
    for request_id, labels, probabilities in told["answers"]:
        assert request_id == "seven"
        assert labels == [("no", "maybe", "yes")[index] for index in expected.argmax(1)]
        assert np.abs(np.array(probabilities) - expected).max() < 1e-5
    one, every = told["stats"]
    assert one == every
    assert (one[0]["inference_count"], one[0]["inference_stats"]["success"]["count"]) == (10, 5)
    assert told["error"][0] == "404"
    assert told["error"][1].startswith("the model must be 'demo'")


@pytest.mark.slow
def test_the_client_sends_pictures(ask: Any, picture_package: Path) -> None:
    told = ask(picture_package)
    assert told["answers"][0] == told["answers"][1]
    assert told["answers"][0][1] == ["even", "even"]
