"""One listening socket for several replicas, which here are SharedSocket objects of one process."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ray.engine.session import free_port
from lepton_ray.serve.sockets import SharedSocket, share


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short path: that of a Unix socket has 107 bytes at most."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name) / "meet"


async def _join(folder: Path, port: int) -> SharedSocket:
    shared = await asyncio.to_thread(share, folder, "127.0.0.1", port)
    shared.give_to_others()
    return shared


def test_whoever_leaves_takes_no_connection_with_it(folder: Path) -> None:
    async def go() -> bytes:
        port = free_port()
        first = await _join(folder, port)
        second = await _join(folder, port)
        third = await _join(folder, port)
        client = socket.create_connection(("127.0.0.1", port))  # in the queue, which is one for all
        client.sendall(b"hello")
        first.close()
        second.close()
        accepted, _ = third.listening.accept()
        with client, accepted:
            accepted.settimeout(5)
            received = accepted.recv(5)
        fourth = await _join(folder, port)  # from the third, as the first is gone
        third.close()
        assert fourth.listening.getsockname() == ("127.0.0.1", port)
        fourth.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        return received

    assert asyncio.run(go()) == b"hello"


def test_a_replica_that_was_killed_is_passed_over(folder: Path) -> None:
    async def go() -> None:
        port = free_port()
        killed = await _join(folder, port)
        asyncio.get_running_loop().remove_reader(killed.door.fileno())
        killed.door.close()
        killed.listening.close()
        assert killed.path.exists()
        next_one = await _join(folder, port)
        assert not killed.path.exists()
        next_one.close()
        assert list(folder.glob("*.sock")) == []

    asyncio.run(go())


def test_an_address_of_others_is_refused(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        share(folder, "127.0.0.1", other.getsockname()[1])
    with pytest.raises(OSError, match=r"not known|resolution"):
        share(folder, "no.such.host.invalid", 80)


def test_a_folder_that_others_can_enter_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="must be a folder of this user alone"):
        share(folder, "127.0.0.1", free_port())
    link = folder.parent / "link"
    target = folder.parent / "target"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    with pytest.raises(PermissionError, match="must be a folder of this user alone"):
        share(link, "127.0.0.1", free_port())
