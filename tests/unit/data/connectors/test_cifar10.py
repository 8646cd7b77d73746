"""The original binary files of CIFAR-10: the suite, exact pixels, and folders that are not what they should be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors import open_connector
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import Cifar10Source
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

FILES = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ROWS = 7  # of each file


def content(number: int, rows: int = ROWS) -> bytes:
    """A file of records with random pixels; the labels are those of their rows, counted on over the files."""
    pixels = np.random.default_rng(number).integers(0, 256, (rows, 3072), np.uint8)
    labels = (np.arange(rows) + number * rows) % 10
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels.tolist(), pixels, strict=True))


def write(folder: Path, names: str | None = "\n".join([*NAMES, ""])) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(FILES):
        (folder / name).write_bytes(content(number))
    if names is not None:
        (folder / "batches.meta.txt").write_text(names)


def section(folder: Path | str, **options: Any) -> DataSpec:
    columns = {"image": {"kind": "image", "height": 32, "width": 32, "channels": 3}, "label": "category"}
    source = {"kind": "cifar10", "uri": str(folder), **options}
    return DataSpec.model_validate({"source": source, "columns": columns, "label": "label"})


def rows_of(data: bytes, names: list[str] = NAMES) -> list[dict[str, Any]]:
    """The rows of a file, pixel by pixel as the format's description says."""
    rows = []
    for at in range(0, len(data), 3073):
        label, planes = data[at], data[at + 1 : at + 3073]
        red, green, blue = planes[:1024], planes[1024:2048], planes[2048:]
        pixels = bytes(value for pixel in zip(red, green, blue, strict=True) for value in pixel)
        rows.append({"image": pixels, "label": names[label]})
    return rows


class TestCifar10(ConnectorSuite):
    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSpec:
        write(tmp_path)
        damaged = bytearray(content(0))
        damaged[2 * 3073] = 10
        damaged[6 * 3073] = 255
        (tmp_path / FILES[0]).write_bytes(damaged)
        (tmp_path / "readme.html").write_text("not read")
        return section(tmp_path)

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        rows = [row for number in range(6) for row in rows_of(content(number))]
        return [row for index, row in enumerate(rows) if index not in (2, 6)]

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"not_allowed": 2}

    @pytest.fixture
    def recuts(self, cut_small: Callable[[int, int], Callable[[], None]]) -> list[Callable[[], None]]:
        return [cut_small(1, 1), cut_small(2 * 3073, 2 * 3073), cut_small(3 * 3073 + 5, 3072), cut_small(1 << 20, 9999)]

    @pytest.fixture
    def broken(self, tmp_path: Path) -> DataSpec:
        return section(tmp_path / "gone")


def test_places_are_files_and_numbers_of_records(tmp_path: Path) -> None:
    write(tmp_path)
    damaged = bytearray(content(5))
    damaged[4 * 3073] = 17
    (tmp_path / "test_batch.bin").write_bytes(damaged)
    data = section(tmp_path)
    read = read_all(data, open_connector(data))
    places = [(row["_source"], row["_line"]) for row in read.rows]
    whole = [(str(tmp_path / name), line) for name in FILES for line in range(1, ROWS + 1)]
    bad = (str(tmp_path / "test_batch.bin"), 5)
    assert places == [place for place in whole if place != bad]
    (removed,) = read.removed
    assert (removed["_source"], removed["_line"], removed["_reason"]) == (*bad, "not_allowed")
    assert removed["_detail"] == "label must be 0 to 9, got 17"


def test_pixels_are_those_of_a_reshape(tmp_path: Path) -> None:
    write(tmp_path)
    data = section(tmp_path, files=["data_batch_2.bin"])
    images = [
        np.frombuffer(row["image"], np.uint8).reshape(32, 32, 3) for row in read_all(data, open_connector(data)).rows
    ]
    raw = np.frombuffer(content(1), np.uint8).reshape(ROWS, 3073)
    for image, record in zip(images, raw, strict=True):
        np.testing.assert_array_equal(
            image, np.dstack([record[1 + c * 1024 :][:1024].reshape(32, 32) for c in range(3)])
        )


def test_large_files_are_cut_and_blocks_bounded(
    tmp_path: Path, cut_small: Callable[[int, int], Callable[[], None]]
) -> None:
    write(tmp_path)
    cut_small(2 * 3073, 3073)()
    connector = open_connector(section(tmp_path))
    parts = connector.parts()
    assert len(parts) == 6 * 4
    assert {block.cells.num_rows for part in parts for block in connector.read(part)} == {1}


@pytest.mark.parametrize("names", [None, "\n".join(NAMES), "\r\n".join([*NAMES, "", ""])])
def test_classes_have_their_usual_names(tmp_path: Path, names: str | None) -> None:
    write(tmp_path, names)
    rows = read_all(section(tmp_path), open_connector(section(tmp_path))).rows
    assert [row["label"] for row in rows[:10]] == NAMES


