"""Machines of their own on this one: namespaces with their addresses, homes and sshd, joined by a switch, with no way out.

A machine is a network, process, mount and host name namespace; its first process is sshd. Ended, it takes every process in it
along, and ``ray stop`` in it stops none but its own. All of it ends with the process that made it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
CLIENT = "ops"
"""The machine that commands are typed on."""
_NETWORK = "10.77.0"
_NEEDED = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "rsync": "rsync",
    "curl": "curl",
}
_SSHD = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 50
MaxSessions 50
"""
# Debian gives a host's own name a loopback address, which is what other machines must not be told.
_HOSTS = "127.0.0.1 localhost\n127.0.1.1 {name}\n"
_BOOT = """\
hostname {name}
mount --bind {home}/ray /tmp/ray
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount --bind {home}/passwd /etc/passwd
mount --bind {home}/hosts /etc/hosts
exec "$@"
"""


@dataclass
class Machines:
    """A handful of machines, by name; ``client`` types the commands."""

    folder: Path
    prefix: str
    addresses: dict[str, str]
    environment: dict[str, str]
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def home(self, name: str) -> Path:
        return self.folder / name

    def start(self, name: str) -> None:
        """Boot a machine; what was in its /tmp/ray is gone, as after a real boot."""
        home = self.home(name)
        shutil.rmtree(home / "ray", ignore_errors=True)
        (home / "ray").mkdir(parents=True)
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "sshd_config")]
        log = (home / "sshd.log").open("ab")
        self.running[name] = subprocess.Popen(
            self._in(name, command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._plain()
        )
        log.close()
        process = self.running[name]
        wait_for(lambda: self._listens(name), f"sshd on {name}", 60, process)

    def kill(self, name: str) -> None:
        """End a machine with everything on it, at once."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def set_link(self, name: str, up: bool) -> None:
        """Cut a machine off, or join it again."""
        _ip("-n", f"{self.prefix}sw", "link", "set", f"v-{name}", "up" if up else "down")

    def popen(self, *command: str, name: str = CLIENT, **options: object) -> "subprocess.Popen[bytes]":
        """Start a command on the client's machine; it ends with all that it starts."""
        return subprocess.Popen(self._in(name, command), cwd=REPOSITORY, env=self.environment, **options)  # type: ignore[call-overload,no-any-return]

    def run(self, *command: str, timeout_s: float = 280) -> "subprocess.CompletedProcess[str]":
        """Run a command on the client's machine."""
        return subprocess.run(
            self._in(CLIENT, command),
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def cluster(self, *arguments: object, timeout_s: float = 280) -> "subprocess.CompletedProcess[str]":
        """Run ``lepton-ray cluster``."""
        return self.run(sys.executable, "-m", "lepton_ray", "cluster", *map(str, arguments), timeout_s=timeout_s)

    def processes(self, name: str) -> list[str]:
        """Names of what runs on a machine."""
        inside = Path(f"/proc/{self.running[name].pid}/task/{self.running[name].pid}/children").read_text().split()
        listed = subprocess.run(
            ["nsenter", "-t", inside[0], "-p", "-m", "bash", "-c", "cat /proc/[0-9]*/comm"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return listed.stdout.split()

    def _in(self, name: str, command: Sequence[str]) -> list[str]:
        script = _BOOT.format(name=name, home=self.home(name))
        namespaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        ends_with_us = ["setpriv", "--pdeathsig", "KILL"]
        return [*ends_with_us, "ip", "netns", "exec", self.prefix + name, *namespaces, "bash", "-ec", script, "_", *command]  # fmt: skip

    def _plain(self) -> dict[str, str]:
        return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

    def _listens(self, name: str) -> bool:
        probe = [
            "ip",
            "netns",
            "exec",
            self.prefix + CLIENT,
            "bash",
            "-c",
            f"exec 3<>/dev/tcp/{self.addresses[name]}/22",
        ]
        return subprocess.run(probe, stderr=subprocess.DEVNULL, timeout=30, check=False).returncode == 0


@contextlib.contextmanager
def machines(folder: Path, names: Sequence[str]) -> Iterator[Machines]:
    """Boot machines and the client's; they end with the block."""
    _skip_without_means()
    prefix = f"lr{os.getpid()}-"
    numbers = {CLIENT: 20, **{name: 10 + number for number, name in enumerate(names)}}
    addresses = {name: f"{_NETWORK}.{number}" for name, number in numbers.items()}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "AWS_", "PYTEST_"))}
    environment |= {
        "HOME": str(folder / CLIENT),
        "PATH": f"{BIN}:{environment['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "TMPDIR": str(folder / CLIENT),
    }
    made = Machines(folder, prefix, addresses, environment)
    Path("/tmp/ray").mkdir(exist_ok=True)
    try:
        _make_switch(prefix, addresses)
        _make_homes(made)
        for name in names:
            made.start(name)
        yield made
    finally:
        for name in list(made.running):
            made.kill(name)
        for name in (*addresses, "sw"):
            subprocess.run(["ip", "netns", "del", prefix + name], check=False, capture_output=True)


def _skip_without_means() -> None:
    if os.geteuid() != 0:
        pytest.skip("machines are namespaces, which only root may make here")
    if missing := sorted({package for command, package in _NEEDED.items() if shutil.which(command) is None}):
        pytest.skip(f"not installed: apt-get install {' '.join(missing)}")
    probe = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")


def _make_switch(prefix: str, addresses: dict[str, str]) -> None:
    switch = f"{prefix}sw"
    _ip("netns", "add", switch)
    _ip("-n", switch, "link", "add", "br0", "type", "bridge")
    _ip("-n", switch, "link", "set", "br0", "up")
    for name, address in addresses.items():
        machine = prefix + name
        _ip("netns", "add", machine)
        _ip("-n", machine, "link", "set", "lo", "up")
        _ip("link", "add", f"v-{name}", "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", machine)
        _ip("-n", switch, "link", "set", f"v-{name}", "master", "br0", "up")
        _ip("-n", machine, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", machine, "link", "set", "eth0", "up")
        _ip("-n", machine, "route", "add", "default", "dev", "eth0")  # leads nowhere, but Ray finds its address by it


def _make_homes(made: Machines) -> None:
    folder = made.folder
    for key in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
    for name in made.addresses:
        home = folder / name
        (home / "ray").mkdir(parents=True)
        (home / "passwd").write_text(
            "".join(
                f"root:x:0:0:root:{home}:/bin/bash\n" if line.startswith("root:") else line
                for line in Path("/etc/passwd").read_text().splitlines(keepends=True)
            )
        )
        (home / "hosts").write_text(_HOSTS.format(name=name))
    (folder / CLIENT / ".ray").mkdir()
    (folder / CLIENT / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


def wait_for(
    condition: Callable[[], bool], what: str, timeout_s: float, process: "subprocess.Popen[bytes] | None" = None
) -> None:
    """Wait, within a bound, and no longer than the process lives that it depends on."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, f"{what}: its process has ended with {process and process.returncode}"  # fmt: skip
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.2)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
