"""The HTTP application: every endpoint, every refusal, and answers that are onnxruntime's own."""

import asyncio
import gzip
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.core.errors import ArtifactError
from lepton_ray.serve.endpoint import Limits, NoMeter, answer_golden_records
from lepton_ray.serve.front import Front

from .conftest import RECORD, build_http_app
from .test_listener import post

_MODEL = "/v2/models/demo"
_INFER = f"{_MODEL}/infer"


class _Counts:
    """A meter that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, list[str] | None]] = []

    def observe(
        self, protocol_name: str, code: int, seconds: Sequence[float], outputs: dict[str, NDArray[Any]] | None
    ) -> None:
        assert min(seconds) >= 0
        self.calls.append((protocol_name, code, None if outputs is None else outputs["label"].tolist()))


@pytest.fixture
def serve(call_app: Any) -> Callable[..., Any]:
    """``serve(folder, meter, **limits)`` returns a client of the package's application."""

    def start(folder: Path, meter: Any = None, **limits: int) -> Any:
        return call_app(build_http_app(Predictor(open_package(folder)), "demo", Limits(**limits), meter or NoMeter()))

    return start


@pytest.fixture
def client(serve: Callable[..., Any], mixed_package: Path) -> Any:
    return serve(mixed_package)


def _tensors(numbers: Any = None, categories: Any = None, rows: int = 2) -> dict[str, Any]:
    numbers = [[30, None], [60.5, 1e3]] if numbers is None else numbers
    categories = [["red", "S"], [None, "L"]] if categories is None else categories
    return {
        "inputs": [
            {"name": "numbers", "datatype": "FP64", "shape": [rows, 2], "data": numbers},
            {"name": "categories", "datatype": "BYTES", "shape": [rows, 2], "data": categories},
        ]
    }


def _with(index: int, **changes: Any) -> dict[str, Any]:
    body = _tensors()
    body["inputs"][index] |= changes
    return body


def test_server_and_model_say_what_they_are(client: Any, mixed_package: Path) -> None:
    version = open_package(mixed_package).version
    assert client.get("/v2").json()["name"] == "lepton_ray"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    expected = {
        "name": "demo",
        "versions": [version],
        "platform": "onnx_onnxruntime",
        "inputs": [
            {"name": "numbers", "datatype": "FP64", "shape": [-1, 2], "parameters": {"columns": ["age", "income"]}},
            {
                "name": "categories",
                "datatype": "BYTES",
                "shape": [-1, 2],
                "parameters": {"columns": ["colour", "size"]},
            },
        ],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [-1, 3],
                "parameters": {"columns": ["no", "maybe", "yes"]},
            },
        ],
    }
    for path in (_MODEL, f"{_MODEL}/versions/{version}"):
        assert client.get(path).json() == expected
        assert client.get(f"{path}/ready").json() == {"name": "demo", "ready": True}
        assert client.post(f"{path}/infer", json=_tensors()).json()["model_version"] == version


def _run_directly(folder: Path, numbers: Any, categories: Any) -> list[Any]:
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"numbers": np.array(numbers, float), "categories": np.array(categories, object)}
    label, probabilities = session.run(["label", "probabilities"], feeds)
    return [label.tolist(), probabilities]


@pytest.mark.parametrize("rows", [1, 2, 33, 1500])
def test_both_protocols_answer_as_onnxruntime_does(client: Any, mixed_package: Path, rows: int) -> None:
    rng = np.random.default_rng(rows)
    numbers = [[float(rng.uniform(0, 120)), None if i % 3 else float(rng.normal(1e3, 500))] for i in range(rows)]
    texts = [[str(rng.choice(["red", "blue", "süß", ""])), str(rng.choice(["S", "M", "L"]))] for _ in range(rows)]
    direct = [[age, math.nan if income is None else income] for age, income in numbers]
    label, probabilities = _run_directly(mixed_package, direct, texts)
    answer = client.post(_INFER, json=_tensors(numbers, texts, rows)).json()
    by_name = {tensor["name"]: tensor for tensor in answer["outputs"]}
    assert by_name["label"] == {"name": "label", "datatype": "BYTES", "shape": [rows], "data": label}
    assert (by_name["probabilities"]["datatype"], by_name["probabilities"]["shape"]) == ("FP32", [rows, 3])
    got = np.array(by_name["probabilities"]["data"]).reshape(rows, 3)
    assert np.abs(got - probabilities).max() < 1e-6
    records = [{"age": n[0], "income": n[1], "colour": t[0], "size": t[1]} for n, t in zip(numbers, texts, strict=True)]
    predictions = client.post("/predict", json=records).json()["predictions"]
    assert [p["label"] for p in predictions] == label
    assert [list(p["probabilities"]) for p in predictions] == [["no", "maybe", "yes"]] * rows
    assert np.abs(np.array([list(p["probabilities"].values()) for p in predictions]) - probabilities).max() < 1e-6


