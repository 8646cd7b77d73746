"""HTTP APIs: every way to the next page, and a server that fails, stalls, limits, cuts off and leads elsewhere."""

import email.utils
import gzip
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.commands.file_profile import profile_file
from lepton_ray.commands.starter import write_starter
from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors import faults, open_connector
from lepton_ray.spec import parse_spec
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import HttpSource
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

from .conftest import Reply, Request, Server

TOKEN = "t0k3n-of-the-test"
COUNT = 25


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 0.01)


def section(uri: str, **options: Any) -> DataSpec:
    source = {
        "kind": "http",
        "uri": uri,
        "headers": {"Authorization": "Bearer ${API_TOKEN}"},
        "timeout_s": 5.0,
        **options,
    }
    return DataSpec.model_validate({"source": source, "columns": {"n": "number", "town": "category"}})


def record(index: int) -> dict[str, Any]:
    return {"n": index, "town": f"t{index % 3}", "more": [1]}


def api(*, size: int = 10, total: int = COUNT) -> Callable[[Request], Reply]:
    """An API that knows all ways to the next page; bad records among the rest."""

    def app(request: Request) -> Reply:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return Reply(b'{"error": "who are you?"}', 401)
        start = int(request.query.get("offset", request.query.get("cursor", 0)))
        step = min(size, int(request.query.get("limit", request.query.get("per_page", size))))
        if "page" in request.query:
            start = (int(request.query["page"]) - 1) * step
        end = min(start + step, total)
        found: list[Any] = [record(index) for index in range(start, end)]
        if start <= 7 < end:
            found[7 - start] = "no object"
        more = end < total
        body = {
            "data": {"items": found},
            "next": f"/list?offset={end}" if more else None,
            "meta": {"cursor": str(end) if more else ""},
        }
        link = f'<{request.path}?offset={end}>; rel="next", <x>; rel=last' if more else "<x>; rel=first"
        return Reply(json.dumps(body).encode(), headers={"Link": link})

    return app


PAGES: list[dict[str, Any]] = [
    {"kind": "link"},
    {"kind": "next"},
    {"kind": "cursor", "path": "meta.cursor"},
    {"kind": "offset", "limit": 7},
    {"kind": "offset", "limit": 500},
    {"kind": "page", "size_parameter": "per_page", "size": 6},
    {"kind": "page"},
]


class TestHttp(ConnectorSuite):
    @pytest.fixture(params=PAGES, ids=lambda pages: "-".join(map(str, pages.values())))
    def pages(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return dict(request.param)

    @pytest.fixture
    def data(self, server: Server, pages: dict[str, Any]) -> DataSpec:
        server.app = api()
        return section(f"{server.url}/list", records="data.items", pages=pages)

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return [{"n": float(i), "town": f"t{i % 3}"} for i in range(COUNT) if i != 7]

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"invalid_json": 1}

    @pytest.fixture
    def secrets(self) -> list[str]:
        return [TOKEN]

    @pytest.fixture
    def broken(self, server: Server) -> DataSpec:
        server.app = lambda request: Reply(request.headers["Authorization"].encode(), 403)
        return section(f"{server.url}/list")


def test_without_pages_there_is_one(server: Server) -> None:
    server.app = lambda request: Reply(json.dumps([record(1), record(2)]).encode())
    data = section(f"{server.url}/list?year=2024&q=a%20b")
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1, 2]
    assert len(server.requests) == 1
    assert server.requests[0].query == {"year": "2024", "q": "a b"}


def test_pages_keep_the_other_parameters(server: Server) -> None:
    server.app = api()
    data = section(
        f"{server.url}/list?year=2024&offset=99", records="data.items", pages={"kind": "offset", "limit": 10}
    )
    assert len(read_all(data, open_connector(data)).rows) == COUNT - 1
    assert [request.query for request in server.requests] == [
        {"year": "2024", "offset": str(n), "limit": "10"} for n in (0, 10, 20, 25)
    ]


