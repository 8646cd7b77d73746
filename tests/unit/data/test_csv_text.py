"""CSV reading against Python's csv module, with chunk borders anywhere, and planted faults that must all be told apart."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import DataError
from lepton_ray.data import csv_text
from lepton_ray.data.csv_records import MAX_RECORD_BYTES, find_records
from lepton_ray.spec.data import IgnoredColumn, NumberColumn, TextColumn

HEAD = 4 << 20
BOM = "\ufeff"
BREAK = re.compile(r"\r\n|\n|\r")
PROPERTY = settings(max_examples=100, deadline=None)
CELLS = st.text(st.sampled_from('ab5 ,;\t"\n\r\x00\x1c\x85\u2028\U0001f600é'), max_size=6)
BREAKS = st.sampled_from(["\n", "\r\n", "\r"])


def read(content, names=("a", "b"), delimiter=",", size=1 << 23):
    """Records in the order of their lines, as dicts."""
    data = content if isinstance(content, bytes) else content.encode()
    columns = {name: TextColumn(kind="text") for name in names}
    file = csv_text.open_file(csv_text.CsvFile("file.csv", delimiter, columns), data[:HEAD])
    chunks = list(csv_text.cut_csv(io.BytesIO(data), "f.csv", delimiter, size))
    assert all(data.startswith(chunk.data, chunk.start) for chunk in chunks)
    cuts = list(csv_text.find_cuts(io.BytesIO(data), "f.csv", delimiter, size))
    assert cuts == [(chunk.start, chunk.start + len(chunk.data), chunk.line, chunk.num_lines) for chunk in chunks]
    records = parse(file, chunks)
    assert records == parse(file, [replace(chunk, num_lines=None) for chunk in chunks])  # it spares work, no more
    return records


def parse(file, chunks):
    blocks = [block for chunk in chunks if (block := csv_text.parse_chunk(file, chunk))]
    return sorted((row for block in blocks for row in records_of(block)), key=lambda row: row["_line"])


def records_of(block):
    texts = block.texts(np.arange(len(block.lines)))
    for cells, line, text in zip(block.cells.to_pylist(), block.lines.tolist(), texts, strict=True):
        yield {**{k: v or "" for k, v in cells.items()}, "_line": line, "_text": text, "_reason": None}
    for bad in block.bad:
        yield {"_line": bad.line, "_text": bad.text, "_reason": bad.reason, "_detail": bad.detail}


def rows_of(records, names=("a", "b")):
    return [[row[name] for name in names] for row in records if row["_reason"] is None]


def faults_of(records):
    return [(row["_line"], row["_reason"], row["_text"]) for row in records if row["_reason"] is not None]


def quote(cell, delimiter, force):
    needs = any(char in cell for char in (delimiter, '"', "\n", "\r"))
    return '"' + cell.replace('"', '""') + '"' if needs or force else cell


def line_of(text, position):
    """Physical line, from 1, of a position."""
    return 1 + len(BREAK.findall(text[:position]))


def chunked(content, size, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_text, "_MIN_READ_BYTES", size)
        return read(content, size=size, **options)


@st.composite
def tables(draw):
    """Cells, and a text that holds them: any line ends, quotes where needed and elsewhere, with and without a BOM."""
    delimiter = draw(st.sampled_from(",;\t| "))
    rows = draw(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8))
    text = BOM if draw(st.booleans()) else ""
    text += delimiter.join("abc") + draw(BREAKS)
    places = []
    for index, row in enumerate(rows):
        places.append(len(text))
        text += delimiter.join(quote(cell, delimiter, draw(st.booleans())) for cell in row)
        is_last = index == len(rows) - 1
        text += draw(BREAKS) if not is_last or draw(st.booleans()) else ""
    return text, delimiter, [list(row) for row in rows], [line_of(text, place) for place in places]


@PROPERTY
@given(table=tables(), chunk=st.integers(1, 40))
def test_cells_and_lines_come_back_whatever_the_chunks(table, chunk):
    text, delimiter, rows, lines = table
    for size in (1 << 20, chunk):
        records = chunked(text, size, names=("a", "b", "c"), delimiter=delimiter)
        assert faults_of(records) == []
        assert rows_of(records, "abc") == rows
        assert [record["_line"] for record in records] == lines


@PROPERTY
@given(st.text(st.sampled_from('aé,"\n\r'), max_size=30), st.integers(1, 12))
def test_any_text_is_accounted_for_whatever_the_chunks(body, chunk):
    text = "a,b\n" + body
    records = read(text)
    assert chunked(text, chunk) == records
    place = len("a,b\n")
    for record in records:  # texts and line ends make up the file: nothing is lost, nothing comes twice
        gap = re.compile(r"[\r\n]*").match(text, place)
        place = gap.end()
        assert record["_line"] == line_of(text, place)
        assert text.startswith(record["_text"], place)
        place += len(record["_text"])
    assert text[place:].strip("\r\n") == ""


@PROPERTY
@given(st.text(st.sampled_from('ab,"\n\r '), max_size=20))
def test_stray_quotes_give_the_cells_of_pythons_csv_module(body):
    records = read("a,b\n" + body)
    if any(reason == "malformed_quotes" for _, reason, _ in faults_of(records)):
        return  # the csv module takes all up to the end of the file into one cell
    oracle = [row for row in csv.reader(io.StringIO("a,b\n" + body, newline="")) if row][1:]
    assert rows_of(records) == [row for row in oracle if len(row) == 2]
    assert [reason for _, reason, _ in faults_of(records)] == ["ragged_row"] * sum(len(row) != 2 for row in oracle)


@pytest.mark.parametrize("delimiter", list(",;:|\t ^]-[\\%$.*+?{}()&~#x0'/"))
def test_any_delimiter(delimiter):
    text = f'a{delimiter}b\n1{delimiter}"2{delimiter}""3"\n'
    rows = [["1", f'2{delimiter}"3']]
    assert rows_of(read(text, delimiter=delimiter)) == rows
    assert rows_of(read(f'{text}5"y{delimiter}z\n', delimiter=delimiter)) == [*rows, ['5"y', "z"]]


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_planted_faults_keep_line_reason_and_text(chunk):
    lines = [
        b'"b",a,note',  # 1
        b"1,2,ok",  # 2
        b"",  # 3
        b"1,2",  # 4 ragged
        b'1,"two',  # 5-6 one record
        b'lines",x',
        b'5" pipe,2,6" pipe',  # 7
        b"1,2,3,4",  # 8 ragged
        b"1,\xff\xfe,3",  # 9 not UTF-8
        "é,\U0001f600,3".encode(),  # 10
        b"   ",  # 11 ragged
        b'1,"open,3',  # 12 never closed
        b"7,8,9",  # 13
        b"b,a,note",  # 14 the header again is a row: cleaning judges its cells
        b"x,\x00,z",  # 15
    ]
    records = chunked(b"\r\n".join(lines), chunk)
    assert faults_of(records) == [
        (4, "ragged_row", "1,2"),
        (8, "ragged_row", "1,2,3,4"),
        (9, "invalid_utf8", "1,\\xff\\xfe,3"),
        (11, "ragged_row", "   "),
        (12, "malformed_quotes", '1,"open,3'),
    ]
    good = [["2", "1"], ["two\r\nlines", "1"], ["2", '5" pipe'], ["\U0001f600", "é"], ["8", "7"], ["a", "b"]]
    assert rows_of(records) == [*good, ["\x00", "x"]]
    assert [r["_line"] for r in records if r["_reason"] is None] == [2, 5, 7, 10, 13, 14, 15]
    assert len(records) == 12


def test_a_cell_that_is_open_at_the_end_of_a_chunk_waits_for_the_rest():
    """Also where a stray quote before it makes a long chunk irregular."""
    line = b'5" pipe,' + b"x" * 1000 + b"\n"
    data = line * (2 * MAX_RECORD_BYTES // len(line))
    records = find_records(data + b'1,"open\nline', ",", is_last=False)
    assert (records.next_start, len(records.starts)) == (len(data), len(data) // len(line))
    assert not records.is_unclosed.any()


def test_a_quote_that_is_never_closed_does_not_hold_up_what_follows():
    line = b"2," + b"x" * 1000 + b"\n"
    data = b'1,"open\n' + line * (3 * MAX_RECORD_BYTES // len(line))
    records = find_records(data, ",", is_last=False)
    assert records.next_start > len(data) - 2 * len(line)
    assert records.is_unclosed.tolist() == [True] + [False] * (len(records.starts) - 1)


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        ("a,c", "the header lacks b"),
        ("A,B", "the header lacks a, b"),
        ("a,b,b", "the header repeats b"),
        ('"a,b', "the header lacks a, b"),
        ("a;b", "the header must have ',' between names, got ';'"),
        ('"b" \t a\tc', "the header must have ',' between names, got '\\t'"),
        ("a;c", "the header lacks a, b"),
        ("c,a;b", "the header lacks a, b"),
    ],
)
def test_a_wrong_header_condemns_every_record(header, detail):
    records = read(f"{header}\n1,2\n\n3,4,5\n")
    assert faults_of(records) == [(2, "wrong_header", "1,2"), (4, "wrong_header", "3,4,5")]
    assert {record["_detail"] for record in records} == {detail}


def test_a_header_that_is_not_utf8_condemns_every_record():
    assert faults_of(read(b"a,b,\xff\n1,2,3\n")) == [(2, "wrong_header", "1,2,3")]


def test_a_repeated_column_that_is_not_read_is_no_fault():
    assert rows_of(read("x,a,x,b,\n0,1,0,2,\n")) == [["1", "2"]]


@pytest.mark.parametrize("content", ["", "a,b", "a,b\n", "a,b\r", BOM, BOM + "\n", "\n\r\n\n", "\n\na,b\n\n", "x,y"])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_files_without_records(content, chunk):
    assert chunked(content, chunk) == []


@pytest.mark.parametrize(("before", "line"), [("", 2), ("\n\n", 4), ("\r\n\r", 4)])
def test_blank_lines_before_the_header_count_as_lines(before, line):
    assert [record["_line"] for record in read(f"{before}a,b\n1,2")] == [line]


@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
@pytest.mark.parametrize("header", ["a,b", '"a","b"', " a , b "])
def test_byte_order_marks_belong_to_no_cell(chunk, header):
    """Files with a mark that were joined leave one inside."""
    text = f"{BOM}{header}\n1,2\n{BOM}3,4\n{BOM}\n"
    assert rows_of(chunked(text, chunk)) == [["1", "2"], ["3", "4"]]
    assert rows_of(chunked(f'{text}{BOM}"5",6\n', chunk)) == [["1", "2"], ["3", "4"], ["5", "6"]]


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("chunk", [1 << 16, 1 << 22])
def test_a_very_long_record_is_a_row(quoted, chunk):
    long = "x" * (3 << 20)
    cell = f'"{long}"' if quoted else long
    records = chunked(f'a,b\n1,2\n{cell},y\n5" z,4\n', chunk)
    assert faults_of(records) == []
    assert [row[0][:4] for row in rows_of(records)] == ["1", "xxxx", '5" z']
    assert len(records[1]["a"]) == len(long)


@pytest.mark.parametrize("chunk", [1 << 16, 1 << 23])
def test_a_stray_quote_takes_no_more_than_its_line(chunk):
    """The next quote is megabytes away: what lies between are records, not one cell."""
    filler = f"{'1' * 400},2\n" * 5_000
    records = chunked(f'a,b\n"x,y\n{filler}p,q"\n', chunk)
    assert faults_of(records) == [(2, "malformed_quotes", '"x,y')]
    assert len(records) == 5_002
    assert (records[-1]["_line"], records[-1]["b"]) == (5_003, 'q"')


def test_the_text_is_kept_of_rows_too():
    record = read('a,b\n "x" ,"y\nz"\n')[0]
    assert record["_text"] == ' "x" ,"y\nz"'


@pytest.mark.parametrize("content", ["a,b\n1,2\n", BOM + '"a" , b ,c\n1,2', "a,b", " a,b \r1,2\r"])
def test_header_names(content):
    names = csv_text.read_header(content.encode(), ",")
    assert [name for name in names if name != "c"] == ["a", "b"]


@pytest.mark.parametrize("content", ["", "\n", BOM])
def test_no_header(content):
    assert csv_text.read_header(content.encode(), ",") == []


@pytest.mark.parametrize("content", [b"a,b\n1,2\n" + b"x" * 40_000_000, b'a,b\n1,"' + b"x" * 40_000_000])
def test_a_file_without_line_ends_is_not_held_whole(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(csv_text, "_MAX_LINE_BYTES", 10_000_000)
    stream = io.BytesIO(content)
    with pytest.raises(DataError, match=r"f.csv must have records of at most 9 MiB, got a longer one"):
        list(csv_text.cut_csv(stream, "f.csv", ",", 1 << 20))
    assert stream.tell() < 20_000_000


@pytest.mark.parametrize("number", ["2", "NA", "x"])
def test_what_other_cells_hold_does_not_make_a_text_missing(number):
    """A word for a missing number is found again without them; an ignored column keeps it, and to tags it may be a word for none."""
    columns = {"key": IgnoredColumn(kind="ignored"), "x": NumberColumn(kind="number")}
    data = f"key,x\nNA,1\nB,{number}\n".encode()
    file = csv_text.open_file(csv_text.CsvFile("f.csv", ",", columns, ("NA",)), data)
    (chunk,) = csv_text.cut_csv(io.BytesIO(data), "f.csv", ",", 1 << 23)
    assert csv_text.parse_chunk(file, chunk).cells.column("key").to_pylist() == ["NA", "B"]


@pytest.mark.parametrize("ragged", [b"", b"only\n"])
def test_bytes_that_are_no_text_are_found_in_columns_that_are_not_read_too(ragged):
    records = read(b"a,b,note\n1,2,caf\xe9\n3,4,x\n" + ragged)
    assert faults_of(records)[0] == (2, "invalid_utf8", "1,2,caf\\xe9")
    assert rows_of(records) == [["3", "4"]]


def test_a_long_cell_beside_odd_quotes_takes_nothing_from_other_threads():
    """Python's limit on cells is one for the process: who set it for a record would take it from another that is parsed meanwhile."""
    body = b'a,b\nx"y,' + b"z" * 200_000 + b"\n"
    limit = csv.field_size_limit()
    assert rows_of(read(body)) == [['x"y', "z" * 200_000]]
    assert csv.field_size_limit() == limit > 200_000