def test_data_may_be_nested_or_flat_and_numbers_of_any_type(client: Any) -> None:
    wanted = client.post(_INFER, json=_tensors()).json()
    for numbers in ([30, None, 60.5, 1000], [[30, None], [60.5, 1000]]):
        for categories in (["red", "S", None, "L"], [["red", "S"], ["", "L"]], [[" red ", "S"], ["NA", "L\n"]]):
            assert client.post(_INFER, json=_tensors(numbers, categories)).json() == wanted
    for datatype in ("FP32", "INT64", "UINT8", "FP16"):
        assert client.post(_INFER, json=_with(0, datatype=datatype)).json() == wanted


def test_outputs_are_selected_and_the_id_comes_back(client: Any) -> None:
    for names, expected in (
        (["label"], ["label"]),
        (["probabilities", "label"], ["label", "probabilities"]),
        ([], ["label", "probabilities"]),
    ):
        body = {**_tensors(), "id": "näme-1", "outputs": [{"name": name} for name in names], "parameters": {"a": 1}}
        answer = client.post(_INFER, json=body).json()
        assert [tensor["name"] for tensor in answer["outputs"]] == expected
        assert answer["id"] == "näme-1"
    assert "id" not in client.post(_INFER, json={**_tensors(), "id": 3}).json()


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ([], "the body must be an object with a list 'inputs'"),
        ({"inputs": {}}, "the body must be an object with a list 'inputs'"),
        ({"inputs": []}, "inputs must be numbers, categories, got none"),
        ({"inputs": [3]}, "inputs[0] must be an object with a name"),
        ({"inputs": [{"name": ["x"]}]}, "inputs[0] must be an object with a name"),
        ({"inputs": [{"name": "numbers"}] * 2}, "inputs[1].name must be given once, got 'numbers' again"),
        ({"inputs": [{"name": "x" * 10**5}]}, "inputs must be numbers, categories, got ['xxx"),
        (_with(0, datatype="BYTES"), "inputs.numbers.datatype must be FP64, got 'BYTES'"),
        (_with(0, datatype="BOOL"), "inputs.numbers.datatype must be FP64, got 'BOOL'"),
        (_with(0, datatype={"a": []}), "inputs.numbers.datatype must be FP64, got {'a': []}"),
        (_with(1, datatype=None), "inputs.categories.datatype must be BYTES, got None"),
        (_with(0, shape=None), "inputs.numbers.shape must be a list of whole numbers, got None"),
        (_with(0, shape=[2.0, 2]), "inputs.numbers.shape must be a list of whole numbers, got [2.0, 2]"),
        (_with(0, shape=[True, 2]), "inputs.numbers.shape must be a list of whole numbers, got [True, 2]"),
        (_with(0, shape=[-1, 2]), "inputs.numbers.shape must be a list of whole numbers, got [-1, 2]"),
        (_with(0, shape=[4]), "inputs.numbers.shape must be [-1, 2] with any first number, got [4]"),
        (_with(0, shape=[2, 3]), "inputs.numbers.shape must be [-1, 2] with any first number, got [2, 3]"),
        (_with(0, shape=[0, 2]), "inputs.numbers.shape must have 1 to 4096 rows, got 0"),
        (_with(0, shape=[2**63, 2]), "inputs.numbers.shape must have 1 to 4096 rows, got 9223372036854775808"),
        (_with(0, shape=[1, 2], data=[1, 2]), "inputs must have equally many rows, got 1, 2"),
        (_with(0, data="30"), "inputs.numbers.data must be a list, got '30'"),
        (_with(0, data=[1, 2, 3]), "inputs.numbers.data must have 4 values for the shape [2, 2], got 3"),
        (_with(0, data=[[1, 2, 3], [4]]), "inputs.numbers.data must have 2 values for the shape [2], got 3"),
        (_with(0, data=[[1], [2], [3], [4]]), "inputs.numbers.data must have 2 lists for the shape [2, 2], got 4"),
        (_with(0, data=[[1, 2], 3]), "inputs.numbers.data must be nested evenly, got 3 beside a list"),
        (_with(0, data=[[[1], [2]], [[3], [4]]]), "inputs.numbers.data[0] must be a number, got [1]"),
        (_with(0, data=[1, 2, 3, True]), "inputs.numbers.data[3] must be a number, got True"),
        (_with(0, data=[1, 2, 3, "4"]), "inputs.numbers.data[3] must be a number, got '4'"),
        (_with(1, data=["red", "S", "red", 3]), "inputs.categories.data[3] must be a text, got 3"),
        ({**_tensors(), "outputs": [{"name": "x"}]}, "outputs must be of label, probabilities, got 'x'"),
        ({**_tensors(), "outputs": "label"}, "outputs must be of label, probabilities, got None"),
        ({**_tensors(), "outputs": [["label"]]}, "outputs must be of label, probabilities, got None"),
    ],
)
def test_what_breaks_the_protocol_is_refused_with_400(client: Any, body: Any, rule: str) -> None:
    response = client.post(_INFER, json=body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(rule)
    assert len(response.content) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": -1}, "records[1].age must be at least 0, got -1.0"),
        ({"age": None}, "records[1].age must be given, got nan"),
        ({"size": "XL"}, "records[1].size must be one of S, M, L, got 'XL'"),
        ({"size": "NA"}, "records[1].size must be given, got nothing"),
    ],
)
def test_values_outside_their_rules_are_refused_with_422_by_both(
    client: Any, change: dict[str, Any], message: str
) -> None:
    record = {**RECORD, **change}
    numbers = [[30, 10], [record["age"], record["income"]]]
    body = _tensors(numbers, [["red", "S"], [record["colour"], record["size"]]])
    for response in (client.post("/predict", json=[RECORD, record]), client.post(_INFER, json=body)):
        assert (response.status_code, response.json()) == (422, {"error": message})