def test_pages_leave_the_query_of_the_spec_as_it_is(server: Server) -> None:
    """To the byte: it may be of another encoding than UTF-8, or signed."""
    server.app = api(size=20)
    query = "name=%E9t&flag&q=a+b%20c&q=%2F~&off%73et=5"
    data = section(f"{server.url}/list?{query}", records="data.items", pages={"kind": "offset", "limit": 20})
    read_all(data, open_connector(data))
    asked = [request.raw_query for request in server.requests]
    kept = query.rpartition("&")[0]
    assert asked == [f"{kept}&offset={number}&limit=20" for number in (0, 20, 25)]


def test_null_is_a_page_without_records_where_the_answer_is_the_list(server: Server) -> None:
    server.app = scripted(Reply(json.dumps([record(1)]).encode()), Reply(b"null"))
    data = section(f"{server.url}/x", pages={"kind": "page"})
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1]


@pytest.mark.parametrize(
    ("pages", "last"),
    [
        ({"kind": "offset", "limit": 2}, Reply(b'{"items": null}')),
        ({"kind": "page"}, Reply(b'{"items": null}')),
        ({"kind": "page"}, Reply(b'{"detail": "Invalid page."}', 404)),
        ({"kind": "cursor"}, Reply(b'{"items": [], "next_cursor": 0}')),
        ({"kind": "next"}, Reply(b'{"items": [], "next": false}')),
    ],
)
def test_servers_end_in_several_ways(server: Server, pages: dict[str, Any], last: Reply) -> None:
    more = [Reply(json.dumps({"items": [record(n)], "next_cursor": n, "next": f"?p={n}"}).encode()) for n in (1, 2)]
    server.app = scripted(*more, last)
    data = section(f"{server.url}/x", records="items", pages=pages)
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1, 2]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("pages", "replies", "message"),
    [
        ({"kind": "page"}, [Reply(b"", 404)], "got 404"),
        ({"kind": "offset"}, [Reply(b'{"items": [{"n": 1}]}'), Reply(b"", 404)], "got 404"),
        ({"kind": "page"}, [Reply(b'{"items": null}')], "must lead to a list"),
        ({"kind": "page"}, [Reply(b'{"items": [{"n": 1}]}'), Reply(b'{"error": "no"}')], "must lead to a list"),
    ],
)
def test_what_is_no_end_is_an_error(server: Server, pages: dict[str, Any], replies: list[Reply], message: str) -> None:
    server.app = scripted(*replies)
    data = section(f"{server.url}/x", records="items", pages=pages)
    with pytest.raises(DataError, match=message):
        read_all(data, open_connector(data))


def test_whole_numbers_beyond_64_bits_keep_their_digits_as_texts(server: Server) -> None:
    large = 123456789012345678901
    server.app = lambda request: Reply(json.dumps([{"n": large, "town": large}, {"n": "x", "town": large}]).encode())
    data = section(f"{server.url}/x")
    read = read_all(data, open_connector(data))
    assert [(row["n"], row["town"]) for row in read.rows] == [(float(large), str(large))]
    assert [json.loads(row["_text"])["town"] for row in read.removed] == [large]


def scripted(*replies: Reply | Callable[[], Reply]) -> Callable[[Request], Reply]:
    """Answer with one after the other, then with an empty list."""
    waiting: Iterator[Any] = iter(replies)

    def app(request: Request) -> Reply:
        reply = next(waiting, Reply())
        return reply() if callable(reply) else reply

    return app


GOOD = Reply(b'[{"n": 1, "town": "x"}]')
PASSING = [
    *(Reply(b"busy", status) for status in (408, 425, 429, 500, 502, 503, 504)),
    Reply(b'[{"n": 1', length=24),
    Reply(b'[{"n": 1', length=-1),
    Reply(b'1000\r\n[{"n": 1', length=-1, headers={"Transfer-Encoding": "chunked"}),
    Reply(gzip.compress(b"[" + b"1," * 500 + b"1]", mtime=0)[:-9], headers={"Content-Encoding": "gzip"}),
    Reply(b"no gzip", headers={"Content-Encoding": "gzip"}),
    Reply(b"[]", stall_s=30.0),
    Reply(b"[" + b" " * 1000 + b"]", drip_s=0.05),
    Reply(b"[", length=-1, status=200, headers={"Connection": "close"}),
]


def _timeout_s(fault: Reply) -> float:
    """Short where it must pass; a good answer must come within it too."""
    return 1.0 if fault.stall_s or fault.drip_s else 30.0


