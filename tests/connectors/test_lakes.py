"""Delta Lake and Iceberg, on tables that their own libraries write: the suite, versions, deleted rows, new columns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.connectors import check_source, files, open_connector
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

from .table import COLUMNS, rows, table

deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed: pip install 'lepton-ray[delta]'")
pyiceberg_catalog = pytest.importorskip(
    "pyiceberg.catalog", reason="pyiceberg is not installed: pip install 'lepton-ray[iceberg]'"
)
pyiceberg_types = pytest.importorskip("pyiceberg.types")
ROWS = 60


def section(kind: str, columns: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    return DataSpec.model_validate({"source": {"kind": kind, **options}, "columns": columns or COLUMNS})


def sorted_rows(data: DataSpec) -> list[dict[str, Any]]:
    found = read_all(data, open_connector(data)).rows
    return sorted(({name: row[name] for name in data.columns} for row in found), key=lambda row: str(row["at"]))


class LakeSuite(ConnectorSuite):
    @pytest.fixture
    def recuts(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        return [lambda: monkeypatch.setattr(files, "PART_BYTES", 1)]

    def test_all_rows_come_whatever_the_order_of_files(self, data: DataSpec) -> None:
        assert sorted_rows(data) == rows(ROWS)


class TestDelta(LakeSuite):
    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSpec:
        for start in (0, 20, 40):
            deltalake.write_deltalake(
                tmp_path / "t", table(rows(ROWS)[start : start + 20]), mode="append", partition_by=["town"]
            )
        return section("delta", uri=str(tmp_path / "t"))

    @pytest.fixture
    def broken(self, tmp_path: Path) -> DataSpec:
        return section("delta", uri=str(tmp_path / "gone"))


def test_delta_versions_and_deleted_rows(tmp_path: Path) -> None:
    path = tmp_path / "a table"
    deltalake.write_deltalake(path, table(rows(10)))
    deltalake.DeltaTable(path).delete("n < 0.5")
    more = table(rows(12)[10:]).append_column("extra", pa.array([1, 2]))
    deltalake.write_deltalake(path, more, mode="append", schema_mode="merge")
    latest, first = section("delta", uri=str(path)), section("delta", uri=str(path), version=0)
    assert len(sorted_rows(latest)) == 12 - 3
    assert sorted_rows(first) == rows(10)
    with_extra = section("delta", {**COLUMNS, "extra": "number"}, uri=str(path))
    assert [row["extra"] for row in sorted_rows(with_extra)[-2:]] == [1, 2]
    assert open_connector(latest).fingerprint() != open_connector(first).fingerprint()
    with pytest.raises(SpecError, match="Did you mean 'town'"):
        check_source(section("delta", {"twon": "text"}, uri=str(path)), open_connector(latest))
    with pytest.raises(DataError, match="must be a Delta table that can be read"):
        sorted_rows(section("delta", uri=str(path), version=99))


def test_a_part_stays_with_its_version(tmp_path: Path) -> None:
    """A killed run goes on with the table that it began with."""
    deltalake.write_deltalake(tmp_path / "t", table(rows(10)))
    data = section("delta", uri=str(tmp_path / "t"))
    parts = open_connector(data).parts()
    deltalake.write_deltalake(tmp_path / "t", table(rows(3)), mode="overwrite")
    assert len(read_all(data, open_connector(data), parts).rows) == 10


def test_partition_values_of_any_text_come_back(tmp_path: Path) -> None:
    towns = ["a b", "ž/%", "x=y", "'q'", None]
    values = [{**row, "town": town} for row, town in zip(rows(5), towns, strict=True)]
    deltalake.write_deltalake(tmp_path / "t", table(values), partition_by=["town"])
    assert sorted_rows(section("delta", uri=str(tmp_path / "t"))) == values


def test_deletion_vectors_are_refused_not_ignored(tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "t", table(rows(10)), configuration={"delta.enableDeletionVectors": "true"})
    data = section("delta", uri=str(tmp_path / "t"))
    with pytest.raises(DataError, match="deletionVectors"):
        sorted_rows(data)


@pytest.fixture
def catalog(tmp_path: Path) -> Any:
    return pyiceberg_catalog.load_catalog("test", **properties(tmp_path))


def properties(tmp_path: Path) -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/house"}


@pytest.fixture
def iceberg(catalog: Any) -> Any:
    catalog.create_namespace("shop")
    found = catalog.create_table("shop.orders", schema=table([]).schema)
    for start in (0, 20, 40):
        found.append(table(rows(ROWS)[start : start + 20]))
    return found


class TestIcebergByCatalog(LakeSuite):
    @pytest.fixture
    def data(self, iceberg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSpec:
        monkeypatch.setenv("HOUSE", "s3cr3t-of-the-test")
        return section(
            "iceberg", catalog={**properties(tmp_path), "name": "test", "token": "${HOUSE}"}, table="shop.orders"
        )

    @pytest.fixture
    def secrets(self) -> list[str]:
        return ["s3cr3t-of-the-test"]

    @pytest.fixture
    def broken(self, tmp_path: Path, catalog: Any) -> DataSpec:
        return section("iceberg", catalog=properties(tmp_path), table="shop.gone")


class TestIcebergByFolder(LakeSuite):
    @pytest.fixture
    def data(self, iceberg: Any) -> DataSpec:
        return section("iceberg", uri=iceberg.location().removeprefix("file://"))

    @pytest.fixture
    def broken(self, tmp_path: Path) -> DataSpec:
        return section("iceberg", uri=str(tmp_path / "gone"))


def test_iceberg_snapshots_and_deleted_rows(iceberg: Any) -> None:
    first = iceberg.snapshots()[0].snapshot_id
    iceberg.delete("n < 0.5")
    uri = iceberg.location()
    latest, old = section("iceberg", uri=uri), section("iceberg", uri=uri, snapshot_id=first)
    assert len(sorted_rows(latest)) == ROWS - 3
    assert sorted_rows(old) == rows(20)
    assert open_connector(latest).fingerprint() != open_connector(old).fingerprint()
    with pytest.raises(DataError, match="must be an Iceberg table that can be read"):
        sorted_rows(section("iceberg", uri=uri, snapshot_id=1))


def test_an_iceberg_part_stays_with_its_snapshot(iceberg: Any) -> None:
    data = section("iceberg", uri=iceberg.location())
    parts = open_connector(data).parts()
    iceberg.overwrite(table(rows(3)))
    assert len(read_all(data, open_connector(data), parts).rows) == ROWS


def test_iceberg_columns_have_the_names_of_the_version_that_is_read(catalog: Any) -> None:
    """Values are those of pyiceberg's own scan, also where a name has gone from one column to another and nothing was written since."""
    catalog.create_namespace("shop")
    found = catalog.create_table("shop.prices", schema=pa.schema({"price": pa.float64(), "usd": pa.float64()}))
    found.append(pa.table({"price": [1.0, 2.0], "usd": [100.0, 200.0]}))
    first = found.current_snapshot().snapshot_id

    def read(*names: str, **options: Any) -> dict[str, list[Any]]:
        data = section("iceberg", dict.fromkeys(names, "number"), uri=found.location(), **options)
        check_source(data, open_connector(data))
        rows = read_all(data, open_connector(data)).rows
        return {name: [row[name] for row in rows] for name in names}

    before = open_connector(data := section("iceberg", {"price": "number"}, uri=found.location()))
    parts, fingerprint = before.parts(), before.fingerprint()
    for old, new in (("price", "eur"), ("usd", "price")):
        with found.update_schema() as update:
            update.rename_column(old, new)
    with found.update_schema() as update:
        update.add_column("note", pyiceberg_types.DoubleType())
    own = found.scan(selected_fields=("price", "note")).to_arrow().to_pydict()
    assert read("price", "note") == own == {"price": [100, 200], "note": [None, None]}
    assert open_connector(data).fingerprint() != fingerprint
    assert [row["price"] for row in read_all(data, open_connector(data), parts).rows] == [1, 2]
    found.append(pa.table({"eur": [3.0], "price": [300.0], "note": [1.0]}))
    assert sorted(read("price")["price"]) == [100, 200, 300]
    assert read("price", "usd", snapshot_id=first) == {"price": [1, 2], "usd": [100, 200]}
    with pytest.raises(SpecError, match=r"data\.columns\.eur must name a column"):
        read("eur", snapshot_id=first)


def test_an_empty_iceberg_table_has_no_rows(catalog: Any) -> None:
    catalog.create_namespace("shop")
    found = catalog.create_table("shop.empty", schema=table([]).schema)
    data = section("iceberg", uri=found.location())
    assert sorted_rows(data) == []


@pytest.mark.parametrize(
    "options", [{}, {"uri": "x", "table": "a.b"}, {"table": "a.b"}, {"uri": "x", "catalog": {"type": "sql"}}]
)
def test_an_iceberg_table_is_named_in_one_way(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Name the table in one of the two ways"):
        section("iceberg", **options)


def test_options_of_a_table_that_a_catalog_names_are_the_catalogs() -> None:
    with pytest.raises(ValueError, match=r"options must come with uri, got \['s3.region'\] .* Write them in catalog"):
        section("iceberg", catalog={"type": "sql"}, table="a.b", options={"s3.region": "eu-west-1"})
