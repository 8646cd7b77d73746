"""TFRecord, NumPy and WebDataset: what is special to each, and what is damaged."""

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_ray.core.errors import DataError, MissingExtraError
from lepton_ray.data.connectors import check_source, open_connector, webdataset
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import read_all

from . import samples
from .samples import png

PICTURE = {"kind": "image", "height": 2, "width": 3, "channels": 1}


def read(kind: str, path: Path, columns: dict[str, Any], **options: Any) -> Any:
    data = samples.section(kind, path, columns, **options)
    return read_all(data, open_connector(data))


def test_tfrecord_features_are_values_series_images_or_missing(tmp_path: Path) -> None:
    records = [
        {"n": 1, "s": [1.5, 2.5], "p": png(7), "t": "é"},
        {"n": 2.5, "s": [1, 2], "p": bytes(6)},
        {"n": b"3", "s": [1.0], "t": 5},
        {"p": b"junk", "s": ["x", "y"]},
    ]
    content = b"".join(samples.tf_record(samples.tf_example(record)) for record in records)
    (tmp_path / "a.tfrecord.gz").write_bytes(gzip.compress(content))
    columns = {"n": "category", "t": "text", "s": {"kind": "series", "length": 2}, "p": PICTURE}
    found = read("tfrecord", tmp_path, columns)
    assert [(row["n"], row["t"], row["s"], row["p"]) for row in found.rows] == [
        ("1", "é", [1.5, 2.5], bytes([7] * 6)),
        ("2.5", None, [1.0, 2.0], bytes(6)),
    ]
    assert [(r["_line"], r["_reason"]) for r in found.removed] == [(3, "unreadable_image"), (4, "unreadable_image")]


def _read_tags(kind: str, path: Path) -> Any:
    source = {"kind": kind, "uri": str(path)}
    data = DataSpec.model_validate({"source": source, "columns": {"n": "number", "t": "tags"}, "label": "t"})
    return read_all(data, open_connector(data))


def test_tfrecord_and_webdataset_give_tags(tmp_path: Path) -> None:
    records = [
        {"n": 1, "t": [b"b", b"a"]},
        {"n": 2, "t": b"a|b"},
        {"n": 3, "t": [2, 1]},
        {"n": [1, 2], "t": b"a"},
        {"n": 5},
        {"n": 6, "t": []},
        {"n": 7, "t": [b"a", b"\xff"]},
        {"n": 8, "t": b"\xff"},
        {"n": 9, "t": [0.1, 2.0]},
    ]
    content = b"".join(samples.tf_record(samples.tf_example(record)) for record in records)
    (tmp_path / "a.tfrecord").write_bytes(content)
    found = _read_tags("tfrecord", tmp_path / "a.tfrecord")
    assert [(row["n"], row["t"]) for row in found.rows] == [(1, "a|b"), (2, "a|b"), (3, "1|2"), (6, ""), (9, "0.1|2")]
    reasons = {4: "type_error", 5: "missing_label", 7: "invalid_utf8", 8: "invalid_utf8"}
    assert {r["_line"]: r["_reason"] for r in found.removed} == reasons
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, body in (("1.json", b'{"n": 1, "t": ["b", "a"]}'), ("2.json", b'{"n": 2}'), ("2.t", b"b|a")):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    found = _read_tags("webdataset", tmp_path / "a.tar")
    assert [(row["n"], row["t"]) for row in found.rows] == [(1, "a|b"), (2, "a|b")]


def test_tfrecord_floats_are_spelled_as_short_as_they_are(tmp_path: Path) -> None:
    """As those of Parquet and NumPy are: 32 bits do not become the digits of 64."""
    records = [{"c": 0.1, "n": 0.5}, {"c": 2.0, "n": 3}, {"c": b"x"}, {"c": 7}]
    content = [samples.tf_record(samples.tf_example(record)) for record in records]
    for count in (2, 4):
        (tmp_path / "a.tfrecord").write_bytes(b"".join(content[:count]))
        rows = read("tfrecord", tmp_path, {"c": "category", "n": "number"}).rows
        assert [row["c"] for row in rows] == ["0.1", "2", "x", "7"][:count]
        assert [row["n"] for row in rows[:2]] == [0.5, 3]


