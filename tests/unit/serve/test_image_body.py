"""Image files at ``POST /predict``: pixels as in training, whichever way they come, and nothing decoded that is of another size."""

import base64
import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_ray.artifacts import records as records_module
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.pixels import decode_image
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve.endpoint import Limits, NoMeter
from lepton_ray.serve.image_body import read_form
from lepton_ray.serve.protocol import ProtocolError
from lepton_ray.spec.data import DataSpec, ImageColumn

from .conftest import build_http_app

_PIXELS = np.array([[255, 0, 200], [3, 255, 0]], np.uint8)
_COLUMNS = {"picture": {"kind": "image", "height": 2, "width": 3, "channels": 1}, "age": "number", "y": "category"}
_SIGNATURE = Signature.of(
    DataSpec.model_validate(
        {"source": {"kind": "parquet", "uri": "unused.parquet"}, "columns": _COLUMNS, "label": "y"}
    ),
    None,
)


def _encode(pixels: Any, file_format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, file_format, **options)
    return sink.getvalue()


_PNG, _JPEG, _TURNED = _encode(_PIXELS), _encode(_PIXELS, "JPEG", quality=95), _encode(255 - _PIXELS)


@pytest.fixture
def serve(call_app: Any, picture_package: Path) -> Callable[..., Any]:
    def start(**limits: int) -> Any:
        return call_app(build_http_app(Predictor(open_package(picture_package)), "demo", Limits(**limits), NoMeter()))

    return start


def _post(client: Any, body: bytes, content_type: str) -> Any:
    return client.post("/predict", content=body, headers={"content-type": content_type})


def _of_pixels(client: Any, *files: bytes) -> Any:
    column = ImageColumn(kind="image", height=2, width=3, channels=1)
    pixels = [np.frombuffer(decode_image(file, column), np.uint8).reshape(2, 3, 1).tolist() for file in files]
    return client.post("/predict", json=[{"picture": each} for each in pixels]).json()


@pytest.mark.parametrize(("content_type", "file"), [("image/png", _PNG), ("image/jpeg", _JPEG), ("image/png", _JPEG)])
def test_a_file_is_answered_as_its_pixels_are(serve: Callable[..., Any], content_type: str, file: bytes) -> None:
    client = serve()
    answer = _post(client, file, content_type)
    assert (answer.status_code, answer.json()) == (200, _of_pixels(client, file))


