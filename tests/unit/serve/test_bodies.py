"""CSV and Arrow at ``POST /predict``: the answers and refusals that the same records get in JSON, and no more memory than bytes allow."""

import csv
import io
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import RecordError
from lepton_ray.serve.arrow_body import MEDIA_TYPE, _text_bytes, read_arrow
from lepton_ray.serve.bodies import accepted_form, flatten, reader_of
from lepton_ray.serve.endpoint import Limits, NoMeter
from lepton_ray.serve.protocol import ProtocolError
from lepton_ray.spec.data import DataSpec

from .conftest import build_http_app

_ARROW = MEDIA_TYPE.decode()
_RECORDS = [
    {"age": 30, "income": 10.5, "colour": "red", "size": "S"},
    {"age": 60.5, "income": None, "colour": None, "size": "L"},
    {"age": 1, "income": 1e3, "colour": 'a,"b"\nsüß', "size": "M"},
]
_TYPED = Signature.of(
    DataSpec.model_validate(
        {
            "source": {"kind": "csv", "uri": "unused.csv"},
            "columns": {
                "n": "number",
                "c": "category",
                "t": {"kind": "time", "format": "%d.%m.%Y"},
                "e": {"kind": "time", "format": "epoch_ms"},
                "s": {"kind": "series", "length": 2},
                "y": "category",
            },
            "label": "y",
        }
    ),
    None,
)


@pytest.fixture
def serve(call_app: Any, mixed_package: Path) -> Callable[..., Any]:
    def start(**limits: int) -> Any:
        return call_app(build_http_app(Predictor(open_package(mixed_package)), "demo", Limits(**limits), NoMeter()))

    return start


@pytest.fixture
def client(serve: Callable[..., Any]) -> Any:
    return serve(max_rows=3)