@pytest.mark.parametrize("fault", PASSING, ids=lambda reply: f"{reply.status}-{reply.body[:8]!r}")
def test_what_may_pass_is_asked_again(server: Server, fault: Reply) -> None:
    server.app = scripted(fault, fault, GOOD)
    data = section(f"{server.url}/x", timeout_s=_timeout_s(fault))
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", PASSING, ids=lambda reply: f"{reply.status}-{reply.body[:8]!r}")
def test_what_does_not_pass_is_an_error_after_so_many_tries(server: Server, fault: Reply) -> None:
    server.app = lambda request: fault
    data = section(f"{server.url}/x?key=${{API_TOKEN}}", timeout_s=_timeout_s(fault), max_tries=3)
    with pytest.raises(DataError, match=r"must answer") as caught:
        read_all(data, open_connector(data))
    assert len(server.requests) == 3
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418])
def test_a_refusal_is_not_asked_again(server: Server, status: int) -> None:
    server.app = lambda request: Reply(b'{"error": "no"}\nmore', status)
    data = section(f"{server.url}/x?key=abc")
    with pytest.raises(DataError, match=rf'/x must answer with 200, got {status} .*\("error": "no"|{status}') as caught:
        read_all(data, open_connector(data))
    assert len(server.requests) == 1
    assert "abc" not in str(caught.value)


def test_retry_after_is_kept_in_seconds_and_as_a_time(server: Server) -> None:
    then = time.time() + 2
    server.app = scripted(
        Reply(b"", 429, {"Retry-After": "1"}),
        Reply(b"", 503, {"Retry-After": email.utils.formatdate(then, usegmt=True)}),
        GOOD,
    )
    data = section(f"{server.url}/x")
    assert len(read_all(data, open_connector(data)).rows) == 1
    first, second, _ = (request.time_s for request in server.requests)
    assert second - first >= 1
    assert time.time() >= int(then)


def test_a_wait_beyond_the_deadline_is_not_begun(server: Server) -> None:
    server.app = lambda request: Reply(b"", 429, {"Retry-After": "3600"})
    data = section(f"{server.url}/x", deadline_s=20.0)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"got 429 .* s of data\.source\.deadline_s are left"):
        read_all(data, open_connector(data))
    assert time.monotonic() - start < 20
    assert len(server.requests) == 1


def test_the_deadline_holds_for_all_pages(server: Server) -> None:
    server.app = lambda request: Reply(
        json.dumps({"items": [record(1)], "next": f"?p={len(server.requests)}"}).encode(), stall_s=0.05
    )
    data = section(f"{server.url}/x", records="items", pages={"kind": "next"}, deadline_s=0.6)
    start = time.monotonic()
    with pytest.raises(DataError, match="deadline_s"):
        read_all(data, open_connector(data))
    assert 0.5 < time.monotonic() - start < 30  # and not for ever


def test_requests_keep_their_distance(server: Server) -> None:
    server.app = api()
    data = section(f"{server.url}/list", records="data.items", pages={"kind": "link"}, requests_per_s=5.0)
    start = time.monotonic()
    read_all(data, open_connector(data))
    times = [request.time_s for request in server.requests]
    assert len(times) == 3
    assert times[-1] - start >= 0.4  # the first is sent after the start, and may come with a delay


@pytest.mark.parametrize("way", ["redirect", "link", "next"])
def test_credentials_stay_with_the_first_origin(server: Server, make_server: Callable[[], Server], way: str) -> None:
    other = make_server()
    replies = {
        "redirect": Reply(b"", 302, {"Location": f"{other.url}/steal"}),
        "link": Reply(json.dumps([record(1)]).encode(), headers={"Link": f'<{other.url}/steal>; rel="next"'}),
        "next": Reply(json.dumps({"items": [record(1)], "next": f"{other.url}/steal"}).encode()),
    }
    server.app = lambda request: replies[way]
    pages = None if way == "redirect" else {"kind": way}
    data = section(f"{server.url}/x", records="items" if way == "next" else "", pages=pages)
    with pytest.raises(DataError, match="credentials are not sent there"):
        read_all(data, open_connector(data))
    assert other.requests == []


