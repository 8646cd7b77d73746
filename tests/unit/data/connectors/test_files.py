"""Which files, cut into which parts; compression, other filesystems, prepare, and a file that comes back after a fault."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import ArtifactError, DataError, SpecError
from lepton_ray.data.connectors import files, open_connector
from lepton_ray.data.connectors.faults import describe, persist
from lepton_ray.data.connectors.files import MAX_PARTS, Piece, Span, group_pieces, target_bytes
from lepton_ray.data.connectors.filesystems import PersistentFile, codec_of, open_file, open_location
from lepton_ray.testing.connector_suite import read_all

from . import samples


def spans(connector: Any) -> list[list[tuple[str, Any, Any, int]]]:
    return [
        [(Path(p).name, start, end, line) for p, start, end, line, _ in part.where["spans"]]
        for part in connector.parts()
    ]


def test_small_files_are_grouped_in_name_order_and_large_ones_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PART_BYTES", 100)
    for name, count in [("b", 1), ("a", 2), ("d", 1), ("c", 40), ("e", 1)]:
        (tmp_path / f"{name}.jsonl").write_text('{"n": 1}\n' * count)
    (tmp_path / "readme.md").write_text("no data")
    found = spans(open_connector(samples.section("jsonl", tmp_path, {"n": "number"})))
    assert found[0] == [("a.jsonl", 0, None, 1), ("b.jsonl", 0, None, 1)]
    assert found[1] == [("c.jsonl", 0, 99, 1)]
    assert found[2] == [("c.jsonl", 99, 198, 12)]
    assert found[-1] == [("c.jsonl", 297, 360, 34), ("d.jsonl", 0, None, 1), ("e.jsonl", 0, None, 1)]


def test_parquet_is_cut_by_row_groups_and_compressed_files_are_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"n": np.arange(4000)}), tmp_path / "a.parquet", row_group_size=1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n' * 5000))
    monkeypatch.setattr(files, "PART_BYTES", 10)
    found = spans(open_connector(samples.section("parquet", tmp_path, {"n": "number"})))
    assert found == [[("a.parquet", i, i + 1, 1000 * i + 1)] for i in range(4)]
    assert len(spans(open_connector(samples.section("jsonl", tmp_path, {"n": "number"})))) == 1


TEXTS = st.sampled_from(["", "x", 'a "q"', "two\nlines", "c,d", "žluť", "\r\n", '"', "NA", " "])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, st.none() | st.integers(-9, 9)), min_size=1, max_size=40),
    st.integers(1, 400),
    st.integers(1, 60),
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrow", "orc", "tfrecord", "numpy"])
def test_any_cutting_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    cells: list[tuple[str, int | None]],
    part_bytes: int,
    chunk: int,
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    samples.write_cells(kind, folder, cells)
    data = samples.section(kind, folder, {"t": "text", "n": "number"})
    whole = read_all(data, open_connector(data))
    assert len(whole.rows) + len(whole.removed) == len(cells)
    with pytest.MonkeyPatch.context() as patch:
        samples.cut_small(patch, part_bytes, chunk)
        cut = read_all(data, open_connector(data))
    assert cut.rows == whole.rows
    assert sorted(map(str, cut.removed)) == sorted(map(str, whole.removed))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3 * files.PART_BYTES), max_size=300))
def test_groups_keep_the_order_and_the_bounds(sizes: list[int]) -> None:
    pieces = [Piece(Span(str(index)), size) for index, size in enumerate(sizes)]
    target = target_bytes(sum(sizes))
    groups = group_pieces(pieces, target)
    assert [piece for group in groups for piece in group] == pieces
    assert all(len(group) == 1 or sum(piece.weight_bytes for piece in group) <= target for group in groups)
    assert len(groups) >= sum(sizes) // max(target, max(sizes, default=1))


def test_a_huge_source_has_at_most_so_many_parts() -> None:
    pieces = [Piece(Span(str(index)), 16 << 20) for index in range(20_000)]
    groups = group_pieces(pieces, target_bytes(20_000 * 16 << 20))
    assert 1000 < len(groups) <= MAX_PARTS


CODECS = [("gz", "gzip"), ("zst", "zstd"), ("bz2", "bz2"), ("lz4", "lz4")]


@pytest.mark.parametrize(("suffix", "codec"), CODECS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "text"])
def test_compressed_text_is_read_by_its_suffix(tmp_path: Path, kind: str, suffix: str, codec: str) -> None:
    content = {"csv": b"text,n\nx,1\n", "jsonl": b'{"text": "x"}\n', "text": b"x\n"}[kind]
    path = tmp_path / f"a.{'txt' if kind == 'text' else kind}.{suffix}"
    with pa.output_stream(str(path), compression=codec) as stream:
        stream.write(content)
    data = samples.section(kind, tmp_path, {"text": "text"})
    assert [row["text"] for row in read_all(data, open_connector(data)).rows] == ["x"]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=rf"a\.\w+\.{suffix} must be a readable {kind} file.*Truncated"):
        read_all(data, open_connector(data))


@pytest.mark.parametrize(
    ("path", "is_packed"),
    [
        ("/in/a.csv.GZ", True),
        ("/in/a.csv?.gz", True),
        ("http://h/a.csv.gz?sig=x.csv", True),
        ("http://h/a.csv?x=.gz", False),
    ],
)
def test_the_query_of_an_address_is_no_part_of_a_name(path: str, is_packed: bool) -> None:
    assert codec_of(path) == ("gzip" if is_packed else None)


def test_members_of_one_gzip_file_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n') + gzip.compress(b'{"n": 2}\n'))
    data = samples.section("jsonl", tmp_path, {"n": "number"})
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1, 2]


def test_a_lone_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(b"n\n1\n")
    data = samples.section("csv", tmp_path / "records", {"n": "number"})
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1]


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    """What editors and systems keep beside files, and what a killed process has begun; the source may itself lie in a hidden folder."""
    root = tmp_path / ".cache" / "rows"
    for name in ("a.csv", "._a.csv", ".part.csv", ".ipynb_checkpoints/a.csv", "more/b.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"n\n1\n")
    data = samples.section("csv", root, {"n": "number"})
    files = [file.path.removeprefix(f"{root}/") for file in open_connector(data).files]
    assert files == ["a.csv", "more/b.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "must name a file or folder, nothing is at"),
        ("empty", r"must hold files that end in .csv, .tsv, .txt, found none"),
    ],
)
def test_nothing_to_read_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.json").write_text("{}")
    data = samples.section("csv", tmp_path / name)
    for ask in ("parts", "columns", "fingerprint", "size_bytes"):
        with pytest.raises(DataError, match=message):
            getattr(open_connector(data), ask)()


def prepare(path: str) -> None:
    """Named by the test below."""
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("n\n1\n2\n")


def test_prepare_writes_what_is_not_there_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "maker.py").write_text(
        "from pathlib import Path\ndef make(path):\n    Path(path).write_text('n\\n1\\n')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    data = samples.section("csv", "in.csv", {"n": "number"}, prepare="maker:make")
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1]
    Path("in.csv").write_text("n\n5\n")
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [5]
    for bad, message in [("maker:gone", "must name a function that can be imported"), ("gone:make", "gone")]:
        with pytest.raises(SpecError, match=message):
            open_connector(samples.section("csv", "b.csv", {"n": "number"}, prepare=bad)).parts()
    with pytest.raises(SpecError, match="must write a local path"):
        open_connector(samples.section("csv", "memory://b.csv", {"n": "number"}, prepare="maker:make")).parts()


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n\n1\n")
    data = samples.section("csv", tmp_path, {"n": "number"})
    first = open_connector(data).fingerprint()
    shutil.copy(tmp_path / "a.csv", tmp_path / "b.csv")
    assert open_connector(data).fingerprint() != first
    (tmp_path / "b.csv").unlink()
    assert open_connector(data).fingerprint() == first


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files_on_an_fsspec_filesystem(
    tmp_path: Path, kind: str, cut_small: Callable[[int, int], Callable[[], None]]
) -> None:
    memory = fsspec.filesystem("memory")
    content = {"csv": samples.csv_lines(samples.rows(30)), "jsonl": samples.json_lines(samples.rows(30))}
    if kind == "parquet":
        pq.write_table(samples.table(samples.rows(30)), tmp_path / "x.parquet", row_group_size=7)
        content[kind] = (tmp_path / "x.parquet").read_bytes()
    memory.pipe_file(f"/lepton/{kind}/a.{kind}", content[kind])
    cut_small(300, 100)()
    data = samples.section(kind, f"memory://lepton/{kind}")
    connector = open_connector(data)
    read = read_all(data, connector)
    assert [{name: row[name] for name in samples.COLUMNS} for row in read.rows] == samples.rows(30)
    assert len(connector.parts()) > 1
    assert json.dumps(connector.fingerprint())


@pytest.mark.parametrize("uri", ["nosuch://user:pa55@h/x", "s3a8://x"])
def test_a_scheme_that_nothing_opens_is_named_without_credentials(uri: str) -> None:
    with pytest.raises(ArtifactError, match="Check the scheme") as caught:
        open_location(uri)
    assert "pa55" not in str(caught.value)


class FlakyFile:
    """A file whose connection is lost at some reads."""

    def __init__(self, content: bytes, faults: list[int]) -> None:
        self.content, self.faults, self.opened, self.reads = content, faults, 0, 0

    def open(self) -> Any:
        self.opened += 1
        owner, inner = self, pa.BufferReader(self.content)

        class Opened:
            closed = False

            def seek(self, place: int) -> None:
                inner.seek(place)

            def read(self, size: int = -1) -> bytes:
                owner.reads += 1
                if owner.reads in owner.faults:
                    raise OSError("connection reset by peer")
                return bytes(inner.read() if size < 0 else inner.read(size))

            def size(self) -> int:
                return len(owner.content)

            def close(self) -> None:
                self.closed = True

        return Opened()


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def test_a_remote_file_is_opened_again_at_the_same_place(no_waits: list[float]) -> None:
    content = bytes(range(256)) * 40
    flaky = FlakyFile(content, faults=[2, 3, 5])
    file = pa.PythonFile(PersistentFile(flaky.open), mode="r")
    assert b"".join(iter(lambda: file.read(3000), b"")) == content
    assert flaky.opened == 4
    assert len(no_waits) == 3
    assert no_waits[1] > no_waits[0] >= 0.25


def test_a_remote_file_that_stays_broken_is_an_error(no_waits: list[float]) -> None:
    flaky = FlakyFile(b"x" * 100, faults=list(range(100)))
    with pytest.raises(OSError, match="connection reset"):
        PersistentFile(flaky.open).read(10)
    assert len(no_waits) == 4


def test_a_file_that_is_gone_is_not_waited_for(no_waits: list[float]) -> None:
    filesystem, _ = open_location("memory://x")
    with pytest.raises(FileNotFoundError):
        open_file(filesystem, "/nothing/here").read()
    assert no_waits == []


def test_parquet_over_a_lossy_connection(no_waits: list[float]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": np.arange(5000)}), sink, row_group_size=500)
    flaky = FlakyFile(sink.getvalue().to_pybytes(), faults=[1, 4, 7, 8])
    table = pq.ParquetFile(pa.PythonFile(PersistentFile(flaky.open), mode="r")).read()
    assert table.column("n").to_pylist() == list(range(5000))


def test_only_what_may_pass_is_tried_again(no_waits: list[float]) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        persist(call, lambda error: isinstance(error, OSError))
    assert len(calls) == 1


def test_messages_hide_what_references_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "s3cr3t")
    error = OSError("cannot log in to db://me:s3cr3t@host with s3cr3t\nmore")
    assert describe(error, "db://me:${WORD}@host") == "cannot log in to db://host with ${WORD}"
    monkeypatch.setenv("WORD", "s3 cr/3t")
    error = OSError("no answer of http://host/s3%20cr/3t/a and of http://host/?key=s3%20cr%2F3t")
    assert describe(error, "${WORD}") == "no answer of http://host/${WORD}/a and of http://host/?key=${WORD}"


def test_a_pickled_connector_holds_no_open_filesystem(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n\n1\n")
    connector = open_connector(samples.section("csv", tmp_path, {"n": "number"}))
    connector.parts()
    assert set(connector.__getstate__()) == {"data"}  # type: ignore[index, call-overload]
    assert isinstance(open_location(str(tmp_path))[0], pafs.LocalFileSystem)


def test_a_name_that_is_not_utf8_is_an_error_that_shows_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    with open(bytes(tmp_path) + b"/\xff.csv", "wb") as file:
        file.write(b"a\n1\n")
    with pytest.raises(DataError, match=r"must hold files whose names are UTF-8, got b'.*\\xff.csv'.* Rename it"):
        open_connector(samples.section("csv", tmp_path, {"a": "number"})).parts()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "text"])
def test_a_file_that_becomes_shorter_loses_no_record_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    samples.cut_small(monkeypatch, 100, 50)
    line = {"csv": "text\n", "jsonl": '{"text": 1}\n', "text": "text\n"}[kind]
    path = tmp_path / f"f.{'txt' if kind == 'text' else kind}"
    path.write_text(line * 1000)
    connector = open_connector(samples.section(kind, path, {"text": "text"}))
    parts = connector.parts()
    assert len(parts) > 3
    path.write_text(line * 500)
    with pytest.raises(DataError, match=r"must stay as it is while it is read, but has become shorter"):
        list(connector.read(parts[-1]))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_name_of_a_column_that_is_not_utf8_is_an_error(tmp_path: Path, kind: str) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"name": [1]})
    if kind == "parquet":
        pq.write_table(table, sink, store_schema=False)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    path = tmp_path / f"f.{kind}"
    path.write_bytes(sink.getvalue().to_pybytes().replace(b"name", b"\xffame"))
    with pytest.raises(DataError, match=rf"f\.{kind} must be a readable {kind} file, got: 'utf-8' codec"):
        open_connector(samples.section(kind, path, {"a": "number"})).columns()