def _csv(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _arrow(table: pa.Table, rows_at_once: int = 2, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows_at_once)
    return bytes(sink.getvalue().to_pybytes())


def _table(records: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(records)


def _post(client: Any, body: bytes, content_type: str, accept: str = "*/*") -> Any:
    return client.post("/predict", content=body, headers={"content-type": content_type, "accept": accept})


@pytest.mark.parametrize("content_type", ["text/csv", "Text/CSV; charset=utf-8", _ARROW])
def test_records_of_all_forms_are_answered_alike(client: Any, content_type: str) -> None:
    wanted = client.post("/predict", json=_RECORDS)
    body = _arrow(_table(_RECORDS)) if content_type == _ARROW else _csv(_RECORDS)
    answer = _post(client, body, content_type)
    assert (answer.status_code, answer.json()) == (200, wanted.json())
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-model-version"] == wanted.json()["version"]


@pytest.mark.parametrize("content_type", [_ARROW, "application/vnd.apache.parquet"])
def test_the_index_that_pandas_writes_is_no_field(client: Any, content_type: str) -> None:
    """A filtered table's numbers of rows, which have no name."""
    order = [2, 0, 1]
    frame = pd.DataFrame(_RECORDS).iloc[order]
    table, sink = pa.Table.from_pandas(frame), io.BytesIO()
    assert table.column_names[-1] == "__index_level_0__"
    pq.write_table(table, sink)
    answer = _post(client, _arrow(table) if content_type == _ARROW else sink.getvalue(), content_type)
    assert (answer.status_code, answer.json()) == (
        200,
        client.post("/predict", json=[_RECORDS[i] for i in order]).json(),
    )
    named = pa.Table.from_pandas(frame.rename_axis("who"))
    assert "records[0].who must be a known field" in _post(client, _arrow(named), _ARROW).json()["error"]


def test_answers_come_in_the_form_that_is_asked_for(client: Any) -> None:
    predictions = client.post("/predict", json=_RECORDS).json()["predictions"]
    names = ["label", *(f"probabilities.{name}" for name in ("no", "maybe", "yes"))]
    expected = [[p["label"], *p["probabilities"].values()] for p in predictions]
    body = orjson.dumps(_RECORDS)
    answer = _post(client, body, "application/json", "text/csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["x-model-version"]
    head, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert head == names
    assert [[row[0], *map(float, row[1:])] for row in rows] == expected
    answer = _post(client, body, "application/json", _ARROW)
    assert answer.headers["content-type"] == _ARROW
    with pa.ipc.open_stream(answer.content) as stream:
        table = stream.read_all()
    assert table.schema.types == [pa.string(), *[pa.float32()] * 3]
    assert table.column_names == names
    assert [list(row.values()) for row in table.to_pylist()] == expected
    error = _post(client, b"x", "application/json", "text/csv")
    assert (error.status_code, error.headers["content-type"]) == (400, "application/json")


def test_flat_columns_have_all_outputs() -> None:
    class _Tensor:
        def __init__(self, name: str, columns: tuple[str, ...] = ()) -> None:
            self.name, self.columns = name, columns

    class _Outputs:
        outputs = (_Tensor("is_anomaly"), _Tensor("value"), _Tensor("probabilities", ("a", "b")))

    outputs = {
        "is_anomaly": np.array([True]),
        "value": np.array([[1.0, 2.0]]),
        "probabilities": np.array([[0.25, 0.5]]),
    }
    columns = flatten(outputs, _Outputs())  # type: ignore[arg-type]
    assert list(columns) == ["is_anomaly", "value.0", "value.1", "probabilities.a", "probabilities.b"]
    form = accepted_form(b"text/csv")
    assert form is not None
    assert (
        form.write(columns)
        == b"is_anomaly,value.0,value.1,probabilities.a,probabilities.b\r\ntrue,1.0,2.0,0.25,0.5\r\n"
    )


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (b"*/*", None),
        (b"text/csv", b"text/csv"),
        (b"application/json, text/csv", None),
        (b"application/json;q=0.5, text/csv", b"text/csv"),
        (b"text/html, TEXT/CSV ;q=0.9, */*;q=0.1", b"text/csv"),
        (b"text/csv;q=0", None),
        (b"text/csv;q=x", None),
        (b"text/html", None),
        (b",;,", None),
        (MEDIA_TYPE, MEDIA_TYPE),
    ],
)
def test_the_header_accept_chooses(accept: bytes, content_type: bytes | None) -> None:
    form = accepted_form(accept)
    assert (form and form.content_type.partition(b";")[0]) == content_type


def test_other_content_types_are_json(client: Any) -> None:
    for content_type in ("application/x-www-form-urlencoded", "application/json; charset=utf-8", "x"):
        assert reader_of(content_type.encode()) is None
        assert _post(client, orjson.dumps(_RECORDS), content_type).status_code == 200


@pytest.mark.parametrize("form", ["text/csv", _ARROW])
def test_a_record_that_breaks_the_signature_is_refused_as_in_json(client: Any, form: str) -> None:
    for change in ({"age": -1}, {"age": None}, {"size": "XL"}, {"x": 1}):
        records = [{**_RECORDS[0], **dict.fromkeys(change)}, {**_RECORDS[0], **change}]
        if "x" not in change:
            records[0] = _RECORDS[0]
        wanted = client.post("/predict", json=records)
        body = _arrow(_table(records)) if form == _ARROW else _csv(records)
        answer = _post(client, body, form)
        assert (answer.status_code, wanted.status_code) == (422, 422)
        assert answer.json()["error"] == wanted.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body must have a line that names the columns, and a further one for each record, got nothing"),
        (
            b"age,size1,S",
            "the body must have a line that names the columns, and a further one for each record, got only names. curl",
        ),
        (b"age,size\n" + b"1,S\n" * 4, "the body must have 1 to 3 records, got more. Split"),
        (b"age,size\n1,S\n\n1\n", "records[1] must have 2 cells between commas, got 1"),
        (b"age;size\n1,5;S\n", "records[0] must have 1 cells between commas, got 2"),
        (b"age,age\n1,2\n", "the first line must name each column once, got 'age' again"),
        (b'age,size\n"1,S\n', "the body must be CSV in UTF-8: unexpected end of data"),
        (b'age,size\n"1"x,S\n', "the body must be CSV in UTF-8: "),
        (b"age,size\n1,\xff\n", "the body must be CSV in UTF-8: "),
    ],
)
def test_csv_that_cannot_be_read_is_refused_with_400(client: Any, body: bytes, message: str) -> None:
    answer = _post(client, body, "text/csv")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)