GERMAN = {"kind": "number", "decimal": ",", "thousands": "."}


@pytest.mark.parametrize("kind", ["tfrecord", "webdataset"])
def test_numbers_are_no_texts_with_a_decimal_point(tmp_path: Path, kind: str) -> None:
    """Alone and beside texts whose decimal sign is a comma."""
    for beside in ([], [b"2,75"]):
        values = [1.25, *beside, 3]
        if kind == "tfrecord":
            content = b"".join(samples.tf_record(samples.tf_example({"n": value})) for value in values)
        else:
            content = samples.tar([{"n": v} if isinstance(v, bytes) else {"json": b'{"n": %r}' % v} for v in values])
        (tmp_path / f"a.{'tar' if kind == 'webdataset' else kind}").write_bytes(content)
        found = read(kind, tmp_path, {"n": GERMAN})
        assert [row["n"] for row in found.rows] == ([1.25, 2.75, 3] if beside else [1.25, 3])
        assert found.removed == []


@pytest.mark.parametrize("kind", ["tfrecord", "webdataset"])
def test_series_hold_whole_numbers_of_any_size(tmp_path: Path, kind: str) -> None:
    large = 2**60 + 1
    if kind == "tfrecord":
        content = samples.tf_record(samples.tf_example({"s": [1, large]}))
    else:
        content = samples.tar([{"json": b'{"s": [1, %d]}' % large}, {"json": b'{"s": [null, 2.5]}'}])
    (tmp_path / f"a.{'tar' if kind == 'webdataset' else kind}").write_bytes(content)
    rows = read(kind, tmp_path, {"s": {"kind": "series", "length": 2}}).rows
    assert rows[0]["s"] == [1, float(large)]


@pytest.mark.parametrize("cut", [3, 8, 14, -1, -5])
def test_a_tfrecord_file_that_ends_early_is_an_error(tmp_path: Path, cut: int) -> None:
    content = samples.tf_record(samples.tf_example({"n": 1}))
    (tmp_path / "a.tfrecord").write_bytes(content + content[:cut])
    with pytest.raises(DataError, match=r"a.tfrecord must be a readable tfrecord file, record 2 ends early"):
        read("tfrecord", tmp_path, {"n": "number"})


def test_a_tfrecord_length_that_is_wrong_is_an_error(tmp_path: Path) -> None:
    content = bytearray(samples.tf_record(samples.tf_example({"n": 1})))
    content[2] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(bytes(content))
    with pytest.raises(DataError, match="record 1 has a wrong length"):
        read("tfrecord", tmp_path, {"n": "number"})


def test_numpy_arrays_of_rows(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        n=np.array([1, 2], "<f4"),
        s=np.arange(6.0).reshape(2, 3),
        p=np.full((2, 2, 3), 9, np.uint8),
        other=np.zeros((2, 5, 5)),
    )
    columns = {"n": "number", "s": {"kind": "series", "length": 3}, "p": PICTURE}
    rows = read("numpy", tmp_path, columns).rows
    assert [(row["n"], row["s"], row["p"]) for row in rows] == [
        (1.0, [0, 1, 2], bytes([9] * 6)),
        (2.0, [3, 4, 5], bytes([9] * 6)),
    ]
    np.save(tmp_path / "b.npy", np.arange(4, dtype=np.int16))
    assert [row["x"] for row in read("numpy", tmp_path / "b.npy", {"x": "number"}, column="x").rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [">f4", ">i8", "<f2"])