def test_a_redirect_within_the_origin_is_followed(server: Server) -> None:
    server.app = lambda request: Reply(b"", 307, {"Location": "/new"}) if request.path == "/old" else GOOD
    data = section(f"{server.url}/old")
    assert len(read_all(data, open_connector(data)).rows) == 1
    assert server.requests[-1].headers["Authorization"] == f"Bearer {TOKEN}"


def test_an_answer_has_a_bound_compressed_or_not(server: Server) -> None:
    big = json.dumps([record(1)] * 1000).encode()
    for reply in (
        Reply(big),
        Reply(big, length=-1),
        Reply(gzip.compress(big, mtime=0), headers={"Content-Encoding": "gzip"}),
    ):
        server.app = lambda request, reply=reply: reply  # type: ignore[misc]
        data = section(f"{server.url}/x", max_page_bytes=20_000)
        with pytest.raises(DataError, match="must answer with at most 20000 bytes"):
            read_all(data, open_connector(data))
        data = section(f"{server.url}/x")
        assert len(read_all(data, open_connector(data)).rows) == 1000


def test_pages_have_a_bound_and_nothing_is_cut_off_in_silence(server: Server) -> None:
    server.app = api(size=1)
    data = section(f"{server.url}/list", records="data.items", pages={"kind": "link"}, max_pages=5)
    with pytest.raises(DataError, match=r"must end within 5 pages, got more\. Raise data\.source\.max_pages"):
        read_all(data, open_connector(data))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"kind": "offset"}, "got the same again"),
        ({"kind": "page"}, "got the same again"),
        ({"kind": "next"}, "must come once, got it as next page again|the same again"),
    ],
)
def test_a_server_that_gives_the_same_page_again_is_found_out(
    server: Server, pages: dict[str, Any], message: str
) -> None:
    body = {"items": [record(1)], "next": "/x"}
    server.app = lambda request: Reply(json.dumps(body).encode())
    data = section(f"{server.url}/x", records="items", pages=pages)
    with pytest.raises(DataError, match=message):
        read_all(data, open_connector(data))


@pytest.mark.parametrize(
    ("body", "records", "message"),
    [
        (
            b'{"data": {"rows": []}}',
            "data.items",
            r"must lead to a list in the answer of .*, which has data, got 'data.items': NoneType",
        ),
        (b'{"data": []}', "", "got the answer itself: dict"),
        (b"<html>", "", r"must answer with JSON, got b'<html>'"),
    ],
)
def test_answers_of_another_form(server: Server, body: bytes, records: str, message: str) -> None:
    server.app = lambda request: Reply(body)
    data = section(f"{server.url}/x", records=records)
    with pytest.raises(DataError, match=message):
        read_all(data, open_connector(data))


@pytest.mark.parametrize("address", ["http://[zz/x", "http://h:99999999/x", "http://\u2100.h/x"])
@pytest.mark.parametrize("way", ["first", "redirect", "link", "next"])
def test_an_address_that_is_none_is_an_error(server: Server, address: str, way: str) -> None:
    replies = {
        "redirect": Reply(b"", 302, {"Location": address.encode("ascii", "replace").decode().replace("?", "[")}),
        "link": Reply(GOOD.body, headers={"Link": f'<{address.replace(chr(0x2100), "[")}>; rel="next"'}),
        "next": Reply(json.dumps({"items": [record(1)], "next": address}).encode()),
    }
    server.app = lambda request: replies[way]
    options: dict[str, Any] = {"link": {"pages": {"kind": "link"}}, "next": {"pages": {"kind": "next"}}}.get(way, {})
    data = section(
        address if way == "first" else f"{server.url}/x", records="items" if way == "next" else "", **options
    )
    with pytest.raises(DataError, match=r"must (lead to addresses|name its next page by an address|be an address)"):
        read_all(data, open_connector(data))
    assert len(server.requests) == (way != "first")