@pytest.mark.parametrize(("body", "ages"), [(b"age\n30\n\n1\n", [30, None, 1]), (b'"age"\r\n\r\n""\r\n', [None, None])])
def test_an_empty_line_is_the_empty_cell_of_a_single_column(body: bytes, ages: list[Any]) -> None:
    """So write pandas, polars and Arrow; without it the answers would stand beside other rows."""
    read = reader_of(b"text/csv")
    assert read is not None
    assert [record["n"] or None for record in read(body.replace(b"age", b"n"), _TYPED, 9)] == [
        None if age is None else str(age) for age in ages
    ]
    assert len(read(b"n,c\n1,a\n\n2,b\n", _TYPED, 9)) == 2


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_name(client: Any) -> None:
    assert _post(client, b"\xef\xbb\xbfage,size\n1,S\n", "text/csv").status_code == 200


def test_spaces_around_the_names_of_csv_mean_nothing(client: Any) -> None:
    plain, spaced = (_post(client, body, "text/csv") for body in (b"age,size\n1,S\n", b"age , size\n1, S\n"))
    assert (plain.status_code, plain.json()) == (200, spaced.json())
    twice = _post(client, b"age, age\n1,2\n", "text/csv")
    assert (twice.status_code, twice.json()) == (
        400,
        {"error": "the first line must name each column once, got 'age' again"},
    )


def _deltas() -> bytes:
    """A dictionary of which each batch adds a word: together they would be a dictionary for each batch."""
    words, sink = ["S"], pa.BufferOutputStream()
    schema = pa.schema([("size", pa.dictionary(pa.int32(), pa.string()))])
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as writer:
        for number in range(3):
            words.append(f"w{number}")
            column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(words))
            writer.write_batch(pa.record_batch([column], schema=schema))
    return sink.getvalue().to_pybytes()


def test_a_column_of_no_feature_is_not_read(client: Any) -> None:
    """Its views may all be of the same bytes: checking them takes their product."""
    wrong = pa.Array.from_buffers(pa.string_view(), 1, [None, pa.py_buffer(b"\xff" * 16)])
    answer = _post(client, _arrow(pa.table({"age": [1.0], "size": ["S"], "note": wrong})), _ARROW)
    assert (answer.status_code, "note" in answer.json()["error"]) == (422, True), "its name is looked at"