@pytest.mark.parametrize(
    ("body", "code", "rule"),
    [
        (b"", 400, "the body must be JSON"),
        (b"{", 400, "the body must be JSON"),
        (b"\xff\xfe", 400, "the body must be JSON"),
        (b'[{"age": NaN}]', 400, "the body must be JSON"),
        (b'[{"age": Infinity}]', 400, "the body must be JSON"),
        (b'[{"age": 1e999}]', 400, "the body must be JSON"),
        (b'[{"colour": "\\ud800"}]', 400, "the body must be JSON"),
        (b"[" * 100_000, 400, "the body must be JSON"),
        (b"null", 400, "the body must be a list of records"),
        (b'{"records": {}}', 400, "the body must be a list of records"),
        (b'{"records": [], "more": 1}', 400, "the body must be a list of records"),
        (b'{"records": []}', 400, "the body must have 1 to 3 records, got 0"),
        (b"[]", 400, "the body must have 1 to 3 records, got 0"),
        (b"[1,2,3,4]", 400, "the body must have 1 to 3 records, got 4"),
        (b"[1]", 422, "records[0] must be an object of fields, got 1"),
        (b'[{"age": 1, "size": "S", "x": 1}]', 422, "records[0].x must be a known field"),
        (b'[{"age": 1' + b"0" * 300 + b', "size": "S"}]', 422, "records[0].age must be at most 120"),
        (b'[{"age": ' + b"[" * 1000 + b"]" * 1000 + b"}]", 422, "records[0].age must be a number or null"),
        (b'[{"colour": ' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}]", 422, "records[0].colour must be a text"),
    ],
)
def test_wrong_bodies_of_predict(serve: Any, mixed_package: Path, body: bytes, code: int, rule: str) -> None:
    response = serve(mixed_package, max_rows=3).post("/predict", content=body)
    assert response.status_code == code
    assert response.json()["error"].startswith(rule)