def test_numpy_series_of_any_byte_order(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(3, 2).astype(dtype))
    found = read("numpy", tmp_path, {"x": {"kind": "series", "length": 2}}, column="x")
    assert [row["x"] for row in found.rows] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}, {}]), "an array of Python objects"),
        (np.asfortranarray(np.zeros((2, 3))), "Fortran order"),
        (np.array(1.0), "a single number"),
        (np.zeros((2, 3, 4)), "one value or one series a row, got data of shape"),
        (np.array([1j, 2j]), "values of a kind that number can take, got data: complex128"),
    ],
)
def test_numpy_arrays_that_cannot_be_read(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read("numpy", tmp_path, {"data": "number"})


def npy(header: bytes, rows: bytes = b"", version: bytes = b"\x02\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<I", len(header)) + header + rows


def described(shape: str, dtype: str = "<f8") -> bytes:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(described("(1, 1000000000000)")), "a row must have 1 byte to 256 MiB"),
        (npy(described("(1, 1099511627776, 1099511627776)")), "a row must have 1 byte to 256 MiB"),
        (npy(described("(1000000000000, 0)")), "a row must have 1 byte to 256 MiB"),
        (npy(described("(1000000000000,)", "|S0")), "a row must have 1 byte to 256 MiB"),
        (npy(described("(-5,)"), bytes(40)), "a row must have 1 byte to 256 MiB"),
        (npy(described("(1000000000000,)"), bytes(8)), "promises 8000000000000 bytes of rows, and 8 of them"),
        (npy(described("(1,)"), bytes(16)), "promises 8 bytes of rows, and 16 of them"),
        (npy(b"(" * 20_000), "a header that cannot be read"),
        (npy(described("(" + "-" * 30_000 + "1,)")), "a header that cannot be read"),
    ],
)
def test_a_numpy_header_is_not_believed(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("numpy", tmp_path, {"data": "number"})


def test_numpy_names_may_be_of_any_script(tmp_path: Path) -> None:
    names = repr([("größe", "<f8"), ("日", "<f8")])
    header = f"{{'descr': {names}, 'fortran_order': False, 'shape': (1,)}}\n".encode()
    (tmp_path / "a.npy").write_bytes(npy(header, np.array([1.5, 2.5]).tobytes(), b"\x03\0"))
    assert [(r["größe"], r["日"]) for r in read("numpy", tmp_path, {"größe": "number", "日": "number"}).rows] == [
        (1.5, 2.5)
    ]


def archive(*members: bytes) -> bytearray:
    sink = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # of a second member of one name
        for member in members:
            file.writestr("a.npy", member)
    return bytearray(sink.getvalue())


ONE = npy(described("(3,)"), bytes(24))


def change(content: bytearray, at: int, in_directory: int, value: int) -> bytes:
    content[at] = content[content.index(b"PK\x01\x02") + in_directory] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(archive(ONE, ONE)), "two arrays of one name"),
        (change(archive(ONE), 6, 8, 1), "encrypted"),
        (change(archive(ONE), 8, 10, 97), "compression method is not supported"),
        (bytes(archive(ONE)[:35] + b"\xff" + archive(ONE)[36:]), "invalid block type"),
    ],
)
def test_numpy_archives_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("numpy", tmp_path, {"a": "number"})


def test_numpy_archives_have_one_length(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(2), b=np.zeros(3))
    with pytest.raises(DataError, match=r"must hold arrays of one length, got a: 2, b: 3\. Store them apart"):
        read("numpy", tmp_path, {"a": "number", "b": "number"})
    (tmp_path / "a.npz").write_bytes(samples.zip_of({"readme.txt": b"no array"}))
    with pytest.raises(DataError, match=r"must hold arrays of one length, got none"):
        read("numpy", tmp_path, {"a": "number"})


