"""Files of parts."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

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
