"""Any JSON at both endpoints: never a 500, and every refusal is {"error": text} without a word on the inside."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve.bodies import accepted_form, reader_of
from lepton_ray.serve.endpoint import Limits, NoMeter

from .conftest import build_http_app

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["red", "S", "FP64", "BYTES", "label", "", "NA", "\0"])
)
_ANY = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(["age", "income", "colour", "size", "record", "outcome", "x"])
_RECORDS = st.lists(st.dictionaries(_FIELDS, _SCALARS, max_size=5) | _ANY, max_size=3)
_TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["numbers", "categories"]) | _ANY,
        "datatype": st.sampled_from(["FP64", "BYTES", "INT32"]) | _ANY,
        "shape": st.sampled_from([[1, 2], [2, 2], [4]]) | st.lists(st.integers(-1, 2**63), max_size=3) | _ANY,
        "data": st.lists(_SCALARS, min_size=2, max_size=4)
        | st.lists(st.lists(_SCALARS, max_size=2), max_size=2)
        | _ANY,
    },
)
_INFER_BODY = st.fixed_dictionaries(
    {"inputs": st.lists(_TENSOR, max_size=3) | _ANY}, optional={"id": _ANY, "outputs": _ANY, "parameters": _ANY}
)


@pytest.fixture(scope="module")
def client(call_app: Any, _sealed: Path) -> Any:
    predictor = Predictor(open_package(_sealed / "mixed"))
    return call_app(build_http_app(predictor, "demo", Limits(max_rows=3), NoMeter()))


def _check(client: Any, path: str, body: bytes, content_type: str = "application/json") -> None:
    response = client.post(path, content=body, headers={"content-type": content_type})
    assert response.status_code in (200, 400, 422)
    answer = orjson.loads(response.content)
    if response.status_code != 200:
        assert list(answer) == ["error"]
        assert isinstance(answer["error"], str)
        for inside in ("Traceback", "lepton_ray", ".py", "site-packages", "onnx"):
            assert inside not in answer["error"]


@settings(max_examples=100, deadline=None)
@given(_ANY | _RECORDS | st.builds(lambda records: {"records": records}, _RECORDS))
def test_any_json_at_predict(client: Any, body: Any) -> None:
    _check(client, "/predict", orjson.dumps(body))


@settings(max_examples=100, deadline=None)
@given(_INFER_BODY | _ANY)
def test_any_json_at_infer(client: Any, body: Any) -> None:
    _check(client, "/v2/models/demo/infer", orjson.dumps(body))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.sampled_from(["/predict", "/v2/models/demo/infer"]))
def test_any_bytes(client: Any, body: bytes, path: str) -> None:
    _check(client, path, body)


_TYPES = ("text/csv", "application/vnd.apache.arrow.stream", "image/png", "multipart/form-data; boundary=B")
_PIECES = st.sampled_from(
    [
        b"age",
        b"size",
        b"colour",
        b"1",
        b"S",
        b",",
        b"\n",
        b'"',
        b"\xff",
        b"--B",
        b"\r\n",
        b"--",
        b"\xff\xff\xff\xff",
        b"\0",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.lists(_PIECES, max_size=20).map(b"".join), st.sampled_from(_TYPES))
def test_any_bytes_of_other_forms(client: Any, body: bytes, content_type: str) -> None:
    _check(client, "/predict", body, content_type)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30), st.binary(max_size=30))
def test_any_headers(content_type: bytes, accept: bytes) -> None:
    reader_of(content_type)
    accepted_form(accept)
