"""Snapshots on any pyarrow filesystem: what is finished, and uniform samples of their rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.parts import Folder
from lepton_ray.data.snapshots import columns_of, list_folders, profile_snapshot, read_rows, read_snapshot

_ROWS = 20_000


def _lay(root: Path, key: str, order: list[int]) -> None:
    """Four parts of one table, in some order."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "x": rng.normal(size=_ROWS),
            "group": pa.array(rng.choice(["a", "b"], _ROWS)).dictionary_encode(),
            "_line": np.arange(_ROWS),
        }
    )
    folder = root / "run" / "clean" / key
    (folder / "train").mkdir(parents=True)
    parts = []
    for name, index in enumerate(order):
        path = folder / "train" / f"{name:05d}.parquet"
        part = table.slice(index * _ROWS // 4, _ROWS // 4)
        pq.write_table(part, path)
        parts.append(
            {"name": f"train/{path.name}", "rows": part.num_rows, "num_bytes": path.stat().st_size, "sha256": ""}
        )
    artifact: dict[str, Any] = {"splits": {"train": parts, "val": [], "test": []}, "quarantine": []}
    facts = {"stage": "clean", "key": key, "digest": "d", "finished": "2026-01-01T00:00:00Z", "inputs": {}, "files": {}}
    (folder / "manifest.json").write_text(
        json.dumps({**facts, "kind": "Dataset", "artifact": artifact, "of_a_later_version": 1})
    )


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    _lay(tmp_path / "runs", "aaaa", [0, 1, 2, 3])
    _lay(tmp_path / "runs", "bbbb", [2, 0, 3, 1])
    (tmp_path / "runs" / "run" / "clean" / "cccc" / "train").mkdir(parents=True)
    return Folder(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "runs")


def test_folders_without_a_manifest_are_no_snapshots(storage: Folder) -> None:
    found = [read_snapshot(folder) for folder in list_folders(storage)]
    assert [snapshot and (snapshot.run, snapshot.key, snapshot.rows) for snapshot in found] == [
        ("run", "aaaa", _ROWS),
        ("run", "bbbb", _ROWS),
        None,
    ]
    assert list(list_folders(storage, "none")) == []


def test_a_sample_is_uniform_and_does_not_depend_on_parts(storage: Folder) -> None:
    samples = []
    for folder in list(list_folders(storage))[:2]:
        snapshot = read_snapshot(folder)
        assert snapshot is not None
        assert read_rows(folder, snapshot).num_rows == _ROWS
        samples.append(read_rows(folder, snapshot, max_bytes=12 * 5000))
    assert samples[0].num_rows == pytest.approx(5000, rel=0.1)
    assert samples[0].column_names == ["x", "group"]
    assert sorted(samples[0]["x"].to_pylist()) == sorted(samples[1]["x"].to_pylist())
    assert abs(np.mean(samples[0]["x"].to_numpy())) < 0.05


def test_profiles_of_the_same_rows_are_the_same(storage: Folder) -> None:
    seen = []
    for folder in list(list_folders(storage))[:2]:
        snapshot = read_snapshot(folder)
        assert snapshot is not None
        seen.append(profile_snapshot(folder, snapshot, {}))
    assert seen[0] == seen[1]
    assert {name: column.kind for name, column in seen[0].columns.items()} == {"x": "number", "group": "category"}


def test_a_part_that_is_damaged_is_named(storage: Folder, tmp_path: Path) -> None:
    (tmp_path / "runs" / "run" / "clean" / "aaaa" / "train" / "00001.parquet").write_bytes(b"no parquet")
    folder = next(list_folders(storage))
    snapshot = read_snapshot(folder)
    assert snapshot is not None
    with pytest.raises(ArtifactError, match="must hold the parts that its manifest names"):
        read_rows(folder, snapshot)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pa.int8(), "number"),
        (pa.float32(), "number"),
        (pa.bool_(), "category"),
        (pa.dictionary(pa.int32(), pa.string()), "category"),
        (pa.large_string(), "text"),
        (pa.timestamp("us", "UTC"), "time"),
        (pa.list_(pa.float64(), 3), "series"),
        (pa.binary(), "ignored"),
        (pa.list_(pa.string()), "ignored"),
    ],
)
def test_kinds_by_arrow_type(kind: pa.DataType, name: str) -> None:
    assert columns_of(pa.schema({"a": kind}))["a"].kind == name
