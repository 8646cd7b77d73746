"""The OpenAPI document and the page: valid, true to what is answered, and closed to what is not theirs."""

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve.endpoint import Limits, NoMeter
from lepton_ray.serve.guard import Guard
from lepton_ray.serve.openapi import describe, describe_column
from lepton_ray.serve.tokens import create_token, read_tokens
from lepton_ray.spec.data import DataSpec, ImageColumn

from .conftest import RECORD, build_http_app

_COLUMNS = {
    "number": {"kind": "number", "min": 0, "required": True},
    "whole": {"kind": "number", "whole": True, "max": 5},
    "category": "category",
    "choice": {"kind": "category", "allowed": ["a", "b"]},
    "spelled": {"kind": "category", "allowed": ["a", "b"], "normalise": ["lower"]},
    "text": {"kind": "text", "max_length": 9},
    "iso": {"kind": "time", "min": "2024-01-01", "required": True},
    "epoch": {"kind": "time", "format": "epoch_ms"},
    "series": {"kind": "series", "length": 2},
    "picture": {"kind": "image", "height": 2, "width": 3, "channels": 1},
    "y": "category",
}
_DATA = DataSpec.model_validate(
    {"source": {"kind": "parquet", "uri": "unused.parquet"}, "columns": _COLUMNS, "label": "y"}
)
_CLASSES = {
    "classification": ("no", "yes"),
    "multi_label": ("a", "b"),
    "regression": (),
    "anomaly_detection": (),
}


@pytest.fixture
def serve(call_app: Any) -> Callable[..., Any]:
    def start(folder: Path, guard: Guard | None = None) -> Any:
        return call_app(build_http_app(Predictor(open_package(folder)), "demo", Limits(max_rows=3), NoMeter(), guard))

    return start


def _check(document: dict[str, Any], name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("task", _CLASSES)
def test_the_document_of_every_task_and_kind_is_valid(task: Any) -> None:
    document = describe("demo", "1", Signature.of(_DATA, Target(task=task, classes=_CLASSES[task])), 9, True)
    validate(document)  # type: ignore[arg-type]
    bodies = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"application/json", "text/csv", "image/png", "multipart/form-data"} <= bodies.keys()
    assert document["components"]["schemas"]["Record"]["required"] == ["number", "iso", "picture"]


def test_answers_and_records_are_of_their_schemas(serve: Callable[..., Any], mixed_package: Path) -> None:
    client = serve(mixed_package)
    document = client.get("/openapi.json").json()
    validate(document)
    for record in (RECORD, {"age": 1, "size": "M"}, {"age": 1.5, "size": "M", "income": None, "outcome": "any"}):
        _check(document, "Record", record)
        assert client.post("/predict", json=[record]).status_code == 200
    for record in (
        {},
        {**RECORD, "age": -1},
        {**RECORD, "age": None},
        {**RECORD, "size": "XL"},
        {**RECORD, "x": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            _check(document, "Record", record)
        assert client.post("/predict", json=[record]).status_code == 422
    _check(document, "Predictions", client.post("/predict", json=[RECORD] * 3).json())
    _check(document, "Error", client.post("/predict", json=[]).json())
    with pytest.raises(jsonschema.ValidationError):
        _check(document, "Records", [RECORD] * 4)


def test_every_path_of_the_document_is_there(serve: Callable[..., Any], mixed_package: Path) -> None:
    client = serve(mixed_package)
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            code = client.request(method.upper(), path, json={}).status_code
            assert code == (400 if path.endswith(("predict", "infer")) else 200), path


def test_an_image_is_a_file_or_its_pixels() -> None:
    schema = describe_column(ImageColumn(kind="image", height=1, width=2, channels=1))
    for value in ({"b64": "QQ=="}, [[[0], [255]]]):
        jsonschema.validate(value, schema)
    for wrong in ([[[0]]], [[[0], [256]]], {"b64": 1}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_may_run_what_it_has_and_nothing_else(
    serve: Callable[..., Any], mixed_package: Path, path: str
) -> None:
    answer = serve(mixed_package).get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    for pattern in ("https?://", "innerHTML", "insertAdjacentHTML", "document.write", " style=", r" on\w+="):
        assert re.search(pattern, answer.text) is None, pattern


def test_the_page_is_open_and_the_document_needs_a_token(
    serve: Callable[..., Any], mixed_package: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    tokens = {scope: create_token(file, scope, [scope], None, None) for scope in ("metadata", "predict")}
    guard = Guard()
    guard.use(read_tokens(file))
    client = serve(mixed_package, guard)
    page = client.get("/")
    assert page.status_code == 200
    for word in ("demo", "colour", "income", "maybe"):
        assert word not in page.text
    codes = {None: 401, "predict": 403, "metadata": 200}
    for scope, code in codes.items():
        headers = {} if scope is None else {"authorization": f"Bearer {tokens[scope]}"}
        assert client.request("GET", "/openapi.json", headers=headers).status_code == code
