"""One listening socket for several replicas, which here are SharedSocket objects of one process."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ray.engine.session import free_port
from lepton_ray.serve.sockets import SharedSocket, is_free, share


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


def test_a_port_that_is_shared_by_reuse_is_not_free() -> None:
    port = free_port()
    # as Ray Serve's proxy binds: a second one that does the same would get half of the requests
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_free("127.0.0.1", port)
        assert not is_free("0.0.0.0", port)  # what is wider takes it too
    assert is_free("127.0.0.1", port)


def test_a_port_that_is_left_soon_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as leaving:
        threading.Timer(0.3, leaving.close).start()
        assert is_free("127.0.0.1", leaving.getsockname()[1])


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        is_free("192.0.2.77", 9)