@pytest.mark.parametrize(
    ("body", "way_out"),
    [
        (b"age,colour\n3,red\n", ", image/png, image/jpeg, multipart/form-data"),
        (b'{"age": 3}', ", got {'age': 3}. A single record is a list of one"),
        (b"[]", ", got 0. Send one"),
        (b"[1,2,3,4]", ", got 4. Split the request"),
    ],
)
def test_a_wrong_body_of_predict_is_told_what_would_be_right(
    serve: Any, mixed_package: Path, body: bytes, way_out: str
) -> None:
    assert serve(mixed_package, max_rows=3).post("/predict", content=body).json()["error"].endswith(way_out)


def test_a_packed_body_is_refused_and_counted(serve: Any, mixed_package: Path, listen: Any) -> None:
    """At both ways in, also behind the same head that the connection has seen before."""
    headers = {"content-encoding": "gzip"}
    answer = serve(mixed_package).post("/predict", content=gzip.compress(b'[{"age": 3, "size": "S"}]'), headers=headers)
    rule = "the body must come without content-encoding, got gzip. Send it as it is"
    assert (answer.status_code, answer.json()["error"], answer.headers["accept-encoding"]) == (415, rule, "identity")
    running = listen()
    client = running.connect()
    for _ in range(3):
        assert client.ask(post(b"\x1f\x8bxx", b"Content-Encoding: gzip")).code == 415
        assert client.ask(post(b"[{}]", b"Content-Encoding: Identity")).code == 422
    assert [code for _, code in running.meter.calls] == [415, 422] * 3


def test_jobs_that_are_off_say_so(client: Any) -> None:
    response = client.post("/jobs", json=[RECORD])
    assert (response.status_code, response.json()["error"][:17]) == (404, "jobs are off here")


@pytest.mark.parametrize("key", ["datatype", "shape", "data", "name"])
def test_deep_values_anywhere_are_refused(client: Any, key: str) -> None:
    deep = b"[" * 1000 + b"]" * 1000
    body = json.dumps(_with(0, **{key: "DEEP"})).encode().replace(b'"DEEP"', deep)
    assert client.post(_INFER, content=body).status_code == 400
    assert (
        client.post(_INFER, content=json.dumps(_tensors())[:-1].encode() + b', "outputs": ' + deep + b"}").status_code
        == 400
    )


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(50):
        yield b"x" * 100


def test_limits_hold(serve: Any, mixed_package: Path) -> None:
    client = serve(mixed_package, max_request_bytes=1000, max_rows=2)
    assert client.post("/predict", json=[RECORD] * 2).status_code == 200
    response = client.post("/predict", content=b"[" + b" " * 1000)
    assert (response.status_code, response.json()["error"][:35]) == (413, "the body must be at most 1000 bytes")
    assert client.post("/predict", content=_chunks()).status_code == 413
    assert client.post(_INFER, json=_tensors([[1, 1]] * 3, [["a", "S"]] * 3, 3)).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/docs/x", 404),
        ("POST", "/", 405),
        ("POST", "/docs", 405),
        ("POST", "/openapi.json", 405),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", f"{_MODEL}/versions/0/ready", 404),
        ("GET", f"{_MODEL}/versions/0", 404),
        ("POST", f"{_MODEL}/versions/0/infer", 404),
        ("GET", f"/v2/models/{'x' * 5000}", 404),
        ("GET", "/%ff%00/../../etc/passwd", 404),
        ("GET", "/predict", 405),
        ("GET", _INFER, 405),
        ("POST", _MODEL, 405),
        ("DELETE", "/v2", 405),
        ("PUT", "/predict", 405),
    ],
)
def test_other_paths_and_methods_are_refused(client: Any, method: str, path: str, code: int) -> None:
    response = client.request(method, path)
    assert response.status_code == code
    assert list(response.json()) == ["error"]
    assert ("allow" in response.headers) == (code == 405)
    assert len(response.content) < 500


