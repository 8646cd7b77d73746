"""What a server says of its models beside the protocol's least: index, configuration and statistics."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve.endpoint import Call, Endpoint, Limits, NoMeter
from lepton_ray.serve.statistics import RunTimes, Statistics

from .conftest import RECORD, build_http_app

_PARTS = ("compute_input", "compute_infer", "compute_output")


@pytest.fixture
def client(call_app: Any, mixed_package: Path) -> Any:
    return call_app(build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(max_rows=9), NoMeter()))


@pytest.fixture
def endpoint(mixed_package: Path) -> Callable[[str], Endpoint]:
    predictor = Predictor(open_package(mixed_package))
    return lambda name: Endpoint(predictor, name, Limits(), NoMeter())


def _stats(client: Any, path: str = "/v2/models/demo/stats") -> dict[str, Any]:
    (stats,) = client.get(path).json()["model_stats"]
    return dict(stats)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": true}'])
def test_the_index_lists_the_package(client: Any, mixed_package: Path, body: bytes) -> None:
    version = open_package(mixed_package).version
    answer = client.post("/v2/repository/index", content=body)
    assert answer.json() == [{"name": "demo", "version": version, "state": "READY", "reason": ""}]
    assert client.get("/v2/repository/index").headers["allow"] == "POST"


def test_the_configuration_is_that_of_triton(client: Any, mixed_package: Path) -> None:
    config = client.get("/v2/models/demo/config").json()
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("demo", "onnxruntime", 9)
    assert config["input"] == [
        {"name": "numbers", "data_type": "TYPE_FP64", "dims": [2]},
        {"name": "categories", "data_type": "TYPE_STRING", "dims": [2]},
    ]
    assert config["output"] == [
        {"name": "label", "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}},
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]},
    ]
    version = open_package(mixed_package).version
    assert client.get(f"/v2/models/demo/versions/{version}/config").json() == config


def test_statistics_count_what_was_answered_and_what_was_not(client: Any, mixed_package: Path) -> None:
    before = _stats(client)
    assert (before["inference_count"], before["execution_count"], before["batch_stats"]) == (0, 0, [])
    for rows in (1, 3, 4):
        assert client.post("/predict", json=[RECORD] * rows).status_code == 200
    assert client.post("/predict", json=[{"age": "x"}]).status_code == 422
    assert client.post("/v2/models/demo/infer", content=b"x").status_code == 400
    stats = _stats(client)
    assert (stats["inference_count"], stats["execution_count"]) == (8, 3)
    assert stats["last_inference"] > before["last_inference"] == 0
    requests = stats["inference_stats"]
    counts = {name: each["count"] for name, each in requests.items()}
    assert counts == {"success": 3, "fail": 2, "queue": 3, **dict.fromkeys(_PARTS, 3), "cache_hit": 0, "cache_miss": 0}
    parts = sum(requests[name]["ns"] for name in ("queue", *_PARTS))
    assert requests["success"]["ns"] == pytest.approx(parts, abs=10)
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in stats["batch_stats"]] == [
        (1, 1),
        (4, 2),
    ]
    version = open_package(mixed_package).version
    for path in ("/v2/models/stats", f"/v2/models/demo/versions/{version}/stats"):
        assert _stats(client, path) == stats


def test_calls_of_one_run_are_one_execution(endpoint: Callable[[str], Endpoint]) -> None:
    one = endpoint("demo")
    calls = [Call("records", b'[{"age": 1, "size": "S"}]', start=0.0) for _ in range(3)]
    assert [response.code for response in one.predict(calls)] == [200] * 3
    stats = one.statistics.tell()
    assert (stats["inference_count"], stats["execution_count"], stats["inference_stats"]["success"]["count"]) == (
        3,
        1,
        3,
    )


def test_the_times_of_a_run_count_for_each_of_its_requests() -> None:
    statistics = Statistics()
    statistics.add_run([1.0, 2.0], 5, RunTimes(3.0, 3.5, 4.5, 4.75))
    told = statistics.tell()
    seconds = {name: each["ns"] / 1e9 for name, each in told["inference_stats"].items() if each["count"]}
    assert seconds == {
        "success": 6.5,
        "queue": 3.0,
        "compute_input": 1.0,
        "compute_infer": 2.0,
        "compute_output": 0.5,
    }
    (batch,) = told["batch_stats"]
    assert batch["batch_size"] == 8
    assert batch["compute_infer"] == {"count": 1, "ns": 1_000_000_000}


def test_no_count_is_lost_between_threads() -> None:
    statistics = Statistics()

    def work() -> None:
        for _ in range(2000):
            statistics.add_run([0.0], 1, RunTimes(0, 0, 0, 0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statistics.tell()["inference_count"] == 8000


def test_a_model_may_be_named_stats(endpoint: Callable[[str], Endpoint]) -> None:
    one = endpoint("stats")
    assert b'"inputs"' in one.ask("GET", "/v2/models/stats").body
    assert b'"model_stats"' in one.ask("GET", "/v2/models/stats/stats").body


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "/v2/models/demo/stats", 405),
        ("POST", "/v2/models/stats", 405),
        ("GET", "/v2/models/other/stats", 404),
        ("GET", "/v2/models/demo/versions/0/stats", 404),
        ("GET", "/v2/models/demo/versions/0/config", 404),
        ("POST", "/v2/models/demo/config", 405),
        ("POST", "/v2/repository/models/demo/load", 404),
    ],
)
def test_other_requests_are_refused(client: Any, method: str, path: str, code: int) -> None:
    assert client.request(method, path).status_code == code
