"""Ray Data's readers: the suite on a cluster of this machine, tensors, and readers or arguments that do not exist."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.data.connectors import check_source, on_ray, open_connector
from lepton_ray.engine import session
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

from .table import COLUMNS, rows, table

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:::.*")]
ROWS = 50


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    session.connect()
    yield
    session.close()


def section(reader: str, columns: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    source = {"kind": "ray", "reader": reader, "options": options}
    return DataSpec.model_validate({"source": source, "columns": columns or COLUMNS})


@pytest.mark.slow
class TestRayReader(ConnectorSuite):
    @pytest.fixture
    def data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSpec:
        monkeypatch.setenv("FOLDER_OF_THE_TEST", str(tmp_path))
        for name, values in (("a", rows(ROWS)[:30]), ("b", rows(ROWS)[30:])):
            pq.write_table(table(values), tmp_path / f"{name}.parquet")
        return section("parquet", paths=["${FOLDER_OF_THE_TEST}/a.parquet", "${FOLDER_OF_THE_TEST}/b.parquet"])

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return rows(ROWS)

    @pytest.fixture
    def broken(self, tmp_path: Path) -> DataSpec:
        return section("parquet", paths=str(tmp_path / "gone.parquet"))


def test_tensors_are_series(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(4, 3))
    data = section("numpy", {"data": {"kind": "series", "length": 3}}, paths=str(tmp_path / "a.npy"))
    found = [row["data"] for row in read_all(data, open_connector(data)).rows]
    assert found == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_a_reader_that_does_not_exist_is_found_before_reading() -> None:
    with pytest.raises(SpecError, match=r"data\.source\.reader must be one of .*mongo.*, got 'excel'"):
        check_source(section("excel"), open_connector(section("excel")))


def test_arguments_that_a_reader_does_not_take_are_a_spec_error() -> None:
    data = section("binary_files", paths="x", colour="red")
    with pytest.raises(SpecError, match="colour"):
        read_all(data, open_connector(data))


def test_a_column_that_no_block_has_is_a_spec_error(tmp_path: Path) -> None:
    pq.write_table(table(rows(3)), tmp_path / "a.parquet")
    data = section("parquet", {"n": "number", "twon": "category"}, paths=str(tmp_path / "a.parquet"))
    with pytest.raises(SpecError, match=r"data\.columns\.twon must name a column .*read_parquet.* Did you mean 'town'"):
        read_all(data, open_connector(data))


def test_a_column_that_some_blocks_lack_is_missing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in JSON whose first records have not all keys."""
    blocks = [pa.table({"n": [1]}), pa.table({"n": [2], "town": ["oslo"]})]
    monkeypatch.setattr(on_ray, "read_blocks", lambda *given: iter(blocks))
    data = section("json", {"n": "number", "town": "category"}, paths="x")
    assert [row["town"] for row in read_all(data, open_connector(data)).rows] == [None, "oslo"]