def test_pictures_go_in_by_both_protocols(serve: Any, picture_package: Path) -> None:
    client = serve(picture_package)
    pixels = [[[[255], [0], [255]], [[0], [255], [0]]], [[[0], [9], [0]], [[9], [0], [9]]]]
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 3, 1], "data": pixels}
    flat = {**tensor, "data": np.ravel(pixels).tolist()}
    answers = [client.post(_INFER, json={"inputs": [item]}).json()["outputs"] for item in (tensor, flat)]
    assert answers[0] == answers[1]
    records = [{"picture": picture} for picture in pixels]
    predictions = client.post("/predict", json={"records": records}).json()["predictions"]
    assert [p["label"] for p in predictions] == answers[0][0]["data"] == ["odd", "even"]
    assert predictions[0]["probabilities"]["odd"] == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6)
    for bad in (256, -1, 1.5, None, "1"):
        item = {**flat, "data": [bad, *flat["data"][1:]]}
        assert client.post(_INFER, json={"inputs": [item]}).status_code == 400


def _raw(*parts: bytes, **header: Any) -> dict[str, Any]:
    text = json.dumps(header).encode()
    return {"content": b"".join([text, *parts]), "headers": {"Inference-Header-Content-Length": str(len(text))}}


def _raw_text(*texts: str) -> bytes:
    return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)


def _raw_tensor(name: str, datatype: str, shape: list[int], data: bytes, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(data)},
        **more,
    }


def test_raw_tensors_are_what_the_same_in_json_is(client: Any) -> None:
    """Missing is NaN, or an empty text."""
    wanted = client.post(_INFER, json=_tensors()).json()
    texts = _raw_text("red", "S", "", "L")
    categories = _raw_tensor("categories", "BYTES", [2, 2], texts)
    for dtype, datatype in (("<f8", "FP64"), ("<f4", "FP32"), ("<f2", "FP16")):
        numbers = np.array([[30, np.nan], [60.5, 1e3]], dtype).tobytes()
        inputs = [_raw_tensor("numbers", datatype, [2, 2], numbers), categories]
        answer = client.post(_INFER, **_raw(numbers, texts, inputs=inputs))
        assert answer.json() == wanted
        assert answer.headers["content-type"] == "application/json"
        swapped = client.post(_INFER, **_raw(texts, numbers, inputs=inputs[::-1]))
        assert swapped.json() == wanted
    mixed = [_tensors()["inputs"][0], categories]
    assert client.post(_INFER, **_raw(texts, inputs=mixed)).json() == wanted
    integers = np.array([[30, 5], [60, 1000]], "<i2").tobytes()
    inputs = [_raw_tensor("numbers", "INT16", [2, 2], integers), categories]
    expected = client.post(_INFER, json=_tensors([[30, 5], [60, 1000]])).json()
    assert client.post(_INFER, **_raw(integers, texts, inputs=inputs)).json() == expected


def test_a_signalling_nan_is_missing_too(client: Any) -> None:
    texts = _raw_text("red", "S")
    answers = []
    for dtype, datatype, missing in (
        ("<f8", "FP64", b"\0\0\0\0\0\0\xf8\x7f"),
        ("<f8", "FP64", b"\1\0\0\0\0\0\xf0\x7f"),
        ("<f4", "FP32", b"\1\0\x80\x7f"),
    ):
        numbers = np.array([30.0], dtype).tobytes() + missing
        inputs = [_raw_tensor("numbers", datatype, [1, 2], numbers), _raw_tensor("categories", "BYTES", [1, 2], texts)]
        answers.append(client.post(_INFER, **_raw(numbers, texts, inputs=inputs)))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json() == answers[1].json() == answers[2].json()