@pytest.mark.parametrize(
    "other", [np.array(5), np.array(["a", "b"]), np.array([{}], object), np.asfortranarray(np.zeros((3, 2)))]
)
def test_what_a_numpy_archive_holds_beside_the_columns_is_no_matter(tmp_path: Path, other: Any) -> None:
    """But for a column it is, and its name is told."""
    rows = np.array([(1, 0.5), (2, 1.5), (3, 2.5)], [("n", "i4"), ("f", "f8")])
    np.savez(tmp_path / "a.npz", other=other, x=np.arange(3), rows=rows)
    data = samples.section("numpy", tmp_path, {"x": "number", "f": "number"})
    check_source(data, open_connector(data))
    assert [(row["x"], row["f"]) for row in read_all(data, open_connector(data)).rows] == [(0, 0.5), (1, 1.5), (2, 2.5)]
    with pytest.raises(
        DataError, match=r"a\.npz must .* got: other, an array|one length, got other: 2, x: 3|other, a single"
    ):
        read("numpy", tmp_path, {"x": "number", "other": "category"})


def test_a_numpy_file_without_a_column_is_condemned(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    np.savez(tmp_path / "b.npz", a=np.zeros(2), b=np.ones(2))
    found = read("numpy", tmp_path, {"a": "number", "b": "number"})
    assert len(found.rows) == 2
    assert [(r["_line"], r["_reason"]) for r in found.removed] == [(1, "wrong_header"), (2, "wrong_header")]


def test_webdataset_members_are_columns(tmp_path: Path) -> None:
    tar = [
        {"png": png(1), "cls": b"3\n", "txt": b"a cat", "json": b'{"n": 1.5, "s": [1, 2]}'},
        {"jpg": b"junk", "cls": b"4", "json": b'{"s": [1]}'},
        {"cls": b"5", "json": b'{"n": 2, "s": [3, null]}', "jpeg": png(2), "seg.png": png(3, (5, 5))},
        {"cls": b"6", "png": png(4), "s": b"[5, 6]"},
    ]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(samples.tar(tar)))
    (tmp_path / "b.tgz").write_bytes(gzip.compress(samples.tar(tar[:1])))
    columns = {
        "picture": PICTURE,
        "cls": "category",
        "txt": "text",
        "n": "number",
        "s": {"kind": "series", "length": 2},
    }
    found = read("webdataset", tmp_path, columns)
    assert [(row["picture"][0], row["cls"], row["txt"], row["n"], row["s"]) for row in found.rows] == [
        (1, "3", "a cat", 1.5, [1.0, 2.0]),
        (4, "6", None, None, [5.0, 6.0]),
        (1, "3", "a cat", 1.5, [1.0, 2.0]),
    ]
    assert [(r["_line"], r["_reason"], r["_text"]) for r in found.removed] == [
        (2, "unreadable_image", "folder/000001"),
        (3, "unreadable_image", "folder/000002"),
    ]


def test_whole_numbers_of_a_json_member_keep_their_digits_as_texts(tmp_path: Path) -> None:
    large = 123456789012345678901
    (tmp_path / "a.tar").write_bytes(samples.tar([{"json": b'{"c": %d, "n": %d}' % (large, large)}]))
    rows = read("webdataset", tmp_path, {"c": "category", "n": "number"}).rows
    assert [(row["c"], row["n"]) for row in rows] == [(str(large), float(large))]