def test_files_in_a_form_in_base64_and_in_tables_are_answered_alike(serve: Callable[..., Any]) -> None:
    client = serve()
    wanted = _of_pixels(client, _PNG, _TURNED)
    files = [("picture", ("a.png", file, "image/png")) for file in (_PNG, _TURNED)]
    assert client.post("/predict", files=files).json() == wanted
    texts = [{"picture": {"b64": base64.b64encode(file).decode()}} for file in (_PNG, _TURNED)]
    assert client.post("/predict", json=texts).json() == wanted
    table = pa.table({"picture": [_PNG, _TURNED]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert _post(client, sink.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream").json() == wanted


def _bomb() -> bytes:
    """A PNG that says it has 30000 x 30000 pixels."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (_encode(np.zeros((3, 2), np.uint8)), "records[0].picture must be 3x2 pixels, got 2x3"),
        (_bomb(), "records[0].picture must be an image file that can be read"),
        (b"", "records[0].picture must be an image file that can be read: 0 bytes that begin as no PNG or JPEG does"),
        (
            b"x" * 6,
            "records[0].picture must be an image file that can be read: 6 bytes that begin as no PNG or JPEG does",
        ),
        (_PNG[:-30], "records[0].picture must be an image file that can be read: image file is truncated"),
        (_encode(_PIXELS, "BMP"), "records[0].picture must be an image file that can be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_file_that_is_none_or_of_another_size_is_refused_with_422(
    serve: Callable[..., Any], file: bytes, message: str
) -> None:
    client = serve()
    text = base64.b64encode(file).decode()
    for answer in (_post(client, file, "image/png"), client.post("/predict", json=[{"picture": {"b64": text}}])):
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(message)


@pytest.mark.parametrize("value", [{}, {"b64": 1}, {"b64": "!"}, {"b64": "é"}, {"b64": "QQ"}, {"b64": "", "x": 1}])
def test_what_is_no_base64_is_refused(serve: Callable[..., Any], value: Any) -> None:
    answer = serve().post("/predict", content=orjson.dumps([{"picture": value}]))
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("records[0].picture must be ")


def test_the_pixels_of_all_files_are_bounded(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_DECODED_BYTES", 12)
    client = serve()
    text = {"picture": {"b64": base64.b64encode(_PNG).decode()}}
    assert client.post("/predict", json=[text] * 2).status_code == 200
    answer = client.post("/predict", json=[text] * 3)
    rule = "records[2].picture must be an image file in at most 2 records at once, got 3. Split the request"
    assert (answer.status_code, answer.json()["error"]) == (422, rule)


def test_a_model_without_images_takes_none(call_app: Any, mixed_package: Path) -> None:
    client = call_app(build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(), NoMeter()))
    answer = _post(client, _PNG, "image/png")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the model must have an image among its columns")


def _form(*parts: tuple[str, bytes], end: str = "--") -> bytes:
    return b"".join(b"--B\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + (
        f"--B{end}\r\n".encode()
    )


_FILE = 'Content-Disposition: form-data; name="picture"; filename="a.png"\r\nContent-Type: image/png'
_AGE = 'content-disposition: form-data; name="age"'


def _read(body: bytes, max_rows: int = 3, content_type: bytes = b"multipart/form-data; boundary=B") -> Any:
    return read_form(body, _SIGNATURE, max_rows, content_type)


def test_fields_of_a_form_are_columns_of_one_record_or_all() -> None:
    content = b"\r\n--Bx\r\n--"[:3] + b"\0"
    assert _read(_form((_FILE, content))) == [{"picture": content}]
    assert _read(_form((_FILE, b"1"), (_FILE, b""), (_AGE, b"7"))) == [
        {"picture": b"1", "age": "7"},
        {"picture": b"", "age": "7"},
    ]
    two = _form((_AGE, b"7"), (_FILE, b"1"), (_AGE, "ü".encode()), (_FILE, b"2"))
    assert _read(two) == [{"picture": b"1", "age": "7"}, {"picture": b"2", "age": "ü"}]
    assert _read(_form((_FILE, b"1")), content_type=b'multipart/form-data; charset=x; BOUNDARY="B"')


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the form must be whole"),
        (_form((_FILE, b"1"), end=""), "the form must be whole"),
        (_form(), "the form must have a file with the name 'picture', got none"),
        (_form((_AGE, b"7")), "the form must have a file with the name 'picture', got none"),
        (_form((_FILE, b"1"), (_FILE, b"2"), (_FILE, b"3"), (_FILE, b"4")), "the body must have 1 to 3 records"),
        (_form(*[(_FILE, b"1")] * 3, *[(_AGE, b"1")] * 2), "'age' must stand once in the form, or 3 times, got 2"),
        (
            _form((_FILE.replace("picture", "age"), b"1")),
            "the files of the form must have the name 'picture', got 'age'",
        ),
        (_form((_AGE.replace("age", "picture"), b"1")), "'picture' must be a file of the form, with a filename"),
        (_form((_FILE, b"1"), (_AGE, b"\xff")), "'age' must be UTF-8 in the form"),
        (_form(("x: y", b"1")), "each part of the form must have the header content-disposition"),
        (_form((_FILE + "\r\nx: " + "y" * 5000, b"1")), "each part of the form must have a head"),
        (b"--Bx\r\n" + _FILE.encode() + b"\r\n\r\n1\r\n--B--", "each part of the form must have a head"),
        (b"--B\r\nx\r\n--B--", "each part of the form must have a head"),
    ],
)
def test_other_forms_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        _read(body)
    assert str(refused.value).startswith(message)


def test_fields_for_all_files_are_bounded() -> None:
    """Each record has them for its own."""
    files, field = [(_FILE, b"1")] * 65, 'content-disposition: form-data; name="%s"'
    with pytest.raises(ProtocolError, match="must give at most 67108864 bytes"):
        _read(_form(*files, (_AGE, b"7" * (2 << 20))), 65)
    assert len(_read(_form(*files, (_AGE, b"7" * (1 << 20))), 65)) == 65
    with pytest.raises(ProtocolError, match="got more than those 3"):
        _read(_form(*files, *((field % number, b"") for number in range(100))), 65)
    assert "unknown" in _read(_form(*files, (field % "unknown", b"")), 65)[0]


@pytest.mark.parametrize("content_type", [b"multipart/form-data", b"multipart/form-data; boundary=", b""])
def test_a_form_without_a_boundary_is_refused(content_type: bytes) -> None:
    with pytest.raises(ProtocolError, match="content-type must name the boundary"):
        _read(_form((_FILE, b"1")), content_type=content_type)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"--B", b"\r\n", b"--", _FILE.encode(), _AGE.encode(), b"\xff", b"x"]), max_size=14))
def test_any_form_is_refused_or_read(parts: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError):
        assert 1 <= len(_read(b"".join(parts))) <= 3
