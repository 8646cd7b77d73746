"""JSON lines: parsed at once or line by line, every record is a row or is told apart, and the two ways agree on all bytes."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import DataError
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import json_lines, lines, open_connector
from lepton_ray.data.connectors.lines import Chunk
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import read_all

from . import samples

PROPERTY = settings(max_examples=120, deadline=None)
COLUMNS = {"a": "category", "b": "number", "s": {"kind": "series", "length": 2}, "t": "time", "x": "text"}
DATA = samples.section("jsonl", "f.jsonl", COLUMNS)


def read(content: bytes, names: Sequence[str] = ("a", "b")) -> list[tuple[int, Any, str]]:
    """Line, cells or reason, original text of each record."""
    data = samples.section("jsonl", "f.jsonl", dict.fromkeys(names, "category"))
    block = json_lines.read_carefully(Chunk(content, 1), "f.jsonl", data.columns)
    texts = block.texts(block.lines * 0 + range(len(block.lines))) if block.texts else []
    good = [
        (int(n), list(row.values()), text)
        for n, row, text in zip(block.lines, block.cells.to_pylist(), texts, strict=True)
    ]
    return sorted([*good, *((bad.line, bad.reason, bad.text) for bad in block.bad)])


def test_faults_keep_line_reason_and_text() -> None:
    content = [
        b'\xef\xbb\xbf{"a": "x", "b": 1}',  # 1
        b"",  # 2
        b'{"a": "y"',  # 3
        b"[1, 2]",  # 4
        b'"text"',  # 5
        b'{"a": {"c": 1}, "b": 2}',  # 6
        b'{"a": "\xff", "b": 2}',  # 7
        b'{"a": NaN, "b": 2}',  # 8
        b'{"a": "\\ud800", "b": 2}',  # 9
        b'  {"b": null, "other": [1]}\r',  # 10
        b'{"a": ' + b"[" * 2000,  # 11
        b"null",  # 12
    ]
    records = read(b"\n".join(content))
    syntax = [(line, "invalid_json") for line in (3, 4, 5, 8, 9, 11, 12)]
    bad = [(line, found) for line, found, _ in records if isinstance(found, str)]
    assert bad == sorted([*syntax, (6, "type_error"), (7, "invalid_utf8")])
    assert [(line, found) for line, found, _ in records if isinstance(found, list)] == [
        (1, ["x", "1"]),
        (10, [None, None]),
    ]
    assert records[1][2] == '{"a": "y"'
    assert records[5][2] == '{"a": "\\xff", "b": 2}'


def typed(block: Any) -> tuple[list[Any], list[Any]]:
    good, bad = check_block(block, DATA)
    removed = bad.select(["_line", "_reason", "_detail", "_text"]).to_pylist()
    return good.select([*COLUMNS, "_line"]).to_pylist(), sorted(removed, key=lambda record: record["_line"])


def assert_ways_agree(content: bytes) -> bool:
    """Whether the fast way was taken."""
    chunk = Chunk(content, 5)
    fast = json_lines.read_fast(chunk, "f", DATA.columns)
    if fast is not None:
        assert typed(fast) == typed(json_lines.read_carefully(chunk, "f", DATA.columns))
    return fast is not None


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 0.1, -0.0, 1e-7, 1e22, 1e300, 5e-324]),
    st.sampled_from(
        ["", " x ", "NaN", "Information: Inf", "1", "2024-01-31", "\u0000", "é", "\u2028", "}\n{", '"', "a\\b"]
    ),
    st.text(max_size=4),
    st.lists(st.none() | st.integers(0, 3) | st.floats(-2, 2), max_size=3),
    st.just({"c": [{}]}),
)
TYPED = st.fixed_dictionaries(
    {},
    optional={
        "a": st.none() | st.sampled_from(["x", "y"]),
        "b": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "s": st.none() | st.lists(st.none() | st.floats(-2, 2), min_size=2, max_size=2),
        "t": st.none() | st.sampled_from(["2024-01-31", "2024-01-31T12:00:00+01:00"]),
        "x": st.none() | st.text(max_size=5),
        "other": VALUES,
    },
)


@PROPERTY
@given(st.lists(TYPED, min_size=1, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_plain_files_take_the_fast_way_and_agree(records: list[dict[str, Any]], end: bytes) -> None:
    content = end.join(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") for record in records)
    is_fast = assert_ways_agree(content)
    has_nan = b"NaN" in content or b"Inf" in content
    assert is_fast or has_nan or any("b" in r and isinstance(r["b"], int) and abs(r["b"]) > 2**53 for r in records)


@PROPERTY
@given(st.lists(st.dictionaries(st.sampled_from([*COLUMNS, "other", ""]), VALUES, max_size=4), max_size=6))
def test_files_of_mixed_types_agree(records: list[dict[str, Any]]) -> None:
    assert_ways_agree(b"\n".join(json.dumps(record).encode() for record in records) + b"\n")


PIECES = [
    b'{"a":1}',
    b'{"b":2}',
    b"{}",
    b"null",
    b"[1]",
    b"{",
    b"}",
    b",",
    b"\n",
    b" ",
    b"\r",
    b"\xef\xbb\xbf",
    b"\xff",
    b"NaN",
]
PIECES += [
    b'{"b":NaN}',
    b'{"q":-Inf}',
    b'{"a":"x"}',
    b'{"a":',
    b'"y"}',
    b'{"a":1,"a":2}',
    b'{"b":1e400}',
    b'{"a":"\\ud800"}',
    b"\x00",
]
PIECES += [
    b'{"q":[{',
    b"}]}",
    b'{"q":' + b"[" * 1100 + b"]" * 1100 + b"}",
    b'{"a":"\x01"}',
    b'{"b":01}',
    b"//x",
    b'{"s":[1,2]}',
]


@PROPERTY
@example([b'{"a":1}', b"null", b'{"a":2}'])
@example([b'{"a":1}{"a":2}', b"\n", b'{"a":', b"\n", b"1}"])
@example([b'{"q":' + b"[" * 1100 + b"]" * 1100 + b"}"])
@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_whatever_the_bytes_both_ways_agree(pieces: list[bytes]) -> None:
    assert_ways_agree(b"".join(pieces))


@PROPERTY
@given(
    st.lists(TYPED, min_size=1, max_size=4), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4)
)
def test_damaged_files_agree(records: list[dict[str, Any]], changes: list[tuple[float, int]]) -> None:
    content = bytearray(b"\n".join(json.dumps(record).encode() for record in records))
    for place, value in changes:
        content[int(place * len(content))] = value
    assert_ways_agree(bytes(content))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False))),
    st.integers(1, 30),
    st.integers(1, 60),
)
def test_values_come_back_whatever_the_cuts(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, Any]], chunk: int, part: int
) -> None:
    rows = [{"a": text, "b": value} for text, value in values if not (isinstance(value, float) and math.isinf(value))]
    path = tmp_path_factory.mktemp("json") / "f.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    data = samples.section("jsonl", path, {"a": "text", "b": "category"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        patch.setattr("lepton_ray.data.connectors.files.PART_BYTES", part)
        connector = open_connector(data)
        blocks = [block for parts in connector.parts() for block in connector.read(parts)]
    assert [line for block in blocks for line in block.lines.tolist()] == list(range(1, 2 * len(rows), 2))
    cells = [row for block in blocks for row in block.cells.to_pylist()]
    for cell, row in zip(cells, rows, strict=True):
        assert cell["a"] == row["a"]
        _assert_same_value(cell["b"], row["b"])


def _assert_same_value(cell: Any, value: Any) -> None:
    if value is None or isinstance(value, bool):
        assert cell in ({None: None, True: "true", False: "false"}[value], value)
    elif isinstance(value, int) and -(2**63) <= value < 2**64:
        assert str(cell) == str(value)
    else:
        assert float(cell) == float(value)


@pytest.mark.parametrize("content", ["", "\n\n", "  \n\t\r\n", "\ufeff", "\ufeff\n"])
def test_files_without_records(tmp_path: Path, content: str) -> None:
    (tmp_path / "f.jsonl").write_text(content, encoding="utf-8")
    data = samples.section("jsonl", tmp_path, {"a": "text"})
    assert read_all(data, open_connector(data)) == ([], [])


def test_numbers_as_text_in_some_records_mean_the_same_in_any_block(
    tmp_path: Path, cut_small: Callable[[int, int], Callable[[], None]]
) -> None:
    """A number of JSON beside texts with a decimal comma is no text with a decimal point."""
    (tmp_path / "f.jsonl").write_text('{"n": 1.5}\n{"n": "2,5"}\n{"n": 1e22}\n{"n": 7}\n')
    data = samples.section("jsonl", tmp_path, {"n": {"kind": "number", "decimal": ",", "thousands": "."}})
    whole = read_all(data, open_connector(data))
    assert [row["n"] for row in whole.rows] == [1.5, 2.5, 1e22, 7.0]
    cut_small(1, 1)()
    assert read_all(data, open_connector(data)) == whole


def test_tags_are_the_same_line_by_line_and_all_at_once(tmp_path: Path) -> None:
    values = [["b", "a"], [], None, ["a", None], [["a"]], ["x"]]
    rows = "".join(json.dumps({"n": number, "t": value}) + "\n" for number, value in enumerate(values))
    source = {"kind": "jsonl", "uri": str(tmp_path)}
    data = DataSpec.model_validate({"source": source, "columns": {"n": "number", "t": "tags"}, "label": "t"})
    found = []
    for texts in ("", '{"n": 6, "t": "a|c"}\n{"n": 7, "t": "[\\"c\\"]"}\n{"n": 8, "t": {"a": 1}}\n{"n": 9, "t": 5}\n'):
        (tmp_path / "f.jsonl").write_text(rows + texts)
        found.append(read_all(data, open_connector(data)))
    assert [(row["n"], row["t"]) for row in found[0].rows] == [(0, "a|b"), (1, ""), (5, "x")]
    assert [(row["n"], row["t"]) for row in found[1].rows[3:]] == [(6, "a|c"), (7, "c"), (9, "5")]
    reasons = [[(r["_line"], r["_reason"]) for r in side.removed] for side in found]
    assert sorted(reasons[0]) == [(3, "missing_label"), (4, "type_error"), (5, "type_error")]
    assert sorted(reasons[1]) == [*sorted(reasons[0]), (9, "type_error")]


@pytest.mark.parametrize("value", ["9" * 5000, f"[{'9' * 5000}, 1]"])
def test_numbers_that_are_too_large_are_no_json_beside_whatever_lines(value: str) -> None:
    kind: dict[str, Any] = {"kind": "series", "length": 2} if value[0] == "[" else {"kind": "number"}
    data = samples.section("jsonl", "f.jsonl", {"a": kind})
    first = '{"a": [1, 2]}\n' if value[0] == "[" else '{"a": 1}\n'
    assert json_lines.read_fast(Chunk((first * 30).encode(), 1), "f", data.columns) is not None
    assert json_lines.read_fast(Chunk(f'{first * 30}{{"a": {value}}}\n'.encode(), 1), "f", data.columns) is None


def test_whole_numbers_beyond_64_bits_keep_their_digits_as_texts(tmp_path: Path) -> None:
    """As they do in a CSV file; beside them floats stay such, and what is a number is one."""
    large = [123456789012345678901, 123456789012345678902, -9223372036854775809, 2**64 - 1, 7]
    rows = [{"c": n, "i": n, "n": n, "t": [n, "a"], "f": 1e20} for n in large]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"c": "category", "i": "ignored", "n": "number", "f": "category", "t": "tags"}
    data = DataSpec.model_validate(
        {"source": {"kind": "jsonl", "uri": str(tmp_path)}, "columns": columns, "label": "t"}
    )
    found = read_all(data, open_connector(data)).rows
    assert [row["c"] for row in found] == [row["i"] for row in found] == list(map(str, large))
    assert [row["n"] for row in found] == list(map(float, large))
    assert {row["f"] for row in found} == {"1e+20"}
    assert [row["t"] for row in found] == ["|".join(sorted([str(n), "a"])) for n in large]
    deep = f'{{"c": {large[0]}, "other": {"[" * 1000}{"]" * 1000}}}\n'
    (tmp_path / "f.jsonl").write_text(deep)
    data = samples.section("jsonl", tmp_path, {"c": "category"})
    assert len(read_all(data, open_connector(data)).rows) == 1


def test_a_file_without_line_ends_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 100)
    (tmp_path / "array.json").write_text(json.dumps([{"a": 1}] * 500))
    data = samples.section("jsonl", tmp_path, {"a": "number"})
    with pytest.raises(DataError, match=r"array\.json must have lines of at most"):
        read_all(data, open_connector(data))


def test_the_first_records_are_those_that_are_objects(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text('{"b": 1, "a": 2}\nno json\n{"a": 1, "c": [3]}\n[1]\n')
    connector = json_lines.JsonLinesConnector(
        DataSpec.model_validate({"source": {"kind": "jsonl", "uri": str(tmp_path)}, "columns": {"a": "number"}})
    )
    assert connector.first_records() == [{"b": 1, "a": 2}, {"a": 1, "c": [3]}]
