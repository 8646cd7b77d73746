"""One listening socket for all replicas of a node.

The first replica binds the address; each later one gets the very same socket from one that has it, through a Unix socket in a
folder that only this user can enter. So they share one queue of connections: one that leaves takes none with it, as it would
with SO_REUSEPORT, where each has a queue of its own; and two applications never share a port by mistake.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BACKLOG = 4096
_ASK_TIMEOUT_S = 5.0
_SUFFIX = ".sock"
_LEAVES_S = 3.0
"""Time that a process which is ended may take to leave its port."""
_LOOK_S = 0.1


@dataclass(frozen=True)
class SharedSocket:
    """A listening socket, and the door at which other replicas of the node ask for it."""

    listening: socket.socket
    door: socket.socket
    path: Path
    """Of the door."""

    def give_to_others(self) -> None:
        """Hand the socket out from now on, in the running event loop."""
        asyncio.get_running_loop().add_reader(self.door.fileno(), self._give)

    def close(self) -> None:
        """Leave the socket to the others."""
        asyncio.get_running_loop().remove_reader(self.door.fileno())
        self.path.unlink(missing_ok=True)
        self.door.close()
        self.listening.close()

    def _give(self) -> None:
        with contextlib.suppress(OSError):  # it has gone already
            asking, _ = self.door.accept()
            with asking:
                socket.send_fds(asking, [b"\0"], [self.listening.fileno()])


def share(folder: Path, host: str, port: int) -> SharedSocket:
    """Return the listening socket of the replicas that meet in ``folder``, bound if there is none yet.

    Raises:
        OSError: If the address cannot be bound, or the folder is not this user's alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_is_ours(folder)
    with _locked(folder / "lock"):
        listening = next(_offers(folder), None) or _bind(host, port)
        path = folder / f"{secrets.token_hex(4)}{_SUFFIX}"
        door = socket.socket(socket.AF_UNIX)
        door.bind(str(path))
        door.listen()
        door.setblocking(False)
    return SharedSocket(listening, door, path)


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens at an address of this machine, also not with SO_REUSEPORT, or leaves it within 3 s.

    Raises:
        OSError: If it is no address that can be listened at.
    """
    until = time.monotonic() + _LEAVES_S
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # Connections of before may still wait for their end.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if time.monotonic() > until:
                    return False
            else:
                return True
        time.sleep(_LOOK_S)


def _check_is_ours(folder: Path) -> None:
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user alone. Remove it")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _offers(folder: Path) -> Iterator[socket.socket]:
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_ASK_TIMEOUT_S)
            try:
                asking.connect(str(path))
                _, descriptors, _, _ = socket.recv_fds(asking, 1, 1)
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # its replica was killed
                continue
            except OSError:
                continue
        if descriptors:
            yield socket.socket(fileno=descriptors[0])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listening.setblocking(False)
    return listening
