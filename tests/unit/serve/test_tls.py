"""TLS at the listener: real handshakes, wrong ones, certificates that change."""

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from lepton_ray.core.errors import ArtifactError
from lepton_ray.serve.endpoint import Limits
from lepton_ray.serve.grpc_connection import GrpcConnection
from lepton_ray.serve.grpc_messages import SERVICE
from lepton_ray.serve.tls import watch_certificate
from lepton_ray.spec.release import ListenerSpec, ServeSpec, TlsSpec

from .conftest import RECORD, Client, Running
from .test_listener import get, post


def make_certificate(folder: Path, name: str, signed_by: str | None = None) -> None:
    """Write NAME.pem and NAME.key, signed by another or by itself."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
    if signed_by is not None:
        command += ["-addext", "subjectAltName=DNS:localhost", "-CA", f"{signed_by}.pem", "-CAkey", f"{signed_by}.key"]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    make_certificate(made, "ca")
    make_certificate(made, "other-ca")
    make_certificate(made, "server", "ca")
    make_certificate(made, "client", "ca")
    make_certificate(made, "stranger", "other-ca")
    return made


def context_of(folder: Path, client_ca: bool = False, protocol: str = "http/1.1") -> ssl.SSLContext:
    tls = TlsSpec(
        certificate_file=f"{folder}/server.pem",
        key_file=f"{folder}/server.key",
        client_ca_file=f"{folder}/ca.pem" if client_ca else None,
    )
    contexts: list[ssl.SSLContext] = []
    watch_certificate(tls, contexts.append, lambda what: None, protocol)
    return contexts[0]


def trusting(folder: Path, ca: str = "ca", name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / f"{ca}.pem"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def connect(running: Any, context: ssl.SSLContext) -> Client:
    client = running.connect()
    client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
    return client


def test_requests_are_answered_over_tls(listen: Any, folder: Path) -> None:
    running = listen(tls=context_of(folder), limits=Limits(max_request_bytes=100_000))
    client = connect(running, trusting(folder))
    assert client.ask(post([RECORD])).code == 200
    assert client.ask(post([RECORD] * 300)).code == 200
    assert client.ask(get(b"/v2", b"Connection: close")).code == 200
    assert client.socket.recv(1) == b""
    refused = connect(running, trusting(folder))
    refused.send(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b" " * 200_000)
    assert refused.read().code == 413
    running.call(running.listener.probe())


@pytest.fixture
def untaken(listen: Any, folder: Path) -> Iterator[tuple[Running, Client]]:
    """A client that has not begun to take its last answer, which is more than the systems of both keep."""
    running = listen(tls=context_of(folder))
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = Client.__new__(Client)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", running.port))
    client.socket = trusting(folder).wrap_socket(raw, server_hostname="localhost")
    client.send(post([RECORD] * 500, b"Connection: close"))
    while not running.meter.calls or running.listener._under_way:
        running.call(asyncio.sleep(0.01))
    yield running, client
    client.close()


def test_a_last_answer_may_be_taken_slowly_over_tls(untaken: tuple[Running, Client]) -> None:
    running, client = untaken
    for after_s in (5, 20):
        running.sweep(after_s)
    answer = client.read()
    assert (answer.code, answer.headers["connection"]) == (200, "close")
    assert len(json.loads(answer.body)["predictions"]) == 500


def test_a_client_that_takes_nothing_over_tls_is_cut_off(untaken: tuple[Running, Client]) -> None:
    running, _ = untaken
    for after_s in (1, 40):
        running.sweep(after_s)
    running.call(asyncio.sleep(0.01))
    assert not running.listener._connections


def test_handshakes_that_fail_end_cleanly(listen: Any, folder: Path, caplog: Any) -> None:
    running = listen(tls=context_of(folder))
    hasty = listen(tls=context_of(folder), connections=ListenerSpec(receive_timeout_s=0.3))
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(running, trusting(folder, "other-ca"))
    old = trusting(folder)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, OSError)):
        connect(running, old)
    plain = running.connect()
    plain.send(get(b"/v2"))
    while plain.socket.recv(100):
        pass
    slow = hasty.connect()
    assert slow.is_closed()
    assert connect(running, trusting(folder)).ask(get(b"/v2")).code == 200
    assert running.meter.calls == hasty.meter.calls == []
    assert "Traceback" not in caplog.text


def test_callers_show_a_certificate_where_that_is_asked_for(listen: Any, folder: Path) -> None:
    running = listen(tls=context_of(folder, client_ca=True))
    assert connect(running, trusting(folder, name="client")).ask(post([RECORD])).code == 200
    for name in (None, "stranger"):
        with pytest.raises((ssl.SSLError, OSError)):  # TLS 1.3 tells the client with the first answer
            connect(running, trusting(folder, name=name)).ask(post([RECORD]))


def test_a_changed_certificate_is_used_and_a_broken_one_is_not(folder: Path, tmp_path: Path) -> None:
    for name in ("ca", "server"):
        for suffix in (".pem", ".key"):
            (tmp_path / f"{name}{suffix}").write_bytes((folder / f"{name}{suffix}").read_bytes())
    tls = TlsSpec(certificate_file=f"{tmp_path}/server.pem", key_file=f"{tmp_path}/server.key")
    contexts: list[ssl.SSLContext] = []
    failures: list[str] = []
    watched = watch_certificate(tls, contexts.append, failures.append)
    asyncio.run(watched.refresh())
    assert len(contexts) == 1
    (tmp_path / "server.key").write_text("x")
    asyncio.run(watched.refresh())
    assert (len(contexts), failures) == (1, ["certificate"])
    make_certificate(tmp_path, "server", "ca")
    asyncio.run(watched.refresh())
    assert len(contexts) == 2


def test_wrong_files_and_addresses_are_refused(folder: Path) -> None:
    files = {"certificate_file": f"{folder}/server.pem", "key_file": f"{folder}/client.key"}
    for changed in ({}, {"key_file": f"{folder}/nothing"}, {"key_file": "s3://a/b"}):
        with pytest.raises(ArtifactError, match=r"serve\.tls must name"):
            watch_certificate(TlsSpec(**{**files, **changed}), lambda context: None, lambda what: None)
    with pytest.raises(ValidationError, match="host must be of the loopback interface"):
        ServeSpec(host="0.0.0.0", tls=TlsSpec(**files, client_ca_file=f"{folder}/ca.pem"))


def test_a_client_that_ends_tls_early_is_forgotten(listen: Any, folder: Path) -> None:
    running = listen(tls=context_of(folder))
    client = connect(running, trusting(folder))
    client.send(post([RECORD])[:-3])
    client.socket.shutdown(socket.SHUT_WR)
    assert connect(running, trusting(folder)).ask(get(b"/v2")).code == 200


@pytest.mark.parametrize(("name", "is_let_in"), [("client", True), ("stranger", False), (None, False)])
def test_grpc_has_it_too(listen: Any, folder: Path, name: str | None, is_let_in: bool) -> None:
    running = listen(tls=context_of(folder, client_ca=True, protocol="h2"), connect=GrpcConnection)
    files = [(folder / f"{name}.{end}").read_bytes() if name else None for end in ("key", "pem")]
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), *files)
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{running.port}", credentials, options) as channel:
        asked = channel.unary_unary(SERVICE + "ServerLive").future(b"", timeout=60)
        assert (asked.code() is grpc.StatusCode.OK) == is_let_in
        assert asked.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize(("listener", "port"), [({}, 8000), ({}, 8001), ({"port": 7000}, 7000)])
def test_grpc_has_a_port_of_its_own(listener: dict[str, int], port: int) -> None:
    with pytest.raises(ValidationError, match="grpc_port must be another port"):
        ServeSpec.model_validate({"listener": {**listener, "grpc_port": port}})
    assert ServeSpec.model_validate({"listener": {**listener, "grpc_port": 9000}}).listener
