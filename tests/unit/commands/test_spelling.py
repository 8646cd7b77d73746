"""How files are written: what people's spreadsheets and databases give, and what only looks like it."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from lepton_ray.artifacts.numbers import parse_numbers
from lepton_ray.artifacts.times import read_times
from lepton_ray.commands.spelling import guess_delimiter, guess_encoding, guess_number, guess_time, has_decimal_points


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("cp1252", ["café crème", "São Paulo", "señor Núñez", "hôtel"]),
        ("cp1252", ["Köln", "Mölln", "Größe", "Müller & Söhne"]),
        ("cp1251", ["Москва", "хороший товар", "цена"]),
        ("cp1255", ["שלום עולם", "ירושלים", "תל אביב"]),
        ("koi8_r", ["Москва", "хороший товар"]),
        ("gb18030", ["北京市朝阳区", "价格很好", "质量不错，推荐购买"]),
        ("big5", ["台北市", "很好的商品"]),
        ("shift_jis", ["東京都", "とても良い商品です"]),
        ("euc_kr", ["서울특별시", "좋은 상품입니다"]),
        ("utf-16", ["café", "北京"]),
    ],
)
def test_an_encoding_is_one_that_reads_the_letters(encoding: str, words: list[str]) -> None:
    text = "id,what,price\n" + "".join(f"{i},{words[i % len(words)]},{i * 3.7:.2f}\n" for i in range(100))
    found = guess_encoding(text.encode(encoding))
    assert found is not None
    assert text.encode(encoding).decode(found) == text


def test_of_encodings_that_give_the_same_letters_the_usual_one_is_taken() -> None:
    head = "größe,y\n" + "café,2\n" * 50
    assert head.encode("cp1250") == head.encode("cp1252")
    assert guess_encoding(head.encode("cp1252")) == "cp1252"  # others may come further on


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "euc_jp"])
@pytest.mark.parametrize("num_bytes", range(600, 606))
def test_a_head_may_end_within_a_letter(encoding: str, num_bytes: int) -> None:
    text = "id,what\n" + "".join(f"{i},日本の東京都で買った商品は良い\n" for i in range(40))
    assert guess_encoding(text.encode(encoding)) == encoding
    assert guess_encoding(text.encode(encoding)[:num_bytes]) == encoding


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16-le", "utf-16-be"])
def test_wide_letters_are_told_by_their_mark_or_their_zeros(encoding: str) -> None:
    text = "id,what\n1,北京市朝阳区价格很好\n" * 20
    assert guess_encoding(text.encode(encoding)) == encoding
    assert guess_encoding((b"a,b\n" * 9 + b"1,\0\n") * 20) is None


@pytest.mark.parametrize("place", [0, 50, 99])
def test_a_few_letters_that_are_no_utf_8_are_mistakes(place: int) -> None:
    """The other encoding would read all the right ones as something else."""
    lines = [f"{i},Tromsø\n".encode() for i in range(100)]
    lines[place] = f"{place},Tromsø\n".encode("cp1252")
    assert guess_encoding(b"".join([b"id,town\n", *lines])) is None
    assert guess_encoding(b"id,town\n1,Troms\xf8\n") is not None


def test_what_is_utf_8_has_no_other_encoding() -> None:
    assert guess_encoding(b"") is None
    assert guess_encoding("é".encode()) is None
    assert guess_encoding(b"\xff\xff\x00\xff") is None
    assert guess_encoding("a 漢".encode()[:-1]) is None  # the head of a file ends anywhere


@pytest.mark.parametrize(
    ("head", "delimiter"),
    [
        ("a,b\n1,2\n", ","),
        ("Preis;Fläche\n1,5;2,5\n1,0;3\n", ";"),
        ("Name, Vorname;Ort;Land\nX, Y;Z;D\n", ";"),
        ("a\tb\tc\n1\t2,5\t3\n", "\t"),
        ("a|b\n1|2\n", "|"),
        ("id,sizes (s|m|l)\n1,s\n2,m\n", ","),
        ('a,b\n"x;y;z",1\n"x;y;z",2\n', ","),
        ('a;b\n"x;\ny";1\n', ";"),
        ("a;b;c\n" + "1,5;2,5;3,5\n" * 9, ";"),  # commas give more cells, and none in the header
        ("a\tb\n" + "1,234\t2\n" * 9, "\t"),
        ("a\n1\n2\n", ","),
        ("a;b\n1;2\n3;4;", ","),  # all of it, and no two cells in the last
        ("", ","),
    ],
)
def test_a_delimiter_gives_each_record_as_many_cells(head: str, delimiter: str) -> None:
    assert guess_delimiter(head, is_whole=True) == delimiter


def test_a_record_that_the_head_cuts_does_not_count() -> None:
    assert guess_delimiter("a;b;c\n1;2;3\n4;5", is_whole=False) == ";"


def test_a_header_that_the_head_cuts_has_a_delimiter_all_the_same() -> None:
    assert guess_delimiter("first name;last name;to", is_whole=False) == ";"


@pytest.mark.parametrize(
    ("texts", "delimiter", "facts", "numbers"),
    [
        (["1.5", "-2", "3e4"], ",", {}, [1.5, -2, 3e4]),
        (["1,234.50", "12", "1,000,000"], ",", {"thousands": ","}, [1234.5, 12, 1e6]),
        (["1,234", "12"], ",", {"thousands": ","}, [1234, 12]),
        (["1,234", "12,5"], ";", {"decimal": ",", "thousands": "."}, [1.234, 12.5]),
        (["1.234,50", "12,1"], ";", {"decimal": ",", "thousands": "."}, [1234.5, 12.1]),
        (["1.234", "950", "12.000"], ";", {"decimal": ",", "thousands": "."}, [1234, 950, 12000]),
        (["1.234", "0.950"], ";", {}, [1.234, 0.95]),
        (["1.234", "950"], ",", {}, [1.234, 950]),
        (["1.234", "950", "12.000"], "\t", {}, [1.234, 950, 12]),
        (["1,234", "950", "12,000"], "\t", {"thousands": ","}, [1234, 950, 12000]),
        (["1,234", "0,950"], "\t", {"decimal": ",", "thousands": "."}, [1.234, 0.95]),
        (["0,123", "1,234"], ",", {"decimal": ",", "thousands": "."}, [0.123, 1.234]),  # a zero in front groups nothing
        (["1 234,5", "12"], ";", {"decimal": ",", "thousands": " "}, [1234.5, 12]),
        (["1'234.5", "12"], ",", {"thousands": "'"}, [1234.5, 12]),
        (["$1,234.00", "$5"], ",", {"thousands": ",", "units": ("$",)}, [1234, 5]),
        (["12.5%", "3 %"], ",", {"units": ("%",)}, [12.5, 3]),
        (["5%", "0", "7%"], ",", {"units": ("%",)}, [5, 0, 7]),
        (["36 months", "60 months"], ",", {"units": ("months",)}, [36, 60]),
        (["5 €", "1.234,5 €"], ";", {"decimal": ",", "thousands": ".", "units": ("€",)}, [5, 1234.5]),
        (["€5", "7 €"], ",", {"units": ("€",)}, [5, 7]),
        (["$5 USD", "$6.50 USD"], ",", {"units": ("$", "USD")}, [5, 6.5]),
        (["€5/month", "€7/month"], ",", {"units": ("/month", "€")}, [5, 7]),
    ],
)
def test_numbers_as_they_are_written(
    texts: list[str], delimiter: str, facts: dict[str, Any], numbers: Sequence[float]
) -> None:
    column = guess_number(pa.array(texts), delimiter)
    assert column is not None
    assert column.model_dump(exclude_unset=True) == {"kind": "number", **facts}
    read, is_number = parse_numbers(pa.array(texts), column)
    assert is_number.all()
    assert read.tolist() == list(numbers)


def test_the_form_that_reads_most_is_taken() -> None:
    column = guess_number(pa.array(["1,234"] * 97 + ["1,234.50"] * 3), "\t")
    assert column is not None
    assert (column.decimal, column.thousands) == (".", ",")


@pytest.mark.parametrize(
    ("columns", "has_points"),
    [
        ([["21.500"], ["0.5", "12"]], True),
        ([["21.500"], ["1013.250"]], True),
        ([["21.500"], ["17"]], False),  # may be thousands
        ([["12.30"], ["0,5", "1,25"]], False),  # the first are times of day
        ([["31.01.2024"], [], ["x"]], False),
    ],
)
def test_one_column_says_what_the_points_of_all_are(columns: list[list[str]], has_points: bool) -> None:
    assert has_decimal_points(pa.array(texts, pa.string()) for texts in columns) is has_points


@pytest.mark.parametrize(
    "texts",
    [
        ["C17", "C18"],
        ["1st", "2nd", "3rd"],
        ["12a", "7b"],
        ["2024-01-31", "2024-02-01"],
        ["31.01.2024", "01.02.2024"],
        ["12:30", "13:00"],
        ["1.2.3", "1.10.0"],
        ["+49 170 1234567", "+49 30 12"],
        ["+48 601 234 567", "+1 234 567 890"],
        ["(5)", "(6)"],
        ["100.00-", "25.00", "7.50-"],  # below zero, as bookkeepers write it
        ["950", "1.2k", "3k"],
        ["50%", "0.5"],
        ["€5", "7 $"],
        ["$5", "€5", "7"],
        ["$5"] * 93 + ["5%"] * 7,
        ["01067", "80331", "20095"],
        ["5 apples", "6 pears"],
        ["x", "y"],
        [""],
        [],
    ],
)
def test_names_dates_and_versions_are_no_numbers(texts: list[str]) -> None:
    assert guess_number(pa.array(texts, pa.string()), ",") is None


def test_a_few_mistakes_leave_a_column_its_kind() -> None:
    numbers, times = ["1,5"] * 97 + ["?", "-", "oops"], ["31/01/2024"] * 97 + ["soon"] * 3
    assert guess_number(pa.array(numbers), ";") is not None
    assert guess_number(pa.array(numbers[:40] + numbers[-3:]), ";") is None
    dollars = guess_number(pa.array(["$5"] * 97 + ["€5"] * 3), ",")
    assert dollars is not None
    assert parse_numbers(pa.array(["$5", "€5"]), dollars)[1].tolist() == [True, False]
    assert guess_time(pa.array(times)) is not None
    assert guess_time(pa.array(times[:40] + times[-3:])) is None


@pytest.mark.parametrize(
    ("texts", "pattern", "other"),
    [
        (["2024-01-31", "2024-02-01T10:00:00Z"], "iso", None),
        (["31.01.2024", "01.02.2024"], "%d.%m.%Y", None),
        (["31/01/2024", "01/02/2024"], "%d/%m/%Y", None),
        (["01/31/2024", "01/02/2024"], "%m/%d/%Y", None),
        (["01/02/2024", "03/04/2024"], "%d/%m/%Y", "%m/%d/%Y"),
        (["2024/01/31"], "%Y/%m/%d", None),
        (["01/31/2024 09:05", "1/2/2024 10:00"], "%m/%d/%Y %H:%M", None),
        (["01/31/2024 09:05:07 PM"], "%m/%d/%Y %I:%M:%S %p", None),
        (["31 Jan 2024", "1 Feb 2024"], "%d %b %Y", None),
        (["January 31, 2024"], "%B %d, %Y", None),
        (["31-Jan-24"], "%d-%b-%y", None),
    ],
)
def test_times_as_they_are_written(texts: list[str], pattern: str, other: str | None) -> None:
    found = guess_time(pa.array(texts))
    assert found is not None
    column, second = found
    assert (column.format, second) == (pattern, other)
    assert read_times(pa.array(texts), column.format).null_count == 0


@pytest.mark.parametrize("texts", [["12"], ["10.5", "1.2"], ["soon"], ["1.2.3"], ["99/99/2024"], []])
def test_what_is_no_time(texts: list[str]) -> None:
    assert guess_time(pa.array(texts, pa.string())) is None