def _rows(rows: int) -> pa.Table:
    return pa.table({"age": [1.0] * rows, "size": ["S"] * rows})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body must be an Arrow stream: "),
        (b"age,size\n1,S\n", "the body must be an Arrow stream: "),
        (b"ARROW1\0\0" + b"x" * 99, "the body must be an Arrow stream: it is of Arrow's file format (Feather)"),
        (_arrow(_rows(3))[:-300], "the body must be an Arrow stream: "),
        (_arrow(_rows(3), compression="zstd"), "the buffers of an Arrow stream must come without compression"),
        (_arrow(_rows(3), compression="lz4"), "the buffers of an Arrow stream must come without compression"),
        (_arrow(_rows(4)), "the body must have 1 to 3 records, got 4. Split"),
        (_arrow(_rows(0)), "the body must have 1 to 3 records, got 0"),
        (
            _arrow(pa.table({"age": pa.Array.from_buffers(pa.null(), 1 << 30, [None])}), 1 << 30),
            "the body must have 1 to 3 records, got ",
        ),
        (
            _arrow(pa.table({"size": pa.array(["S"]).dictionary_encode()}), compression="zstd"),
            "the buffers of an Arrow stream must come without compression",
        ),
        (_deltas(), "the dictionaries of an Arrow stream must come whole, not in deltas"),
        (
            _arrow(pa.table({"age": pa.array(["1"], pa.string_view())})),
            "age must be of a type that its kind 'number' is",
        ),
        (_arrow(pa.table({"age": pa.array([{"a": 1}])})), "age must be of a type that its kind 'number' is read from"),
        (_arrow(pa.table({"size": pa.array([b"S"])})), "size must be of a type that its kind 'category' is read from"),
        (_arrow(pa.table([[1], [2]], ["age", "age"])), "the schema must name each column once"),
    ],
)
def test_arrow_that_cannot_be_read_is_refused_with_400(client: Any, body: bytes, message: str) -> None:
    answer = _post(client, body, _ARROW)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)
    assert len(answer.content) < 500


def test_columns_without_bytes_are_bounded_too(serve: Callable[..., Any]) -> None:
    table = pa.table({f"x{n}": pa.nulls(4000) for n in range(1100)})
    answer = _post(serve(max_rows=4096), _arrow(table, 4000), _ARROW)
    assert (answer.status_code, "at most 4194304 values" in answer.json()["error"]) == (400, True)


def test_offsets_outside_their_buffer_are_refused(client: Any) -> None:
    offsets = pa.py_buffer(np.array([0, 1 << 20, 1], np.int32))
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"S")])
    answer = _post(client, _arrow(pa.table({"age": [1.0, 2.0], "size": broken})), _ARROW)
    assert answer.status_code == 400


def test_an_entry_of_a_dictionary_is_made_once_for_all_rows() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0, 0, None], pa.int8()), pa.array(["x" * 1000]))
    records = read_arrow(_arrow(pa.table({"c": words})), _TYPED, 3)
    assert records[0]["c"] is records[1]["c"]
    assert records[2]["c"] is None


def test_a_word_is_bounded_in_all_its_rows() -> None:
    """The model has a copy of it for each."""
    for kind, large in ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())):
        for value_type in (kind, large):
            words = pa.array(["unused", "x" * (1 << 20), None], value_type)
            counted = [
                _text_bytes(pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), words[start:]))
                for indices, start in (([0, 1, 1, 2, None], 0), ([0, 0, 1], 1), ([], 0), ([None], 0))
            ]
            assert counted == [6 + (2 << 20), 2 << 20, 0, 0]
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 65, pa.int8()), pa.array(["x" * (1 << 20)]))
    with pytest.raises(ProtocolError, match="at most 67108864 bytes of text"):
        read_arrow(_arrow(pa.table({"c": words}), 65), _TYPED, 65)
    assert len(read_arrow(_arrow(pa.table({"c": words[:64]}), 65), _TYPED, 65)) == 64


def test_a_dictionary_is_not_read_again_for_each_batch() -> None:
    words = pa.array([f"{number:x}" for number in range(500_000)])
    indices = pa.array(range(100), pa.int32())
    table = pa.table({"c": pa.DictionaryArray.from_arrays(indices, words)})
    begun = time.process_time()
    records = read_arrow(_arrow(table, 1), _TYPED, 100)
    assert time.process_time() - begun < 3  # 7 s for lists of all words
    assert [record["c"] for record in records] == words[:100].to_pylist()
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 140, pa.int32()), words)
    with pytest.raises(ProtocolError, match="as many words"):
        read_arrow(_arrow(pa.table({"c": many}), 1), _TYPED, 140)


