"""A second node of a cluster on this machine, in a root of its own, whose disk, memory and processors seem full when a test says so.

Ray's agent there is the real one. The disk at its ``/`` is a small tmpfs. The files that the kernel tells of memory and processors in,
those of the control group and ``/proc/stat``, are the test's: nothing on the machine is in truth short.
"""

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from lepton_ray.core.files import write_atomic
from lepton_ray.engine.session import free_port

from .conftest import BIN, Head, wait_until

_MIB = 1 << 20
DISK_MIB = 64
MEMORY_MIB = 8192
_CGROUP = "sys/fs/cgroup"
_TICK_S = 0.2
_TICKS = 1000
"""Of the processors' clock in that time: many, so that a fraction of them is exact."""
_STAT = b"cpu  %020d 0 0 %020d 0 0 0 0 0 0\n"
"""The line of ``/proc/stat`` for all processors: time in programs, and idle, in ticks."""
_BOOT = f"""\
root=$1; shift
mount -t tmpfs -o size={DISK_MIB}m tmpfs "$root"
for each in /*; do
  if [ -L "$each" ]; then cp -a "$each" "$root$each"
  elif [ -d "$each" ] && [ "$each" != /sys ]; then mkdir "$root$each"; mount --rbind "$each" "$root$each"
  fi
done
mkdir -p "$root/{_CGROUP}"
echo {MEMORY_MIB * _MIB} > "$root/{_CGROUP}/memory.max"
echo {MEMORY_MIB * _MIB // 2} > "$root/{_CGROUP}/memory.current"
printf 'inactive_file 0\\nactive_file 0\\n' > "$root/{_CGROUP}/memory.stat"
{{ printf 'cpu  %020d 0 0 %020d 0 0 0 0 0 0\\n' 0 0; tail -n +2 /proc/stat; }} > "$root/stat"
mount --bind "$root/stat" "$root/proc/stat"
exec chroot "$root" "$@"
"""


@dataclass
class SmallNode:
    """A node that runs."""

    process: "subprocess.Popen[bytes]"
    instance: str
    """Its name in Prometheus."""
    busy_fraction: float = 0.5
    """Of its processors."""
    _is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def root(self) -> Path:
        """Its root, from outside."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return Path(f"/proc/{child}/root")

    def has_root(self) -> bool:
        """Whether it is there already."""
        with contextlib.suppress(ValueError, OSError):
            return (self.root / "stat").exists()
        return False

    def use_memory(self, fraction: float) -> None:
        """Have the control group use so much."""
        write_atomic(self.root / _CGROUP / "memory.current", str(int(fraction * MEMORY_MIB * _MIB)))

    def use_disk(self, mib: float) -> None:
        """Have a file of that size on the disk."""
        with (self.root / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, int(mib * _MIB)))

    def run_clock(self) -> None:
        """Count the processors' time, until the node ends. Written in place, as the file is mounted, and always as long."""
        busy = idle = 0
        with (self.root / "stat").open("rb+", buffering=0) as file:
            while not self._is_over.wait(_TICK_S):
                busy += round(self.busy_fraction * _TICKS)
                idle += round((1 - self.busy_fraction) * _TICKS)
                os.pwrite(file.fileno(), _STAT % (busy, idle), 0)

    def kill(self) -> None:
        """End everything on it at once."""
        self._is_over.set()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def small_node(head: Head, folder: Path) -> Iterator[SmallNode]:
    """Join a node to a cluster; it ends with the block."""
    if os.geteuid() != 0:
        pytest.skip("a root of its own is what only root may make")
    probe = ["unshare", "--mount", "--pid", "--fork", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    (folder / "root").mkdir()
    port = free_port()
    start = [str(BIN / "ray"), "start", f"--address={head.address}", "--block", "--num-cpus=1", "--object-store-memory=100000000"]  # fmt: skip
    ports = [f"--metrics-export-port={port}", f"--dashboard-agent-listen-port={free_port()}"]  # fmt: skip
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    boot = ["setpriv", "--pdeathsig", "KILL", *namespaces, "bash", "-ec", _BOOT, "boot", str(folder / "root")]
    with (folder / "node.log").open("w") as log:
        process = subprocess.Popen([*boot, *start, *ports], env=head.environment, stdout=log, stderr=log, cwd="/")
    node = SmallNode(process, f"{ray.util.get_node_ip_address()}:{port}")
    clock = threading.Thread(target=node.run_clock)
    try:
        wait_until(lambda: process.poll() is not None or node.has_root(), "the node's root")
        clock.start()
        yield node
    finally:
        node.kill()
        if clock.is_alive():
            clock.join()
