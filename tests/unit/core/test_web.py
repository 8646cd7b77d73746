"""Asking HTTP addresses: a proxy that the environment names is for far ones."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lepton_ray.core import web


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"path": "%b"}' % self.path.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


def test_a_proxy_is_for_far_addresses_alone(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.server_port
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody is
    monkeypatch.delenv("no_proxy", raising=False)
    assert web.get_json(f"http://127.0.0.1:{port}/a") == {"path": "/a"}
    assert web.get_json(f"http://localhost:{port}/b") == {"path": "/b"}
    assert "refused" in web.get_json("http://prometheus.example/c")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert web.get_json("http://prometheus.example/c") == {"path": "http://prometheus.example/c"}


@pytest.mark.parametrize("host", ["localhost", "api.localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host: str) -> None:
    assert web.is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "127.example.com", "::1234", "0.0.0.0", "10.0.0.1", ""])
def test_no_loopback(host: str) -> None:
    assert not web.is_loopback(host)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-1", None),
        ("1.5", None),
    ],
)
def test_a_retry_after_is_a_number_or_a_time(text: str, seconds: float | None) -> None:
    assert web.retry_after_s(text) == seconds
