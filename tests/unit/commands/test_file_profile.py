"""Profiles of files that no spec describes: all rows are counted, those that do not fit by their reasons."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lepton_ray.artifacts.profile import CategoryProfile, ImageProfile, NumberProfile
from lepton_ray.commands.file_profile import Profiled, profile_file
from lepton_ray.commands.snapshots import profile_anything, write_page_of
from lepton_ray.core.errors import ArtifactError, DataError
from lepton_ray.evaluate.page import escape


def _number(found: Profiled, name: str) -> NumberProfile:
    column = found.profile.columns[name]
    assert isinstance(column, NumberProfile)
    return column


def test_rows_that_cannot_be_typed_are_counted_by_reason(tmp_path: Path) -> None:
    lines = [f"{i * 0.5},{'uv'[i % 2]}" for i in range(100)]
    lines[10] = "oops,u"
    lines[20] = "1,u,2"
    lines[30] = "inf,v"
    path = tmp_path / "t.csv"
    path.write_text("x,c\n" + "\n".join(lines))
    found = profile_file(str(path))
    assert found.name == "t.csv"
    assert found.ledger is not None
    assert found.ledger.model_dump() == {
        "rows_in": 100,
        "rows_kept": 97,
        "removed": {"ragged_row": 1, "type_error": 2},
    }
    assert (found.profile.rows, found.profile.rows_total) == (97, 97)
    assert _number(found, "x").count == 97
    page = write_page_of(found)
    assert "rows kept, 97%" in page
    assert "ragged_row" in page
    assert found.to_json()["ledger"]["removed"] == {"ragged_row": 1, "type_error": 2}


def test_what_shows_only_behind_the_first_rows_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,c\n" + "1.5,a\n2.5,b\n" * 6_000 + "word,a\n" * 5_000)
    found = profile_file(str(path))
    assert found.profile.columns["x"].kind == "number"
    assert found.ledger is not None
    assert found.ledger.removed == {"type_error": 5_000}


@pytest.mark.parametrize("group", [10_000, 200_000])
def test_a_large_file_is_sampled_and_counted(tmp_path: Path, group: int) -> None:
    rows = 200_000
    path = tmp_path / "large.parquet"
    values = np.random.default_rng(0).permutation(rows) + 0.5
    pq.write_table(pa.table({"x": values}), path, row_group_size=group)
    found = profile_file(str(path), max_bytes=200_000)
    assert found.profile.rows_total == rows
    assert 10_000 < found.profile.rows <= 25_000
    assert found.profile.is_sample
    summary = _number(found, "x").numbers
    assert summary is not None
    assert summary.mean == pytest.approx(rows / 2, rel=0.02)
    assert profile_file(str(path), max_bytes=200_000) == found
    assert "are a uniform sample" in write_page_of(found)


def test_columns_that_are_left_out_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"a": i % 3, "tags": [i], "_b": 1, "<c>": {}} for i in range(9)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = profile_file(str(path))
    assert list(found.profile.columns) == ["a"]
    assert found.findings == (
        "columns of lists or structures are left out: 'tags', '<c>'",
        "columns with names that no spec can hold are left out: '_b'",
    )
    page = write_page_of(found)
    assert "<c>" not in page
    assert escape("<c>") in page


def test_many_columns_that_are_left_out_are_not_all_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [1.5], **{f"_{i}": [1] for i in range(30)}}), path)
    (finding,) = profile_file(str(path)).findings
    assert finding.endswith("'_19' and 10 more")


def test_a_file_of_keys_alone_is_profiled_too(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id\n" + "".join(f"C{i}\n" for i in range(50)))
    assert profile_file(str(path)).profile.columns["id"].distinct == 50


def _write_images(folder: Path) -> None:
    for index in range(6):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5), 40 * index, np.uint8)).save(path)


def test_an_image_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    _write_images(folder)
    (folder / "b" / "7.png").write_bytes(b"no image")
    found = profile_anything(f"{folder}/")
    assert found.name == "pets"
    image, label = (found.profile.columns[name] for name in ("image", "class"))
    assert isinstance(image, ImageProfile)
    assert image.shape == (4, 5, 1)
    assert isinstance(label, CategoryProfile)
    assert {item.value: item.count for item in label.top} == {"a": 3, "b": 3}
    assert found.ledger is not None
    assert found.ledger.removed == {"unreadable_image": 1}


def test_a_folder_without_images_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(ArtifactError, match="must name a data file, a folder with images or a snapshot, got neither"):
        profile_anything(str(tmp_path), str(tmp_path))


def test_a_folder_of_images_without_classes(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    found = profile_file(str(tmp_path))
    assert list(found.profile.columns) == ["image"]
    assert found.profile.rows == 1


def test_a_file_without_a_row_that_can_be_typed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(10_000, dtype=np.uint8).reshape(100, 100)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # its size stands in the first bytes
    with pytest.raises(DataError, match=r"must hold rows that can be typed, got 1 rows in, 0 kept"):
        profile_file(str(tmp_path))
