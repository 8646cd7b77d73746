"""What a node tells of itself; runs on each one."""

import importlib.metadata
import os
import platform
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow.fs import FileSystem

from lepton_ray import __version__
from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.core import settings
from lepton_ray.core.errors import LeptonError
from lepton_ray.core.text import without_credentials

LIBRARIES = {
    "onnxruntime": "serve",
    "onnx": "pipeline",
    "torch": "torch",
    "transformers": "pretrained",
    "keras": "keras",
    "tensorflow": "keras",
    "jax": "jax",
    "mlflow": "mlflow",
}
"""Packages that a spec may need, and the extras that bring them."""
_ALTERNATIVES = {"tensorflow": ("tensorflow", "tensorflow_cpu")}
_REQUIRED = ("ray", "numpy", "pyarrow", "pydantic")
_CONNECT_TIMEOUT_S = 3.0
_MAX_CONNECTIONS = 32


@dataclass(frozen=True)
class Peer:
    """A port that other nodes must reach."""

    node: str
    what: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.what} of {self.node} ({self.host}:{self.port})"


@dataclass(frozen=True)
class NodeFacts:
    """One node, as it sees itself."""

    node: str
    """Its address."""
    versions: dict[str, str | None]
    """Of python, lepton_ray and packages; None for one that is not installed."""
    auth_mode: str | None
    """``RAY_AUTH_MODE`` of its processes."""
    has_token: bool
    object_store_bytes: int
    memory_bytes: int
    """That Ray counts on, without the object store."""
    shm_bytes: int
    """Of ``/dev/shm``; 0 where there is none."""
    spill_folder: str
    spill_free_bytes: int
    spill_total_bytes: int
    unreachable: list[str] = field(default_factory=list)
    """Ports of others that it cannot connect to."""
    storage_problem: str | None = None
    """Why the storage cannot be used here."""


def library_versions() -> dict[str, str | None]:
    """Return the versions of what is installed in this process's environment."""
    return {
        "python": platform.python_version(),
        "lepton_ray": __version__,
        **{name: _version(name) for name in (*_REQUIRED, *LIBRARIES)},
    }


def _version(name: str) -> str | None:
    for candidate in _ALTERNATIVES.get(name, (name,)):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def gather(
    node: str, sizes: tuple[int, int], session: Path, peers: Sequence[Peer], storage: str | None, marker: str
) -> NodeFacts:
    """Return what this node knows of itself.

    Args:
        node: Its address.
        sizes: Bytes of its object store, and of the memory that Ray gives to tasks.
        session: Ray's folder here, where objects spill unless Ray was told of another.
        peers: Ports to connect to.
        storage: Folder or URI that all nodes share; None leaves it alone.
        marker: Folder in it, which the caller has made, with a file ``caller``.
    """
    disk = os.statvfs(session)
    return NodeFacts(
        node=node,
        versions=library_versions(),
        auth_mode=settings.ray_auth_mode(),
        has_token=settings.ray_token() is not None,
        object_store_bytes=sizes[0],
        memory_bytes=sizes[1],
        shm_bytes=_shm_size(),
        spill_folder=str(session),
        spill_free_bytes=disk.f_bavail * disk.f_frsize,
        spill_total_bytes=disk.f_blocks * disk.f_frsize,
        unreachable=find_unreachable(peers),
        storage_problem=None if storage is None else try_storage(storage, marker, node),
    )


def _shm_size() -> int:
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108  Ray's object store is there
    except OSError:
        return 0
    return room.f_blocks * room.f_frsize


def find_unreachable(peers: Sequence[Peer]) -> list[str]:
    """Return the ports that nothing answers at."""

    def answers(peer: Peer) -> bool:
        try:
            socket.create_connection((peer.host, peer.port), _CONNECT_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(_MAX_CONNECTIONS) as pool:
        return [str(peer) for peer, reached in zip(peers, pool.map(answers, peers), strict=True) if not reached]


def try_storage(uri: str, marker: str, name: str) -> str | None:
    """Read what the caller wrote into the shared storage, and write a file of one's own; returns what went wrong."""
    try:
        filesystem, root = open_filesystem(uri)
        folder = f"{root.rstrip('/')}/{marker}"
        with filesystem.open_input_stream(f"{folder}/caller") as stream:
            stream.read()
        write(filesystem, f"{folder}/{name}")
    except FileNotFoundError:
        return "a file that another machine wrote there is not seen"
    except (LeptonError, OSError) as error:
        return without_credentials(str(error)).splitlines()[0]
    return None


def write(filesystem: FileSystem, path: str) -> None:
    """Write a file of a few bytes."""
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"lepton-ray doctor")
