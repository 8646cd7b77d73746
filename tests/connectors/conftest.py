"""Real services on loopback: PostgreSQL, an S3 server, a Kafka broker, and an HTTP server that misbehaves as told."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from lepton_ray.engine.session import free_port

START_S = 60
_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str, timeout_s: float = START_S
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"{what} has ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{what} did not start within {timeout_s} s"
        time.sleep(0.05)


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Postgres:
    port: int

    def uri(self, user: str = "reader:${SHOP_PASSWORD}", database: str = "shop") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str) -> None:
        """Run statements as the owner."""
        import psycopg

        with psycopg.connect(self.uri("owner"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[Postgres]:
    if not _POSTGRES:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'lepton-ray[sql]'")
    is_root = os.geteuid() == 0
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if is_root else {}
    folder = Path(tempfile.mkdtemp(prefix="lepton-pg-"))
    if is_root:
        shutil.chown(folder, "postgres", "postgres")
    binaries, port = _POSTGRES[-1].parent, free_port()
    data, password_file = folder / "data", folder / "password"
    initdb = [
        str(binaries / "initdb"),
        "-D",
        str(data),
        "-U",
        "owner",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
        "--locale=C.UTF-8",
    ]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **user)
    rules = "local all all trust\nhost all owner 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    (data / "pg_hba.conf").write_text(rules)
    password_file.unlink(missing_ok=True)
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
    try:
        with running(command, cwd=folder, **user) as process:
            wait_until(lambda: _accepts(port), process, "PostgreSQL")
            yield Postgres(port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _accepts(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(f"postgresql://owner@127.0.0.1:{port}/postgres").close()
    except psycopg.OperationalError:
        return False
    return True


PASSWORD = "pa55-of-the-reader"


@pytest.fixture
def postgres(_postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """A server with an empty database ``shop``; ``reader`` may read what is made in it."""
    import psycopg

    with psycopg.connect(_postgres_server.uri("owner", "postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)")
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE DATABASE shop")
        connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
    _postgres_server.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader")
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    return _postgres_server


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server,s3]'")
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]) as process:
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/moto-api/"), process, "the S3 server")
        yield f"127.0.0.1:{port}"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture
def s3(_s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an S3 server; credentials are in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-the-test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return _s3_server


@dataclass
class Request:
    """What a client asked for."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    time_s: float
    raw_query: str


@dataclass
class Reply:
    """What the server does: an answer, or a misbehaviour."""

    body: bytes = b"[]"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """The Content-Length to claim; -1 claims none."""
    stall_s: float = 0.0
    drip_s: float = 0.0
    """Time between single bytes."""


@dataclass
class Server:
    """An HTTP server; ``app`` answers, ``requests`` holds what was asked."""

    url: str = ""
    app: Callable[[Request], Reply] = lambda request: Reply()
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query))
            request = Request(parts.path, query, dict(self.headers), time.monotonic(), parts.query)
            server.requests.append(request)
            reply = server.app(request)
            if reply.stall_s:
                server.released.wait(reply.stall_s)
            self.send_response(reply.status)
            length = len(reply.body) if reply.length is None else reply.length
            for name, value in ({"Content-Length": str(length)} if length >= 0 else {}).items():
                self.send_header(name, value)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has gone
                if reply.drip_s:
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        if server.released.wait(reply.drip_s):
                            return
                else:
                    self.wfile.write(reply.body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def make_server() -> Iterator[Callable[[], Server]]:
    """Start HTTP servers of their own."""
    with contextlib.ExitStack() as stack:

        def make() -> Server:
            server = Server()
            http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
            http.daemon_threads = True
            thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(http.server_close)
            stack.callback(http.shutdown)
            stack.callback(server.released.set)
            server.url = f"http://127.0.0.1:{http.server_address[1]}"
            return server

        yield make


@pytest.fixture
def server(make_server: Callable[[], Server]) -> Server:
    """One HTTP server."""
    return make_server()
