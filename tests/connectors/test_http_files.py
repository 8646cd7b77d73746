"""Files on an HTTP server through fsspec: the suite with secrets in the address, and faults that pass or do not."""

import gzip
import re
from base64 import b64encode
from collections.abc import Callable
from http.client import responses
from typing import Any

import pytest

from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors import faults, open_connector
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

from .conftest import Reply, Request, Server
from .table import COLUMNS, csv_lines, rows

pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install aiohttp")
ROWS = 60
PASSWORD, SIGNATURE = "pa55-of-the-reader", "s1gn/ature of the test"
BAD = b"1,x,ragged\n"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE_PASSWORD", PASSWORD)
    monkeypatch.setenv("HOUSE_SIGNATURE", SIGNATURE)
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 0.01)


def section(uri: str, kind: str = "csv") -> DataSpec:
    return DataSpec.model_validate({"source": {"kind": kind, "uri": uri}, "columns": COLUMNS})


def house(files: dict[str, bytes]) -> Callable[[Request], Reply]:
    """Gives files by path, or the range of one that is asked for, to who knows the password and the signature."""
    user = f"Basic {b64encode(f'reader:{PASSWORD}'.encode()).decode()}"

    def app(request: Request) -> Reply:
        if request.headers.get("Authorization") != user or request.query.get("sig", SIGNATURE) != SIGNATURE:
            return Reply(b"who are you?", 403)
        if request.path not in files:
            return Reply(b"nothing", 404)
        content = files[request.path]
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))):
            return Reply(content)
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        return Reply(content[start:end], 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    return app


def address(server: Server, path: str, query: str = "?sig=${HOUSE_SIGNATURE}") -> str:
    return server.url.replace("//", "//reader:${HOUSE_PASSWORD}@") + path + query


class TestHttpFile(ConnectorSuite):
    """The name ends before the query: only so is it known to be compressed."""

    @pytest.fixture
    def data(self, server: Server) -> DataSpec:
        server.app = house({"/in/a.csv.gz": gzip.compress(csv_lines(rows(ROWS)) + BAD)})
        return section(address(server, "/in/a.csv.gz"))

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return rows(ROWS)

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"ragged_row": 1}

    @pytest.fixture
    def secrets(self) -> list[str]:
        return [PASSWORD, SIGNATURE, SIGNATURE.split()[0]]

    @pytest.fixture
    def broken(self, server: Server) -> DataSpec:
        server.app = house({})
        return section(address(server, "/in/a.csv"))


def test_another_address_in_the_environment_is_another_source(
    make_server: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for server in (make_server(), make_server()):
        server.app = lambda request: Reply(b"n\n1\n")
        monkeypatch.setenv("HOUSE", server.url.removeprefix("http://"))
        found += [open_connector(section("http://${HOUSE}/a.csv")).fingerprint() for _ in range(2)]
    assert found[0] == found[1] != found[2] == found[3]


def failing(status: int, times: int, app: Callable[[Request], Reply]) -> Callable[[Request], Reply]:
    """Answer so often with a status before the app does, when bytes are asked for."""
    left = [times]

    def answer(request: Request) -> Reply:
        if "Range" not in request.headers or not left[0]:
            return app(request)
        left[0] -= 1
        return Reply(b"", status)

    return answer


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_fault_of_the_server_passes(server: Server, status: int) -> None:
    server.app = failing(status, 3, house({"/a.csv": csv_lines(rows(ROWS))}))
    data = section(address(server, "/a.csv"))
    assert len(read_all(data, open_connector(data)).rows) == ROWS


@pytest.mark.parametrize(("status", "tries"), [(503, 5), (400, 1), (404, 1)])
def test_a_fault_that_stays_is_told_by_its_status(server: Server, status: int, tries: int) -> None:
    app = house({"/a.csv": csv_lines(rows(ROWS))})
    server.app = failing(status, 100, app)
    data = section(address(server, "/a.csv"))
    with pytest.raises(DataError, match=rf"a\.csv.* must be a readable csv file, got: {status}.*{responses[status]}"):
        open_connector(data).columns()
    assert sum("Range" in request.headers for request in server.requests) == tries


def test_a_server_that_is_not_ready_holds_nothing_for_gone(server: Server) -> None:
    app, left = house({"/a.csv": csv_lines(rows(ROWS))}), [3]

    def answer(request: Request) -> Reply:
        left[0] -= 1
        return Reply(b"", 503) if left[0] >= 0 else app(request)

    server.app = answer
    assert len(open_connector(section(address(server, "/a.csv"))).parts()) == 1


def test_a_connection_that_is_cut_off_half_way_is_taken_up(server: Server) -> None:
    app, left = house({"/a.csv": csv_lines(rows(ROWS))}), [2]

    def answer(request: Request) -> Reply:
        reply = app(request)
        if "Range" in request.headers and left[0]:
            left[0] -= 1
            return Reply(reply.body[:50], reply.status, {**reply.headers, "Connection": "close"}, len(reply.body))
        return reply

    server.app = answer
    data = section(address(server, "/a.csv"))
    assert len(read_all(data, open_connector(data)).rows) == ROWS
