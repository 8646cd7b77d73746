"""Certificates of the listener: TLS 1.2 and later, made again when their files change."""

import ssl
from collections.abc import Callable
from pathlib import Path

from lepton_ray.core import settings
from lepton_ray.core.errors import ArtifactError
from lepton_ray.serve.watch import Watched
from lepton_ray.spec.release import TlsSpec


def watch_certificate(
    tls: TlsSpec, use: Callable[[ssl.SSLContext], None], on_failure: Callable[[str], None], protocol: str = "http/1.1"
) -> Watched:
    """Have ``use`` called with what new connections of a protocol need, now and whenever the files change; returns what follows them.

    Raises:
        ArtifactError: If the files cannot be read or do not belong together.
    """
    paths = [local_file(uri) for uri in (tls.certificate_file, tls.key_file, tls.client_ca_file) if uri is not None]

    def read() -> bytes:
        return b"".join(Path(path).read_bytes() for path in paths)

    try:
        return Watched("certificate", read, lambda content: use(_build_context(protocol, *paths)), on_failure)
    except OSError as error:
        raise ArtifactError(
            f"serve.tls must name a certificate and its key, on each replica's node, got {tls.certificate_file!r}: {error}"
        ) from error


def local_file(uri: str) -> str:
    """Return the path of a file of ``serve.tls``.

    Raises:
        ArtifactError: If it is on another filesystem.
    """
    path = settings.local_path(uri)
    if path is None:
        raise ArtifactError(f"serve.tls must name files of this machine, got {uri!r}. Mount or copy it")
    return str(path)


def _build_context(protocol: str, certificate: str, key: str, client_ca: str | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    context.load_cert_chain(certificate, key, password=_no_password)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def _no_password() -> str:
    """Have an encrypted key refused, where OpenSSL would ask for its password at the terminal."""
    return ""