def test_many_names_of_columns_are_compared_in_no_time(client: Any) -> None:
    names = [f"a{number}" for number in range(20_000)]
    begun = time.process_time()
    answer = _post(client, ",".join([*names, names[-1]]).encode(), "text/csv")
    assert time.process_time() - begun < 2  # 16 s where each was counted
    assert (answer.status_code, "got 'a19999' again" in answer.json()["error"]) == (400, True)


def test_typed_columns_give_what_their_texts_give() -> None:
    """A time is read whatever the format of its texts, as it is in training."""
    moment = datetime(2024, 2, 29, 12, 30, 0, 5, UTC)
    table = pa.table(
        {
            "n": pa.array([1.5, float("nan")], pa.float32()),
            "c": pa.array([2, None], pa.int8()),
            "t": pa.array([moment, None], pa.timestamp("ns", "Europe/Berlin")),
            "e": pa.array([moment.date(), None], pa.date32()),
            "s": pa.array([[1, 2.5], None], pa.list_(pa.float64(), 2)),
            "y": pa.array([b"not read"] * 2),
        }
    )
    feeds = _TYPED.encode(read_arrow(_arrow(table), _TYPED, 2))
    midnight = datetime(2024, 2, 29, tzinfo=UTC)
    np.testing.assert_array_equal(feeds["numbers"], [[1.5], [np.nan]])
    np.testing.assert_array_equal(feeds["times"], [[moment.timestamp(), midnight.timestamp()], [np.nan] * 2])
    assert feeds["categories"].tolist() == [["2"], [""]]
    np.testing.assert_array_equal(feeds["series_s"], [[1, 2.5], [np.nan] * 2])


def test_a_decimal_is_read_as_its_text_is() -> None:
    texts = ["0.70", "1.20", "9.87", "-0.07"]
    table = pa.table({"n": pa.array([*texts, None]).cast(pa.decimal128(10, 2))})
    numbers = _TYPED.encode(read_arrow(_arrow(table), _TYPED, 5))["numbers"]
    assert numbers[:4, 0].tolist() == [float(text) for text in texts]
    assert np.isnan(numbers[4, 0])


def test_a_time_outside_all_years_is_refused() -> None:
    far = pa.array([1 << 60], pa.timestamp("s"))
    for name in ("t", "e"):
        records = read_arrow(_arrow(pa.table({name: far})), _TYPED, 1)
        with pytest.raises(RecordError, match=rf"records\[0\].{name} .*got 'a time outside the years 1 to 9999'"):
            _TYPED.encode(records)


def test_the_listener_takes_and_gives_them_too(listen: Callable[..., Any]) -> None:
    body = _csv(_RECORDS[:1])
    head = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\naccept: text/csv\r\n"
    answer = listen().ask(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert (answer.code, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert answer.body.startswith(b"label,probabilities.no,probabilities.maybe,probabilities.yes\r\n")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_streams_are_refused_or_read(data: st.DataObject) -> None:
    """Never anything but records and ``ProtocolError``."""
    body = bytearray(_ANY_STREAM)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        records = read_arrow(bytes(body), _TYPED, 5)
    except ProtocolError:
        return
    assert len(records) <= 5


_ANY_STREAM = _arrow(
    pa.table(
        {
            "n": [1.5, None, 3.0],
            "c": pa.array(["a", "b", "a"]).dictionary_encode(),
            "t": pa.array([0, 1, None], pa.timestamp("us")),
            "s": pa.array([[1.0, 2.0], None, [3.0, 4.0]]),
            "y": ["x", "y", "z"],
        }
    )
)


def test_a_long_cell_is_read_as_in_json(serve: Callable[..., Any]) -> None:
    client, long = serve(), "x" * 200_000
    whole = client.post("/predict", json=[{"age": 30, "colour": long, "size": "S"}])
    table = client.post("/predict", content=f"age,colour,size\n30,{long},S\n", headers={"content-type": "text/csv"})
    assert (table.status_code, table.json()) == (whole.status_code, whole.json()) == (200, whole.json())
