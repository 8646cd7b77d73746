"""Every built-in connector that needs no server passes the suite, on one table in its format, with records that are none."""

import gzip
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import orc

from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import ConnectorSuite

from . import samples

ROWS = 60
Recut = Callable[[], None]

PICTURE = {"picture": {"kind": "image", "height": 2, "width": 3, "channels": 1}, "shape": "category"}


class FileSuite(ConnectorSuite):
    """A folder with two files."""

    kind = ""

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        raise NotImplementedError

    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSpec:
        self.write(tmp_path, samples.rows(ROWS)[:40], "a")
        self.write(tmp_path, samples.rows(ROWS)[40:], "b")
        return samples.section(self.kind, tmp_path)

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return samples.rows(ROWS)

    @pytest.fixture
    def recuts(self, cut_small: Callable[[int, int], Recut]) -> list[Recut]:
        return [cut_small(1, 7), cut_small(300, 150), cut_small(2000, 1), cut_small(1 << 20, 1 << 20)]

    @pytest.fixture
    def broken(self, tmp_path: Path) -> DataSpec:
        return samples.section(self.kind, tmp_path / "gone")


class TestCsv(FileSuite):
    kind = "csv"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        lines = samples.csv_lines(values)
        bad = b"1,2,3\n" + b'x,1,"rome",y,2024-01-01,' + b"\xff\n"
        (folder / f"{name}.csv").write_bytes(lines + bad + b"\n")

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"ragged_row": 2, "invalid_utf8": 2}


class TestCompressedCsv(FileSuite):
    kind = "csv"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(samples.csv_lines(values)))


class TestJsonLines(FileSuite):
    kind = "jsonl"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        bad = [b"", b'{"n": 1', b"[1]", b'{"n": [2], "key": "x"}', b'{"key": "\xff"}', b'{"n": "many"}', b"null"]
        (folder / f"{name}.jsonl").write_bytes(samples.json_lines(values) + b"\n".join(bad) + b"\n")

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"invalid_json": 6, "type_error": 4, "invalid_utf8": 2}


class TestCompressedJsonLines(FileSuite):
    kind = "jsonl"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        with pa.output_stream(str(folder / f"{name}.ndjson.zst"), compression="zstd") as stream:
            stream.write(samples.json_lines(values))


class TestParquet(FileSuite):
    kind = "parquet"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        pq.write_table(samples.table(values), folder / f"{name}.parquet", row_group_size=7)


class TestArrowFile(FileSuite):
    kind = "arrow"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        feather.write_feather(samples.table(values), folder / f"{name}.feather", compression="zstd", chunksize=6)


class TestArrowStream(FileSuite):
    kind = "arrow"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        table = samples.table(values)
        with pa.ipc.new_stream(folder / f"{name}.arrows", table.schema) as writer:
            writer.write_table(table, max_chunksize=9)


class TestOrc(FileSuite):
    kind = "orc"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        table = samples.table(values)
        town = table.schema.get_field_index("town")
        plain = table.drop(["extra"]).set_column(town - 1, "town", table.column("town").cast(pa.string()))
        orc.write_table(plain, str(folder / f"{name}.orc"), stripe_size=1)


class TestTfRecord(FileSuite):
    kind = "tfrecord"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        damaged = bytearray(samples.tf_record(samples.tf_example({"n": 1})))
        damaged[-8] ^= 1
        bad = [
            bytes(damaged),
            samples.tf_record(b"no example"),
            samples.tf_record(samples.tf_example({"note": b"\xff", "n": 1.0})),
            samples.tf_record(samples.tf_example({"n": [1.0, 2.0]})),
        ]
        (folder / f"{name}.tfrecord").write_bytes(samples.tf_records(values) + b"".join(bad))

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"type_error": 6, "invalid_utf8": 2}


class TestNumpyArchive(FileSuite):
    kind = "numpy"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        samples.npz(folder / f"{name}.npz", values)


class TestNumpyRecords(FileSuite):
    """A structured array: it can be cut."""

    kind = "numpy"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        kinds = [("key", "U8"), ("n", "f4"), ("town", "S8"), ("note", "U40"), ("whole", ">i8"), ("at", "M8[s]")]
        nan, nat = np.nan, np.datetime64("NaT")
        records = [
            (
                v["key"],
                nan if v["n"] is None else v["n"],
                (v["town"] or "").encode(),
                v["note"] or "",
                v["whole"],
                nat if v["at"] is None else np.datetime64(v["at"].replace(tzinfo=None)),
            )
            for v in values
        ]
        np.save(folder / f"{name}.npy", np.array(records, kinds))