def test_addresses_in_any_script_are_asked_in_ascii(server: Server) -> None:
    body = {"items": [record(1)], "next": "/日本 x?q=é y&z=%41"}
    server.app = lambda request: Reply(json.dumps(body if request.path == "/%C3%A9" else {"items": []}).encode())
    data = section(f"{server.url}/é", records="items", pages={"kind": "next"})
    assert len(read_all(data, open_connector(data)).rows) == 1
    assert [request.path for request in server.requests] == ["/%C3%A9", "/%E6%97%A5%E6%9C%AC%20x"]
    assert server.requests[1].query == {"q": "é y", "z": "A"}


@pytest.mark.parametrize("value", ["${API_TOKEN}\n", "${API_TOKEN}é", "a\r\nEvil: ${API_TOKEN}"])
def test_a_header_that_cannot_be_sent_is_not_shown(server: Server, value: str) -> None:
    data = section(f"{server.url}/x", headers={"X-Key": value})
    with pytest.raises(DataError, match=r"data\.source\.headers\.X-Key must be printable ASCII") as caught:
        read_all(data, open_connector(data))
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_a_secret_in_the_path_is_not_shown(server: Server) -> None:
    server.app = lambda request: Reply(b"{}", 404 if request.path.endswith("404") else 200)
    for rest in ("404", "x"):
        data = section(f"{server.url}/bot${{API_TOKEN}}/{rest}")
        with pytest.raises(DataError, match=r"/bot\$\{API_TOKEN\}/") as caught:
            read_all(data, open_connector(data))
        assert TOKEN not in str(caught.value)


def test_a_user_in_the_address_is_refused(server: Server) -> None:
    data = section(server.url.replace("//", "//me:${API_TOKEN}@"))
    with pytest.raises(DataError, match=r"must hold no user, got one for http://127") as caught:
        read_all(data, open_connector(data))
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(GOOD.body, length=-1, headers={"Content-Length": "abc", "Connection": "close"}),
        Reply(b"\xef\xbb\xbf" + GOOD.body),
        Reply(gzip.compress(GOOD.body, mtime=0), headers={"Content-Encoding": "GZIP"}),
    ],
)
def test_answers_that_are_a_little_off_are_read(server: Server, reply: Reply) -> None:
    server.app = lambda request: reply
    data = section(f"{server.url}/x")
    assert len(read_all(data, open_connector(data)).rows) == 1


def test_a_retry_after_that_is_no_number_is_a_wait_like_others(server: Server) -> None:
    server.app = scripted(Reply(b"", 503, {"Retry-After": "\u00b2"}))
    data = section(f"{server.url}/x", deadline_s=20.0)
    with pytest.raises(DataError, match="503 Service Unavailable in try 1, and 20 s of"):
        read_all(data, open_connector(data))


def test_an_address_without_a_server_is_an_error(make_server: Callable[[], Server]) -> None:
    data = section("http://127.0.0.1:9/x", max_tries=2)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x must answer within 2 tries, got .*refused"):
        read_all(data, open_connector(data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uri": "ftp://h/x"}, "pattern"),
        ({"headers": {"A": "${NO_SUCH_VARIABLE}"}}, "NO_SUCH_VARIABLE"),
        ({"headers": {"A b": "x"}}, "pattern"),
        ({"pages": {"kind": "scroll"}}, "scroll"),
        ({"pages": {"kind": "page", "size": 500}}, "size must come with size_parameter, got 500"),
        ({"requests_per_s": 0.0}, "greater than 0"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HttpSource.model_validate({"kind": "http", "uri": "http://h/x", **options})


def test_init_and_profile_take_it(server: Server, tmp_path: Path) -> None:
    server.app = api()
    pages = {"kind": "cursor", "path": "meta.cursor"}
    source = section(f"{server.url}/list", records="data.items", pages=pages).source.model_dump(
        mode="json", exclude_unset=True
    )
    (tmp_path / "towns.yaml").write_text(json.dumps({"data": {"source": source}}))
    text = write_starter(str(tmp_path / "towns.yaml"), None)
    columns = parse_spec(text, source="starter").data.columns
    assert {name: column.kind for name, column in columns.items()} == {"n": "number", "town": "category"}
    assert "columns of lists or structures are left out: 'more'" in text
    assert TOKEN not in text
    found = profile_file(str(tmp_path / "towns.yaml"))
    assert found.ledger is not None
    assert (found.ledger.rows_kept, found.ledger.removed) == (COUNT - 1, {"invalid_json": 1})
