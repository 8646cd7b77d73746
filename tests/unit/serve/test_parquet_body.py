"""Parquet at ``POST /predict``: what the same records get in JSON, and no more memory than its bounds say."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve import parquet_body
from lepton_ray.serve.endpoint import Limits, NoMeter
from lepton_ray.serve.parquet_body import (
    _DATA_AT,
    _DECODED,
    _ENCODED,
    _STORED,
    MEDIA_TYPE,
    _check_sizes,
    _Head,
    _signed,
    read_parquet,
)
from lepton_ray.serve.protocol import ProtocolError

from .conftest import build_http_app
from .test_bodies import _RECORDS, _TYPED

_PARQUET = MEDIA_TYPE.decode()


def write(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.fixture
def client(call_app: Any, mixed_package: Path) -> Any:
    return call_app(build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(max_rows=3), NoMeter()))


def post(client: Any, body: bytes, **headers: str) -> Any:
    return client.post("/predict", content=body, headers={"content-type": _PARQUET, **headers})


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_records_are_answered_as_in_json(client: Any, compression: str, version: str) -> None:
    wanted = client.post("/predict", json=_RECORDS)
    options = {"compression": compression, "data_page_version": version, "row_group_size": 2}
    answer = post(client, write(pa.Table.from_pylist(_RECORDS), **options))
    assert (answer.status_code, answer.json()) == (200, wanted.json())


def test_answers_come_as_files_too(client: Any) -> None:
    answer = post(client, write(pa.Table.from_pylist(_RECORDS)), accept=_PARQUET)
    assert answer.headers["content-type"] == _PARQUET
    predictions = client.post("/predict", json=_RECORDS).json()["predictions"]
    table = pq.read_table(io.BytesIO(answer.content))
    assert table.column("label").to_pylist() == [one["label"] for one in predictions]
    assert table.column("probabilities.yes").to_pylist() == [one["probabilities"]["yes"] for one in predictions]


@pytest.mark.parametrize("change", [{"age": -1}, {"age": None}, {"size": "XL"}, {"x": 1}])
def test_a_record_that_breaks_the_signature_is_refused_as_in_json(client: Any, change: dict[str, Any]) -> None:
    record = {**_RECORDS[0], **change}
    wanted = client.post("/predict", json=[record])
    table = (
        pa.Table.from_pylist([record])
        if change != {"age": None}
        else pa.table({**{k: [v] for k, v in record.items()}, "age": pa.array([None], pa.float64())})
    )
    answer = post(client, write(table))
    assert (answer.status_code, answer.json()) == (422, wanted.json())


def test_typed_columns_give_what_their_texts_give() -> None:
    moment = datetime(2024, 2, 29, 12, 30, 0, 5, UTC)
    table = pa.table(
        {
            "n": pa.array([1.5, float("nan")], pa.float32()),
            "c": pa.array([2, None], pa.int8()),
            "t": pa.array([moment, None], pa.timestamp("us", "Europe/Berlin")),
            "e": pa.array([moment.date(), None], pa.date32()),
            "s": pa.array([[1, 2.5], None], pa.list_(pa.float64())),
            "y": pa.array([b"not read"] * 2),
        }
    )
    records = read_parquet(write(table), _TYPED, 2)
    assert list(records[0]) == table.column_names
    feeds = _TYPED.encode([{**record, "y": None} for record in records])
    midnight = datetime(2024, 2, 29, tzinfo=UTC)
    np.testing.assert_array_equal(feeds["numbers"], [[1.5], [np.nan]])
    np.testing.assert_array_equal(feeds["times"], [[moment.timestamp(), midnight.timestamp()], [np.nan] * 2])
    assert feeds["categories"].tolist() == [["2"], [""]]
    np.testing.assert_array_equal(feeds["series_s"], [[1, 2.5], [np.nan] * 2])


def rows(count: int) -> pa.Table:
    return pa.table({"age": [1.0] * count, "size": ["S"] * count})


def _relabelled(body: bytes, by: bytes) -> bytes:
    """Return a file whose footer says that another program of as many letters has written it."""
    start = body.rindex(b"parquet-cpp-arrow version ")
    return body[:start] + by.ljust(len(b"parquet-cpp-arrow version "))[:26] + body[start + 26 :]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body must be a Parquet file: "),
        (b"age,size\n1,S\n", "the body must be a Parquet file: "),
        (b"PAR1" + b"\xff" * 100 + b"PAR1", "the body must be a Parquet file: "),
        (write(rows(3))[:-30], "the body must be a Parquet file: "),
        (write(rows(4)), "the body must have 1 to 3 records, got 4. Split"),
        (write(rows(0)), "the body must have 1 to 3 records, got 0"),
        (write(pa.table({"age": pa.nulls(1 << 20)})), "the body must have 1 to 3 records, got 1048576"),
        (
            write(pa.table({"size": ["x" * (65 << 20)]}), compression="zstd"),
            "the pages of a Parquet file must decode to at most 67108864 bytes and 4194304 values",
        ),
        (
            write(pa.table({"x": pa.array([bytes(65 << 20)])}), compression="gzip"),
            "the pages of a Parquet file must decode to at most 67108864 bytes",
        ),
        (
            write(pa.table({"x": pa.array([np.zeros(5 << 20)])})),
            "the pages of a Parquet file must decode to at most 67108864 bytes",
        ),
        (
            write(
                pa.table({"size": ["S" * 9, "S" * 9 + "a"]}),
                column_encoding={"size": "DELTA_BYTE_ARRAY"},
                use_dictionary=False,
            ),
            "a Parquet file must come without the encoding DELTA_BYTE_ARRAY",
        ),
        (_relabelled(write(rows(1)), b"parquet-mr version 1.2.8 "), "a Parquet file of parquet-mr must be written by"),
        (
            write(pa.table({f"x{n}": [1.0] * 2 for n in range(10_001)}), row_group_size=1),
            "a Parquet file must have at most 20000 columns of row groups",
        ),
        (write(pa.table({"age": pa.array([{"a": 1}])})), "age must be of a type that its kind 'number' is read from"),
        (write(pa.table({"size": pa.array([b"S"])})), "size must be of a type that its kind 'category' is read from"),
    ],
    ids=range(15),
)
def test_what_cannot_be_read_is_refused_with_400(client: Any, body: bytes, message: str) -> None:
    answer = post(client, body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)
    assert len(answer.content) < 500


def test_runs_of_equal_numbers_are_counted_before_they_are_made() -> None:
    """A few bytes of a page can stand for any number of values."""
    body = write(pa.table({"s": pa.array([np.zeros(5 << 20, np.int8)])}))
    assert len(body) < 10_000
    with pytest.raises(ProtocolError, match="4194304 values"):
        read_parquet(body, _TYPED, 3)


def test_pages_are_bounded() -> None:
    body = write(pa.table({"n": [1.0] * 40_000}), data_page_size=1, write_batch_size=1, use_dictionary=False)
    with pytest.raises(ProtocolError, match="at most 20000 pages"):
        read_parquet(body, _TYPED, 1 << 20)


def test_a_word_that_stands_in_each_row_is_made_once() -> None:
    body = write(pa.table({"c": ["x" * (1 << 14)] * 4000}))
    assert len(body) < 1 << 20
    before = pa.total_allocated_bytes()
    records = read_parquet(body, _TYPED, 4096)
    assert records[0]["c"] is records[3999]["c"]
    assert pa.total_allocated_bytes() - before < 16 << 20


@pytest.mark.slow
def test_a_word_that_stands_in_each_row_is_bounded_in_all_of_them() -> None:
    """The model has a copy of it for each."""
    body = write(pa.table({"c": ["x" * (1 << 19)] * 4000}))
    assert len(body) < 1 << 20
    with pytest.raises(ProtocolError, match="at most 67108864 bytes of text"):
        read_parquet(body, _TYPED, 4096)


@pytest.mark.parametrize("filling", [b"\x69\xf3%b" % (b"\xff\xff\x0f") + bytes((1 << 18) - 1), b"\x11" * (1 << 18)])
def test_heads_of_pages_that_columns_share_are_bounded_together(
    monkeypatch: pytest.MonkeyPatch, filling: bytes
) -> None:
    """Columns may name the same place again and again; a list of bytes, or fields of truth values, make its head long."""
    long = b"\x25\x02\x15\x00" + filling + b"\0"  # 1 byte decoded, none encoded
    shared = {_DATA_AT: 4, _STORED: len(long)}
    seen = []

    def columns(head: Any) -> Any:
        for number in range(4096):
            seen.append(number)
            yield shared

    monkeypatch.setattr(parquet_body, "_columns", columns)
    body = write(rows(1))
    body = body[:4] + long + body[4:]
    with pytest.raises(ProtocolError, match="at most 2000000 items"):
        _check_sizes(body, pq.read_metadata(io.BytesIO(write(rows(1)))), 3)
    assert len(seen) == 8


@pytest.fixture
def sized() -> Callable[[bytes], list[int]]:
    """Sizes of the pages of a file's first column, by our own reading."""

    def read(body: bytes) -> list[int]:
        column = pq.ParquetFile(io.BytesIO(body)).metadata.row_group(0).column(0)
        place = column.dictionary_page_offset or column.data_page_offset
        end, sizes = place + column.total_compressed_size, []
        while place < end:
            head = _Head(body)
            head.place = place
            page = head.read_struct(8)
            sizes.append(head.place - place + page[_DECODED])
            place = head.place + page[_ENCODED]
        assert place == end
        return sizes

    return read


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_heads_of_pages_say_what_the_footer_sums(sized: Any, version: str) -> None:
    words = [f"word {n % 1000}" for n in range(50_000)]
    body = write(pa.table({"c": words}), data_page_version=version, data_page_size=1000, write_statistics=True)
    sizes = sized(body)
    column = pq.ParquetFile(io.BytesIO(body)).metadata.row_group(0).column(0)
    assert len(sizes) > 3
    assert sum(sizes) == column.total_uncompressed_size


@given(st.integers(-(2**31), 2**31 - 1))
def test_signed_numbers(value: int) -> None:
    assert _signed((value << 1) ^ (value >> 63)) == value


_ANY_FILE = write(
    pa.table(
        {
            "n": [1.5, None, 3.0],
            "c": pa.array(["a", "b", "a"]),
            "t": pa.array([0, 1, None], pa.timestamp("us")),
            "s": pa.array([[1.0, 2.0], None, [3.0, 4.0]]),
            "y": ["x", "y", "z"],
        }
    )
)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject) -> None:
    """Never anything but records and ``ProtocolError``."""
    body = bytearray(_ANY_FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        records = read_parquet(bytes(body), _TYPED, 5)
    except ProtocolError:
        return
    assert len(records) <= 5


def test_the_listener_takes_and_gives_them_too(listen: Callable[..., Any]) -> None:
    body = write(pa.Table.from_pylist(_RECORDS))
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {_PARQUET}\r\ncontent-length: {len(body)}\r\n\r\n"
    answer = listen().ask(head.encode() + body)
    assert (answer.code, len(json.loads(answer.body)["predictions"])) == (200, 3)