def test_outputs_go_raw_where_that_is_asked_for(client: Any, mixed_package: Path) -> None:
    _, expected = _run_directly(mixed_package, [[30, math.nan], [60.5, 1e3]], [["red", "S"], ["", "L"]])
    for more, raw in (
        ({"parameters": {"binary_data_output": True}}, ["label", "probabilities"]),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]}, ["probabilities"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "probabilities"}],
            },
            ["probabilities"],
        ),
    ):
        answer = client.post(_INFER, json={**_tensors(), **more})
        length = int(answer.headers["inference-header-content-length"])
        assert answer.headers["content-type"] == "application/octet-stream"
        rest = answer.content[length:]
        for tensor in json.loads(answer.content[:length])["outputs"]:
            assert ("data" in tensor) == (tensor["name"] not in raw)
            if tensor["name"] in raw:
                size = tensor["parameters"]["binary_data_size"]
                part, rest = rest[:size], rest[size:]
                if tensor["name"] == "label":
                    assert part == _raw_text(
                        *_run_directly(mixed_package, [[30, math.nan], [60.5, 1e3]], [["red", "S"], ["", "L"]])[0]
                    )
                else:
                    assert np.abs(np.frombuffer(part, "<f4").reshape(2, 3) - expected).max() < 1e-6
        assert rest == b""


def test_raw_pictures_go_in(serve: Any, picture_package: Path) -> None:
    client = serve(picture_package)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 2, 3, 1), np.uint8)
    inputs = [_raw_tensor("image", "UINT8", [5, 2, 3, 1], pixels.tobytes())]
    listed = {"name": "image", "datatype": "UINT8", "shape": [5, 2, 3, 1], "data": pixels.ravel().tolist()}
    raw = client.post(_INFER, **_raw(pixels.tobytes(), inputs=inputs)).json()
    assert raw == client.post(_INFER, json={"inputs": [listed]}).json()


_NUMBERS = np.array([[30, 1], [2, 3]], "<f8").tobytes()
_TEXTS = _raw_text("red", "S", "blue", "L")


@pytest.mark.parametrize(
    ("numbers", "texts", "change", "code", "rule"),
    [
        (_NUMBERS[:-1], _TEXTS, {}, 400, "inputs.numbers must have 32 bytes for its shape, got 31"),
        (_NUMBERS, _TEXTS[:-1], {}, 400, "inputs.categories must have 4 texts, each with its length, got 3 in 24"),
        (_NUMBERS, _TEXTS + b"\0", {}, 400, "inputs.categories must have 4 texts, each with its length, got 4 in 26"),
        (_NUMBERS, b"\xff" * 23, {}, 400, "inputs.categories must have 4 texts, each with its length, got 0 in 23"),
        (_NUMBERS, b"\x01\0\0\0\xff" * 4, {}, 400, "inputs.categories[0] must be UTF-8"),
        (_NUMBERS, _TEXTS, {"data": [1]}, 400, "inputs.'numbers'.parameters.binary_data_size must not stand beside"),
        (_NUMBERS, _TEXTS, {"datatype": "BOOL"}, 400, "inputs.numbers.datatype must be FP64"),
        (_NUMBERS, _TEXTS, {"shape": [2, 3]}, 400, "inputs.numbers.shape must be [-1, 2]"),
        (_NUMBERS, _TEXTS, {"parameters": {"binary_data_size": 99}}, 400, "inputs.'numbers'.parameters.binary_data_si"),
        (_NUMBERS, _TEXTS, {"parameters": {"binary_data_size": -1}}, 400, "inputs.'numbers'.parameters.binary_data_si"),
        (_NUMBERS, _TEXTS, {"parameters": {"binary_data_size": True}}, 400, "inputs.'numbers'.parameters.binary_data"),
        (_NUMBERS, _TEXTS, {"parameters": {}}, 400, "inputs must say the whole body in binary_data_size, got 32 bytes"),
        (np.array([[np.inf, 1], [2, 3]]).tobytes(), _TEXTS, {}, 422, "records[0].age must be"),
        (np.array([[np.nan, 1], [2, 3]]).tobytes(), _TEXTS, {}, 422, "records[0].age must be given"),
        (np.array([[121.0, 1], [2, 3]]).tobytes(), _TEXTS, {}, 422, "records[0].age must be at most 120"),
        (_NUMBERS, _raw_text("red", "XL", "", "S"), {}, 422, "records[0].size must be one of S, M, L"),
    ],
)
def test_raw_tensors_that_are_wrong_are_refused(
    client: Any, numbers: bytes, texts: bytes, change: dict[str, Any], code: int, rule: str
) -> None:
    inputs = [
        {**_raw_tensor("numbers", "FP64", [2, 2], numbers), **change},
        _raw_tensor("categories", "BYTES", [2, 2], texts),
    ]
    answer = client.post(_INFER, **_raw(numbers, texts, inputs=inputs))
    assert answer.status_code == code
    assert answer.json()["error"].startswith(rule)


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "9" * 40, "1.0", ""])
def test_a_wrong_length_of_the_json_is_refused(client: Any, length: str) -> None:
    body = json.dumps(_tensors()).encode()
    answer = client.post(_INFER, content=body, headers={"inference-header-content-length": length})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("inference-header-content-length must be from 0 to the length of the body")


