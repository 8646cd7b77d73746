"""The download of CIFAR-10 from a server on loopback: whole and checked, or one clear sentence and nothing left behind."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lepton_ray.core.errors import DataError
from lepton_ray.core.imports import load_function
from lepton_ray.spec import load_spec
from lepton_ray.testing import downloads

FILES = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
MEMBERS = {
    **{f"cifar-10-batches-bin/{name}": bytes([n]) * 3073 * 2 for n, name in enumerate(FILES)},
    "cifar-10-batches-bin/batches.meta.txt": b"airplane\n",
    "cifar-10-batches-bin/readme.html": b"<html>",
}
Serve = Callable[[Callable[[BaseHTTPRequestHandler], None]], str]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers each GET with a function, and return its address."""
    with ExitStack() as stack:

        def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    answer(self)

                def log_message(self, format: str, *args: object) -> None:
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}/cifar-10-binary.tar.gz"

        yield start


def sends(content: bytes, promised: int | None = None, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that may promise more bytes than it has."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) if promised is None else promised))
        request.end_headers()
        request.wfile.write(content)

    return answer


def packed(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return sink.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def refused(folder: Path, url: str, checksum: str, timeout_s: float = 30.0) -> str:
    """The sentence for people; nothing lies in the folder then."""
    target = folder / "data" / "cifar10"
    with pytest.raises(DataError) as caught:
        downloads.write_cifar10(str(target), url, checksum, timeout_s)
    assert list((folder / "data").iterdir()) == []
    message = str(caught.value)
    assert message.startswith(f"{url} must give the binary files of CIFAR-10, got: ")
    assert f"put the original files (data_batch_1.bin and the rest) in {target} yourself" in message
    assert "name their folder in data.source.uri" in message
    assert "\n" not in message
    return message


def test_the_files_are_written_and_nothing_else(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_TOLD_BYTES", 1)
    content = packed({**MEMBERS, "../escaped": b"x", "/tmp/escaped": b"x", "cifar-10-batches-bin/../../escaped": b"x"})
    url = serve(sends(content))
    left_over = tmp_path / "data" / "cifar10.tmp" / "unpacked"
    left_over.mkdir(parents=True)
    (left_over / "old").write_text("of a download that was killed")
    downloads.write_cifar10(str(tmp_path / "data" / "cifar10"), url, md5(content))
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wanted = {name: content for name, content in MEMBERS.items() if not name.endswith("html")}
    assert written == {Path("data/cifar10", Path(name).name): content for name, content in wanted.items()}
    told = capsys.readouterr().err.splitlines()
    assert len(told) >= 3
    assert all(line.startswith(f"downloading {url}: ") and line.endswith(" MB/s") for line in told)


def test_another_checksum_is_refused(tmp_path: Path, serve: Serve) -> None:
    content = packed(MEMBERS)
    message = refused(tmp_path, serve(sends(content)), "0" * 32)
    assert f"a file with the MD5 {md5(content)}, where the publisher's has {'0' * 32}" in message


def test_a_refused_connection(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]  # nobody listens there any more
    assert "Connection refused" in refused(tmp_path, f"http://127.0.0.1:{port}/x", "0" * 32)


def test_a_server_that_says_no(tmp_path: Path, serve: Serve) -> None:
    assert "404" in refused(tmp_path, serve(sends(b"gone", status=404)), "0" * 32)


def test_a_server_that_stops_half_way(tmp_path: Path, serve: Serve) -> None:
    content = packed(MEMBERS)
    half = content[: len(content) // 2]
    message = refused(tmp_path, serve(sends(half, promised=len(content))), md5(content))
    assert f"{len(half)} of {len(content)} bytes" in message


def test_a_server_that_falls_silent_half_way(tmp_path: Path, serve: Serve) -> None:
    done = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        sends(b"half", promised=99)(request)
        request.wfile.flush()
        done.wait(30)

    try:
        assert "timed out" in refused(tmp_path, serve(answer), "0" * 32, timeout_s=0.2)
    finally:
        done.set()


def test_an_archive_without_end(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_MAX_ARCHIVE_BYTES", 100)
    assert "more than 100 bytes" in refused(tmp_path, serve(sends(bytes(1000))), md5(bytes(1000)))


def _link() -> tarfile.TarInfo:
    info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"no archive", "not a gzip file"),
        (packed(MEMBERS)[:-20], "end-of-stream"),
        (packed({}), r"an archive without cifar-10-batches-bin/batches\.meta\.txt, "),
        (
            packed({**MEMBERS, "cifar-10-batches-bin/test_batch.bin": _link()}),
            "test_batch.bin of 0 bytes, which is none",
        ),
        (packed({**MEMBERS, "cifar-10-batches-bin/test_batch.bin": bytes(3072)}), "test_batch.bin of 3072 bytes"),
        (packed({**MEMBERS, "cifar-10-batches-bin/test_batch.bin": bytes(10_001 * 3073)}), "of 30733073 bytes"),
        (packed({**MEMBERS, "cifar-10-batches-bin/batches.meta.txt": bytes(5000)}), "meta.txt of 5000 bytes"),
    ],
    ids=["none", "cut", "empty", "link", "part", "large", "names"],
)
def test_another_archive_is_refused(tmp_path: Path, serve: Serve, content: bytes, fault: str) -> None:
    assert fault.replace("\\", "") in refused(tmp_path, serve(sends(content)), md5(content))


def test_by_default_it_is_the_publishers_file_and_the_spec_asks_for_it() -> None:
    assert downloads.CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert downloads.CIFAR10_MD5 == "c32a1d4ab5d03f1284b67883e8d13530"
    source = load_spec(Path(__file__).parents[3] / "jobs" / "specs" / "cifar10.yaml").data.source
    assert load_function(source.prepare, "data.source.prepare") is downloads.write_cifar10
