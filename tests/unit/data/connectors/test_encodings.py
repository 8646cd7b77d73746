"""Text in other encodings than UTF-8: the same rows, nothing lost, nothing guessed."""

import gzip
from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_ray.core.errors import DataError
from lepton_ray.data.block import LINE, REASON
from lepton_ray.data.connectors import files, open_connector
from lepton_ray.testing.connector_suite import read_all

from . import samples

_COLUMNS = {"t": "text", "n": "number"}
_TEXTS = {
    "cp1252": ["Größe", "a;b", "two\nlines", 'a "q"', "€"],
    "utf-16": ["Größe", "\N{GRINNING FACE}", "two\r\nlines", "č,š"],
    "utf-16-be": ["x", "漢"],
    "gb18030": ["北京", "\N{GRINNING FACE}", "a\\b|c"],  # second bytes of letters look like ASCII
    "shift_jis": ["表示", "ソート"],  # the second byte of these is a backslash
    "utf-8-sig": ["é"],
}


def _csv(texts: list[str]) -> str:
    cells = (text.replace('"', '""') for text in texts)
    return "t,n\r\n" + "".join(f'"{cell}",{number}\r\n' for number, cell in enumerate(cells))


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(("encoding", "texts"), _TEXTS.items())
def test_a_csv_file_gives_the_rows_of_its_text(
    tmp_path: Path, encoding: str, texts: list[str], is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PART_BYTES", 16)
    content = _csv(texts * 50).encode(encoding)
    path = tmp_path / ("d.csv.gz" if is_packed else "d.csv")
    path.write_bytes(gzip.compress(content) if is_packed else content)
    data = samples.section("csv", path, _COLUMNS, encoding=encoding)
    (part,) = open_connector(data).parts()
    read = read_all(data, open_connector(data), [part])
    assert [row["t"] for row in read.rows] == texts * 50
    assert [row["n"] for row in read.rows] == list(range(len(texts) * 50))
    assert read.removed == []


def test_a_file_of_lines_has_an_encoding_too(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes("Straße\n\nФ\n".encode("utf-16"))
    data = samples.section("text", tmp_path, {"text": "text"}, encoding="utf-16")
    read = read_all(data, open_connector(data))
    assert [(row["text"], row[LINE]) for row in read.rows] == [("Straße", 1), ("Ф", 3)]


def test_bytes_that_the_encoding_lacks_make_their_record_bad(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"t,n\nK\xf6ln,1\nbad \x81\xc3\xa9,2\nEssen,3\n")  # cp1252 has no 0x81
    data = samples.section("csv", tmp_path, _COLUMNS, encoding="cp1252")
    read = read_all(data, open_connector(data))
    assert [(row["t"], row[LINE]) for row in read.rows] == [("Köln", 2), ("Essen", 4)]
    assert [(bad[REASON], bad[LINE]) for bad in read.removed] == [("invalid_utf8", 3)]


@pytest.mark.parametrize(
    ("encoding", "letters", "junk"),
    [
        ("utf-16-le", "é", b"\x00\xd8"),  # half of a pair, as databases leave it where they cut a text off
        ("utf-16-be", "é", b"\xdc\x00"),
        ("utf-32-le", "é", b"\x0a\x0a\xff\x00"),
        ("iso2022_jp", "日本", b"\x1b$Z"),
        ("utf-7", "é", b"+!"),
    ],
)
def test_a_letter_that_is_none_makes_only_its_record_bad(
    tmp_path: Path, encoding: str, letters: str, junk: bytes
) -> None:
    before, after = f"t,n\n{letters},1\nbad ".encode(encoding), f",2\n{letters},3\n".encode(encoding)
    (tmp_path / "d.csv").write_bytes(before + junk + after)
    data = samples.section("csv", tmp_path, _COLUMNS, encoding=encoding)
    read = read_all(data, open_connector(data))
    assert [(row["t"], row["n"], row[LINE]) for row in read.rows] == [(letters, 1, 2), (letters, 3, 4)]
    assert [(bad[REASON], bad[LINE]) for bad in read.removed] == [("invalid_utf8", 3)]


def test_a_file_without_the_mark_that_its_encoding_needs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"t,n\nx,1\n")
    data = samples.section("csv", tmp_path, _COLUMNS, encoding="utf-16")
    with pytest.raises(DataError, match=r"must be a readable csv file, got: .*does not start with BOM"):
        read_all(data, open_connector(data))


def test_a_file_that_ends_within_a_letter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("t,n\nx,1\n".encode("utf-16")[:-1])
    data = samples.section("csv", tmp_path, _COLUMNS, encoding="utf-16")
    with pytest.raises(DataError, match=r"must be a readable csv file, got: .*truncated"):
        read_all(data, open_connector(data))


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", "undefined", "punycode", "idna", "", "\0"])
def test_an_encoding_must_be_one(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ValidationError, match="encoding must be one that Python knows"):
        samples.section("csv", tmp_path, _COLUMNS, encoding=encoding)


def test_names_of_an_encoding_are_one(tmp_path: Path) -> None:
    section = samples.section("csv", tmp_path, _COLUMNS, encoding="UTF8")
    assert section == samples.section("csv", tmp_path, _COLUMNS)
    assert samples.section("csv", tmp_path, _COLUMNS, encoding="Windows-1252").source.encoding == "cp1252"  # type: ignore[union-attr]