def test_a_webdataset_that_is_damaged_or_ambiguous_is_an_error(tmp_path: Path) -> None:
    content = samples.tar([{"cls": b"1" * 2000}, {"cls": b"2"}])
    (tmp_path / "a.tar").write_bytes(content[:1500])
    with pytest.raises(DataError, match=r"a.tar must be a readable webdataset file"):
        read("webdataset", tmp_path, {"cls": "category"})
    (tmp_path / "a.tar").write_bytes(samples.tar([{"cls": b"1"}, {"cls": b"2"}], keys=["k", "k"]))
    with pytest.raises(DataError, match="must have one member 'cls' in a sample, 'k' has two"):
        read("webdataset", tmp_path, {"cls": "category"})


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_in_a_webdataset_is_no_sample_without_a_member(tmp_path: Path, link: Callable[..., None]) -> None:
    """A folder whose equal files were joined; packed as the message says, all its samples come."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (("1.cls", "3"), ("1.txt", "a"), ("2.txt", "b")):
        (folder / name).write_text(content)
    link(folder / "1.cls", folder / "2.cls")
    columns = {"cls": "category", "txt": "text"}
    for dereference in (False, True):
        with tarfile.open(tmp_path / "a.tar", "w", dereference=dereference) as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
        if not dereference:
            with pytest.raises(
                DataError, match=r"got '2\.cls', a link to '.*1\.cls'\. Pack it by tar --hard-dereference -h"
            ):
                read("webdataset", tmp_path / "a.tar", columns)
    rows = read("webdataset", tmp_path / "a.tar", columns).rows
    assert [(row["cls"], row["txt"]) for row in rows] == [("3", "a"), ("3", "b")]


def spoilt(content: bytes, at: int) -> bytes:
    return content[:at] + b"x" + content[at + 1 :]


TWO = samples.tar([{"cls": b"1"}, {"cls": b"2"}])  # a block for each header, one for each content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TWO[:1024], "it ends early"),
        (TWO[:1124], "it ends early"),
        (spoilt(TWO, 1030), "a header is damaged"),
        (TWO + TWO, "more comes behind its end"),
    ],
)
def test_a_webdataset_is_read_to_its_end_or_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("webdataset", tmp_path, {"cls": "category"})


def test_a_webdataset_is_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="a header says that 1073741824 bytes describe a member"):
        read("webdataset", tmp_path, {"cls": "category"})
    monkeypatch.setattr(webdataset, "_MAX_SAMPLE_BYTES", 10)
    for sample in ({"cls": bytes(11)}, {"cls": bytes(6), "txt": bytes(6)}):
        (tmp_path / "a.tar").write_bytes(samples.tar([sample]))
        with pytest.raises(DataError, match="must have samples of at most 0 MiB"):
            read("webdataset", tmp_path, {"cls": "category"})


def test_names_in_a_webdataset_may_be_any_bytes(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as file:
        member = tarfile.TarInfo("\udcff.cls")
        member.size = 1
        file.addfile(member, io.BytesIO(b"\xff"))
    (tmp_path / "a.tar").write_bytes(sink.getvalue())
    removed = read("webdataset", tmp_path, {"cls": "category"}).removed
    assert [(r["_reason"], r["_text"]) for r in removed] == [("invalid_utf8", r"\xff")]


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tfrecord").write_bytes(samples.tf_record(b""))
    cases = [
        ("tfrecord", "google_crc32c", samples.section("tfrecord", tmp_path, {"n": "number"}), "tfrecord"),
        ("delta", "deltalake", samples.section("delta", tmp_path, {"n": "number"}), "delta"),
        ("iceberg", "pyiceberg", samples.section("iceberg", tmp_path, {"n": "number"}), "iceberg"),
        ("sql", "psycopg", samples.section("sql", "postgresql://h/d", {"n": "number"}, table="t"), "sql"),
    ]
    for _, module, data, extra in cases:
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"pip install 'lepton-ray\[{extra}\]'"):
            list(open_connector(data).read(open_connector(data).parts()[0]))
        monkeypatch.undo()


def test_opening_a_connector_imports_only_its_own_library() -> None:
    code = (
        "import sys; from lepton_ray.data.connectors import open_connector; from lepton_ray.spec.data import DataSpec\n"
        "open_connector(DataSpec.model_validate({'source': {'kind': 'csv', 'uri': 'x'}, 'columns': {'n': 'number'}}))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = {
        "ray",
        "psycopg",
        "deltalake",
        "pyiceberg",
        "confluent_kafka",
        "fsspec",
        "google_crc32c",
        "PIL",
        "sqlite3",
    }
    assert unwanted & set(loaded) == set()
