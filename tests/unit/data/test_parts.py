"""Files of parts."""

import hashlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.parts import Folder, read_parquet


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()  # what is written cannot be moved there
    with pytest.raises(ArtifactError, match=r"a\.json must be a file that can be written, got: .* Make room"):
        Folder(pafs.LocalFileSystem(), str(tmp_path)).write_json("a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("kind", "least", "greatest"),
    [
        (pa.int64(), -(2**63), 2**63 - 1),
        (pa.uint64(), 0, 2**64 - 1),
        (pa.int32(), -(2**31), 2**31 - 1),
        (pa.uint8(), 0, 255),
    ],
)
def test_whole_numbers_come_back_from_parquet(tmp_path: Path, kind: pa.DataType, least: int, greatest: int) -> None:
    folder = Folder(pafs.LocalFileSystem(), str(tmp_path))
    table = pa.table({"n": pa.array([least, None, greatest, 0, greatest, least, 7], kind), "text": ["a"] * 7})
    assert read_parquet(folder, folder.write_parquet("a.parquet", table)).equals(table)
    found = duckdb.sql(f"select n from '{tmp_path}/a.parquet'").fetchall()
    assert [n for (n,) in found] == table["n"].to_pylist()


def test_the_lines_of_a_part_take_less_than_a_bit_each(tmp_path: Path) -> None:
    lines = pa.table({"_line": pa.array(range(10_000_000, 10_100_000), pa.int64())})
    assert Folder(pafs.LocalFileSystem(), str(tmp_path)).write_parquet("a.parquet", lines).num_bytes < 100_000 / 8


def test_a_part_is_known_by_the_size_and_digest_of_its_file(tmp_path: Path) -> None:
    folder = Folder(pafs.LocalFileSystem(), str(tmp_path))
    table = pa.table({"n": [1.5, None] * 50_000, "text": ["a", "bc"] * 50_000})
    for part in (folder.write_arrow("in/a.arrow", table), folder.write_parquet("a.parquet", table, group_rows=999)):
        content = (tmp_path / part.name).read_bytes()
        assert (part.num_bytes, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("is_local", [True, False])
def test_a_part_that_fails_half_way_leaves_nothing(tmp_path: Path, is_local: bool) -> None:
    local = pafs.LocalFileSystem()
    # As an object store is: what was written under the name shows as soon as it is closed.
    filesystem = local if is_local else pafs.PyFileSystem(pafs.FSSpecHandler(LocalFileSystem()))
    kind = pa.month_day_nano_interval()  # Parquet has no such type
    odd = pa.table({"n": [1.5] * 100_000, "odd": pa.nulls(100_000, kind)})
    with pytest.raises(pa.ArrowNotImplementedError):
        Folder(filesystem, str(tmp_path)).write_parquet("a.parquet", odd)
    assert not list(tmp_path.iterdir())