class TestWebDataset(FileSuite):
    kind = "webdataset"

    def write(self, folder: Path, values: list[dict[str, Any]], name: str) -> None:
        found = []
        for index, value in enumerate(values):
            record = samples.as_json(value)
            note = record.pop("note")
            sample = {"json": json.dumps(record).encode()}
            found.append(sample if note is None else {**sample, "note": f" {note}\n".encode()})
            found[-1] = found[-1] if index % 2 else dict(reversed(found[-1].items()))
        found += [{"json": b"{"}, {"json": b'{"n": 1}', "note": b"\xff"}, {"json": b'{"n": {}}'}]
        (folder / f"{name}.tar").write_bytes(samples.tar(found))

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"invalid_json": 2, "invalid_utf8": 2, "type_error": 2}


class TestText(FileSuite):
    kind = "text"

    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSpec:
        (tmp_path / "a.txt").write_bytes(b"one\r\n\n  two  \nthr\xc3\xa9e\n\xff\xfe\n")
        (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbffour\n5")
        return samples.section("text", tmp_path, {"text": "text"})

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return [{"text": text} for text in ("one", "two", "thrée", "four", "5")]

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"invalid_utf8": 1}


class TestImageFolder(FileSuite):
    kind = "image_folder"

    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSpec:
        for index in range(20):
            folder = tmp_path / ("even" if index % 2 == 0 else "odd")
            folder.mkdir(exist_ok=True)
            Image.fromarray(np.full((2, 3), index, np.uint8)).save(folder / f"{index:02d}.png")
        (tmp_path / "odd" / "99.png").write_bytes(b"no image")
        source = {"kind": "image_folder", "uri": str(tmp_path)}
        return DataSpec.model_validate({"source": source, "columns": PICTURE, "label": "shape"})

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        order = [*range(0, 20, 2), *range(1, 20, 2)]
        return [{"picture": bytes([i]) * 6, "shape": "odd" if i % 2 else "even"} for i in order]

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"unreadable_image": 1}

    @pytest.fixture
    def broken(self, tmp_path: Path) -> DataSpec:
        source = {"kind": "image_folder", "uri": str(tmp_path / "gone")}
        return DataSpec.model_validate({"source": source, "columns": PICTURE, "label": "shape"})


class TestSqlite(ConnectorSuite):
    """A table with keys that repeat and keys that are null, read in ranges."""

    query: str | None = None

    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSpec:
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            connection.execute(
                'CREATE TABLE "the ""table%" (key TEXT PRIMARY KEY, n REAL, whole INTEGER, town, note TEXT, at TEXT, "par%t" INTEGER)'
            )
            for index, value in enumerate(map(samples.as_json, samples.rows(ROWS))):
                part = None if index >= ROWS - 5 else index // 4
                cells = (*(value[name] for name in ("key", "n", "whole", "town", "note", "at")), part)
                connection.execute('INSERT INTO "the ""table%" VALUES (?, ?, ?, ?, ?, ?, ?)', cells)
            bad = "INSERT INTO \"the \"\"table%\" VALUES ('zz', 1.0, 2, NULL, CAST(x'ff' AS TEXT), NULL, NULL)"
            connection.execute(bad)
        connection.close()
        return self.section(path)

    def section(self, path: Path) -> DataSpec:
        return samples.section("sql", f"sqlite:///{path}", table='the "table%', partition_column="par%t", partitions=4)

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return sorted(
            samples.rows(ROWS),
            key=lambda row: (int(row["key"][1:]) // 4 if int(row["key"][1:]) < ROWS - 5 else 999, row["key"]),
        )

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"invalid_utf8": 1}

    @pytest.fixture
    def recuts(self, monkeypatch: pytest.MonkeyPatch) -> list[Recut]:
        from lepton_ray.data.connectors import sql

        return [lambda: [monkeypatch.setattr(sql, "_FIRST_FETCH_ROWS", 1), monkeypatch.setattr(sql, "_BLOCK_BYTES", 1)]]  # type: ignore[list-item, return-value]

    @pytest.fixture
    def broken(self, tmp_path: Path) -> DataSpec:
        return self.section(tmp_path / "gone.db")


class TestSqliteQuery(TestSqlite):
    """A query with a parameter, a percent sign, a comment at its end."""

    def section(self, path: Path) -> DataSpec:
        query = 'SELECT *, "par%t" % 100 AS p FROM "the ""table%" WHERE key <> :without OR note LIKE \'%\' -- all;'
        return samples.section(
            "sql", f"sqlite:///{path}", query=query, parameters={"without": "x"}, partition_column="p"
        )

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return samples.rows(ROWS)  # equal keys come as they were inserted


class TestSqliteView(TestSqlite):
    """Without ranges, in the order that the query has."""

    def section(self, path: Path) -> DataSpec:
        query = 'SELECT * FROM "the ""table%" ORDER BY "par%t" IS NULL, "par%t", key;'
        return samples.section("sql", f"sqlite:///{path}", query=query)