def test_the_meter_is_told_of_every_request(serve: Any, mixed_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = _Counts()
    client = serve(mixed_package, meter)
    label = client.post("/predict", json=[RECORD]).json()["predictions"][0]["label"]
    client.post(_INFER, content=b"x")
    client.post("/predict", json=[{"age": "x"}])

    def fail(self: Predictor, feeds: Any) -> Any:
        raise RuntimeError(f"inside {mixed_package}")

    monkeypatch.setattr(Predictor, "run", fail)
    response = client.post("/predict", json=[RECORD])
    assert (response.status_code, response.json()) == (500, {"error": "the server failed; its log has the reason"})
    assert meter.calls == [
        ("records", 200, [label]),
        ("oip", 400, None),
        ("records", 422, None),
        ("records", 500, None),
    ]


def test_a_package_that_cannot_answer_its_golden_records_is_refused(
    mixed_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(open_package(mixed_package))
    answer_golden_records(predictor)
    monkeypatch.setattr(Predictor, "run", lambda self, feeds: 1 / 0)
    with pytest.raises(ArtifactError, match=r"must answer its golden records, got status 500: .*\. Export it again"):
        answer_golden_records(predictor)


def test_a_client_that_goes_away_is_no_failure_of_the_server(
    mixed_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meter = _Counts()
    app = build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(), meter)
    messages = iter([{"type": "http.request", "body": b"[{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert meter.calls == [("records", 400, None)]
    assert caplog.records == []


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_the_limit(mixed_package: Path) -> None:
    meter = _Counts()
    app = build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(receive_s=0.05), meter)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def stall(parts: list[bytes]) -> None:
        """Send the parts of a body, and no end."""
        left = iter(parts)

        async def receive() -> Any:
            for part in left:
                return {"type": "http.request", "body": part, "more_body": True}
            return await asyncio.Event().wait()

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
        await app(scope, receive, send)

    for parts in ([], [b"[{"], [b"[{", b'"age"']):
        sent.clear()
        asyncio.run(asyncio.wait_for(stall(parts), 20))
        start, body = sent
        assert (start["status"], dict(start["headers"])[b"connection"]) == (408, b"close")
        assert json.loads(body["body"]) == {"error": "the body must come within 0.05 s"}
    assert meter.calls == [("records", 408, None)] * 3


def test_a_body_that_drips_is_not_given_more_time_by_each_drop(mixed_package: Path) -> None:
    app = build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(receive_s=0.1), NoMeter())
    codes: list[int] = []

    async def receive() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        codes.append(message.get("status", 0))

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 20))
    assert codes == [408, 0]


def test_the_time_of_the_model_is_none_of_the_body(mixed_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for its answer is not cut off."""
    app = build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(receive_s=0.05), NoMeter())
    codes: list[int] = []
    parts = iter([{"type": "http.request", "body": json.dumps([RECORD]).encode()}])
    answer = Front.answer

    async def answer_late(front: Front, call: Any) -> Any:
        await asyncio.sleep(0.2)
        return await answer(front, call)

    monkeypatch.setattr(Front, "answer", answer_late)

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        codes.append(message.get("status", 0))

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert codes == [200, 0]
