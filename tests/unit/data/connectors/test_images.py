"""Image files: pixels come back, other formats keep their brightness, and what is no image is refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_ray.artifacts.pixels import decode_image, read_pixels
from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors import open_connector
from lepton_ray.spec.data import DataSpec, ImageColumn
from lepton_ray.testing.connector_suite import read_all

PROPERTY = settings(max_examples=100, deadline=None)
GREY = np.array([[0, 1, 2], [253, 254, 255]], np.uint8)


def encode(pixels: Any, file_format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(sink, file_format, **options)
    return sink.getvalue()


def decode(content: bytes, height: int = 2, width: int = 3, channels: int = 1) -> Any:
    column = ImageColumn(kind="image", height=height, width=width, channels=channels)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.frombuffer(decode_image(content, column), np.uint8).reshape(shape).tolist()


def test_pixels_come_back() -> None:
    assert decode(encode(GREY)) == GREY.tolist()
    colour = np.stack([GREY, GREY.T.reshape(2, 3), 255 - GREY], axis=2)
    assert decode(encode(colour), channels=3) == colour.tolist()
    assert decode(encode(GREY), channels=3) == np.repeat(GREY[:, :, None], 3, 2).tolist()


def test_other_pixel_formats_keep_their_brightness() -> None:
    wide = GREY.astype(np.uint16) * 257  # 0..65535
    assert decode(encode(wide)) == GREY.tolist()
    assert decode(encode(wide), channels=3) == np.repeat(GREY[:, :, None], 3, 2).tolist()
    assert decode(encode(wide, "TIFF")) == GREY.tolist()
    assert decode(encode(Image.fromarray(GREY > 2))) == np.where(GREY > 2, 255, 0).tolist()
    transparent = np.dstack([GREY, GREY, GREY, 255 - GREY])
    assert decode(encode(transparent), channels=3) == transparent[..., :3].tolist()
    palette = Image.fromarray(GREY).convert("P")
    assert decode(encode(palette, transparency=bytes([0, 9, 200]))) == GREY.tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="8 or 16 bits"):
        decode(encode(GREY.astype(dtype), "TIFF"))


def _png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "image file"),
        (b"GIF89a", "image file"),
        (b"no image at all", "image file"),
        (encode(GREY.T), "3x2 pixels, got 2x3"),
        (encode(GREY)[:-28], "image file"),
        (_png_header(3, 2), "image file"),
        (_png_header(10_000, 10_000), "pixels|image file"),
        (_png_header(2**31 - 1, 2**31 - 1), "image file"),
    ],
    ids=["empty", "stub", "text", "size", "truncated", "header", "large", "bomb"],
)
def test_what_is_no_image_of_the_right_size_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(content)


PICTURES = [encode(GREY, name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:Image size:Warning")  # Pillow's word on damages
@PROPERTY
@given(
    st.sampled_from(PICTURES),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    st.floats(0.2, 1),
)
def test_damaged_images_are_refused_or_have_the_right_size(
    picture: bytes, changes: list[tuple[float, int]], length: float
) -> None:
    content = bytearray(picture)
    for place, value in changes:
        content[int(place * len(content))] = value
    try:
        pixels = decode(bytes(content[: int(length * len(content)) + 1]))
    except ValueError:
        return
    assert np.shape(pixels) == (2, 3)


def section(folder: Path, label: str | None = "y") -> DataSpec:
    columns = {"image": {"kind": "image", "height": 2, "width": 3, "channels": 1}, "y": "category"}
    return DataSpec.model_validate(
        {"source": {"kind": "image_folder", "uri": str(folder)}, "columns": columns, "label": label}
    )


def test_an_image_that_cannot_be_opened_is_no_bad_record(tmp_path: Path) -> None:
    """It may be there again the next time: the run stops, nothing is quarantined."""
    (tmp_path / "gone.png").write_bytes(encode(GREY))
    connector = open_connector(section(tmp_path))
    parts = connector.parts()
    (tmp_path / "gone.png").unlink()
    with pytest.raises(DataError, match=r"gone\.png"):
        list(connector.read(parts[0]))


def test_bad_files_are_told_apart(tmp_path: Path) -> None:
    files = {"cat/1.png": encode(GREY), "dog/2.png": b"x", "3.png": encode(GREY.T), "dog/4.png": encode(255 - GREY)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    read = read_all(section(tmp_path), open_connector(section(tmp_path)))
    removed = {record["_source"].removeprefix(f"{tmp_path}/"): record for record in read.removed}
    assert {name: record["_reason"] for name, record in removed.items()} == dict.fromkeys(
        ["dog/2.png", "3.png"], "unreadable_image"
    )
    assert removed["dog/2.png"]["_text"].endswith("dog/2.png")
    assert [(row["y"], row["image"]) for row in read.rows] == [
        ("cat", GREY.tobytes()),
        ("dog", (255 - GREY).tobytes()),
    ]


def test_pictures_alone_need_no_label(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encode(GREY))
    columns = {"image": {"kind": "image", "height": 2, "width": 3, "channels": 1}}
    data = section(tmp_path).model_copy(
        update={"columns": {"image": ImageColumn.model_validate(columns["image"])}, "label": None}
    )
    assert [row["image"] for row in read_all(data, open_connector(data)).rows] == [GREY.tobytes()]


@pytest.mark.parametrize("error", [TypeError("x"), IndexError("x"), KeyError("x"), EOFError("x"), struct.error("x")])
def test_whatever_pillow_says_of_a_damaged_file_is_one_fault(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(file: Any, formats: Any) -> Any:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    column = ImageColumn(kind="image", height=2, width=2)
    with pytest.raises(ValueError, match=rf"must be an image file that can be read: {type(error).__name__}"):
        read_pixels(b"junk", column)


def test_a_file_of_another_kind_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="bytes that begin as no PNG or JPEG"):
        decode_image(content, ImageColumn(kind="image", height=8, width=8, channels=3))
    assert not (tmp_path / "ran").exists()


def test_a_jpeg_of_very_many_scans_is_not_decoded() -> None:
    content = b"\xff\xd8" + b"\xff\xda" * 101
    with pytest.raises(ValueError, match="a JPEG of at most 100 scans, got 101"):
        decode_image(content, ImageColumn(kind="image", height=8, width=8, channels=3))