def test_classes_are_named_by_the_file_of_names_which_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, None)
    before = open_connector(section(tmp_path)).fingerprint()
    own = [f"class {n}" for n in range(10)]
    (tmp_path / "batches.meta.txt").write_text("\n".join(own))
    connector = open_connector(section(tmp_path))
    assert [row["label"] for row in read_all(section(tmp_path), connector).rows[:10]] == own
    assert connector.fingerprint() != before
    assert json.dumps(connector.fingerprint()).count("batches.meta.txt") == 1


@pytest.mark.parametrize("names", ["one\ntwo\n", "\n".join(["same"] * 10), ""])
def test_another_number_of_names_is_an_error(tmp_path: Path, names: str) -> None:
    write(tmp_path, names)
    with pytest.raises(
        DataError, match=r"batches\.meta\.txt must hold 10 names of classes, one a line, got \d\. Repair"
    ):
        read_all(section(tmp_path), open_connector(section(tmp_path)))


@pytest.mark.parametrize("size", [0, 1, 3072, 3 * 3073 - 1, 3 * 3073 + 1])
def test_half_a_record_is_an_error_before_anything_is_read(tmp_path: Path, size: int) -> None:
    write(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(
        DataError, match=rf"data_batch_3\.bin must hold whole records of 3073 bytes, got {size} bytes\. "
    ):
        open_connector(section(tmp_path)).parts()


def test_a_file_that_becomes_shorter_is_an_error(
    tmp_path: Path, cut_small: Callable[[int, int], Callable[[], None]]
) -> None:
    write(tmp_path)
    cut_small(2 * 3073, 3073)()
    connector = open_connector(section(tmp_path))
    parts = connector.parts()
    (tmp_path / "test_batch.bin").write_bytes(content(5)[: 4 * 3073])
    with pytest.raises(DataError, match=r"test_batch\.bin must stay as it is while it is read"):
        list(connector.read(parts[-1]))


def test_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_2\.bin, test_batch\.bin\. Put them there, or name those"):
        open_connector(section(tmp_path)).parts()
    data = section(tmp_path, files=["data_batch_5.bin", "data_batch_1.bin"])
    rows = read_all(data, open_connector(data)).rows
    assert [Path(row["_source"]).name for row in rows] == ["data_batch_1.bin"] * ROWS + ["data_batch_5.bin"] * ROWS


def test_the_folder_above_is_told_where_the_files_are(tmp_path: Path) -> None:
    write(tmp_path / "cifar-10-batches-bin")
    with pytest.raises(DataError, match=r"which lies in cifar-10-batches-bin below it\. Name that folder"):
        open_connector(section(tmp_path)).parts()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"data\.source\.uri must name the folder of the original binary files"):
        open_connector(section(tmp_path / "test_batch.bin")).parts()


def test_it_reads_through_a_filesystem_of_fsspec(tmp_path: Path) -> None:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    for number, name in enumerate(FILES):
        filesystem.pipe_file(f"/cifar-test/{name}", content(number))
    try:
        data = section("memory://cifar-test")
        read = read_all(data, open_connector(data))
        got = [{name: row[name] for name in ("image", "label")} for row in read.rows]
        assert got == [row for number in range(6) for row in rows_of(content(number))]
    finally:
        filesystem.rm("/cifar-test", recursive=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "at least 1 item"),
        (["other.bin"], "data_batch_1.bin"),
        (["test_batch.bin", "test_batch.bin"], "files must name each file once, got 'test_batch.bin' again"),
    ],
)
def test_files_are_some_of_the_six(files: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section("somewhere", files=files)
    assert Cifar10Source(kind="cifar10", uri="x").files == tuple(FILES)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": {"kind": "image", "height": 28, "width": 32}, "label": "category"},
        {"image": {"kind": "image", "height": 32, "width": 32, "channels": 1}, "label": "category"},
        {"image": "text", "label": "category"},
        {"picture": {"kind": "image", "height": 32, "width": 32}, "label": "category"},
    ],
)
def test_the_image_is_declared_as_it_is(columns: dict[str, Any]) -> None:
    source = {"kind": "cifar10", "uri": "x"}
    with pytest.raises(
        ValidationError, match=r"columns\.image must be \{kind: image, height: 32, width: 32, channels: 3\}"
    ):
        DataSpec.model_validate({"source": source, "columns": columns, "label": "label"})


def test_images_without_labels(tmp_path: Path) -> None:
    write(tmp_path)
    columns = {"image": {"kind": "image", "height": 32, "width": 32, "channels": 3}}
    data = DataSpec.model_validate({"source": {"kind": "cifar10", "uri": str(tmp_path)}, "columns": columns})
    assert len(read_all(data, open_connector(data)).rows) == 6 * ROWS
