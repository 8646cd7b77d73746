"""Files on an S3 server (moto): the suite through pyarrow's own client, and what is not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors import files, lines, open_connector
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

from .conftest import Reply, Server
from .table import COLUMNS, csv_lines, json_lines, rows, table

ROWS = 60


@pytest.fixture
def bucket(s3: str) -> tuple[pafs.S3FileSystem, str]:
    """A filesystem with an empty bucket, and the query that leads a URI to it."""
    filesystem = pafs.S3FileSystem(
        endpoint_override=s3, scheme="http", region="us-east-1", allow_bucket_creation=True, allow_bucket_deletion=True
    )
    if filesystem.get_file_info("shop").type != pafs.FileType.NotFound:
        filesystem.delete_dir("shop")
    filesystem.create_dir("shop")
    return filesystem, f"?endpoint_override={s3}&scheme=http&region=us-east-1"


def section(kind: str, uri: str) -> DataSpec:
    return DataSpec.model_validate({"source": {"kind": kind, "uri": uri}, "columns": COLUMNS})


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestS3(ConnectorSuite):
    @pytest.fixture
    def data(self, bucket: tuple[pafs.S3FileSystem, str], kind: str, tmp_path: Path) -> DataSpec:
        filesystem, query = bucket
        for name, values in (("a", rows(ROWS)[:45]), ("sub/b", rows(ROWS)[45:])):
            pq.write_table(table(values), tmp_path / "x.parquet", row_group_size=10)
            content = {
                "csv": csv_lines(values),
                "jsonl": json_lines(values),
                "parquet": (tmp_path / "x.parquet").read_bytes(),
            }
            with filesystem.open_output_stream(f"shop/in/{name}.{kind}") as stream:
                stream.write(content[kind])
        return section(kind, f"s3://shop/in{query}")

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return rows(ROWS)

    @pytest.fixture
    def secrets(self) -> list[str]:
        return ["s3cr3t-of-the-test"]

    @pytest.fixture
    def broken(self, bucket: tuple[pafs.S3FileSystem, str]) -> DataSpec:
        return section("csv", f"s3://shop/gone{bucket[1]}")

    @pytest.fixture
    def recuts(self, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
        def small() -> None:
            monkeypatch.setattr(files, "PART_BYTES", 900)
            monkeypatch.setattr(lines, "CHUNK_BYTES", 300)

        return [small]


def test_a_bucket_that_is_not_there_is_an_error_without_the_secret(bucket: tuple[pafs.S3FileSystem, str]) -> None:
    data = section("csv", f"s3://no-such-bucket/x{bucket[1]}")
    with pytest.raises(DataError, match=r"data\.source\.uri must .*no-such-bucket") as caught:
        read_all(data, open_connector(data))
    assert "s3cr3t" not in str(caught.value)


def test_an_object_that_goes_away_stops_the_run(bucket: tuple[pafs.S3FileSystem, str]) -> None:
    filesystem, query = bucket
    with filesystem.open_output_stream("shop/a.csv") as stream:
        stream.write(csv_lines(rows(5)))
    connector = open_connector(section("csv", f"s3://shop/a.csv{query}"))
    parts = connector.parts()
    filesystem.delete_file("shop/a.csv")
    with pytest.raises(DataError, match=r"shop/a\.csv must be a readable csv file"):
        list(connector.read(parts[0]))


def test_what_is_refused_is_asked_for_once(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    server.app = lambda request: Reply(b"<Error><Code>AccessDenied</Code></Error>", 403)
    query = f"?endpoint_override={server.url.removeprefix('http://')}&scheme=http&region=us-east-1"
    with pytest.raises(DataError, match="ACCESS_DENIED"):
        open_connector(section("csv", f"s3://shop/x.csv{query}")).parts()
    assert len(server.requests) == 1
