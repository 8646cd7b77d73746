"""Run a command as a fresh process and measure it with all that it starts: wall seconds, CPU seconds, peak memory.

The tree is found by an environment variable that children inherit, daemons that have left the session included, and by
parentage, as a process may overwrite its environment. Memory is proportional set size (PSS): pages that processes share,
such as Ray's object store, count once. Pages of mapped files are in it; they are also counted apart, since the system can take
them back at any time. Reading it takes CPU from the measured, so time and memory are measured in runs of
their own.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PERIOD_S = 0.05
_GONE_WAIT_S = 30.0
MARK = "LEPTON_BENCHMARK_TREE"
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """One run."""

    seconds: float
    """Wall time until the command ended."""
    cpu_seconds: float = float("nan")
    """Of all processes of the tree, as last seen; only in runs that measure memory."""
    peak_mb: float = float("nan")
    """Greatest sum of the PSS of all processes of the tree; only in runs that measure memory."""
    peak_without_files_mb: float = float("nan")
    """The same without pages of mapped files: heap, stacks and shared memory."""


def run_command(command: list[str], memory: bool = False, env: dict[str, str] | None = None) -> Measured:
    """Run a command to its end, and wait until all that it started is gone.

    Raises:
        RuntimeError: If the command fails; with the end of what it printed.
    """
    tree = Tree()
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=tree.environment(os.environ if env is None else env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        tree.add(process.pid)
        try:
            while memory and process.poll() is None:
                tree.sample()
                time.sleep(_PERIOD_S)
            status = process.wait()
            seconds = time.perf_counter() - start
        finally:
            tree.end(process)
        if status:
            output.seek(max(0, output.seek(0, os.SEEK_END) - 3000))
            raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{output.read().decode(errors='replace')}")
    return (
        Measured(seconds, tree.cpu_seconds, tree.peak_mb, tree.peak_without_files_mb) if memory else Measured(seconds)
    )


@dataclass
class Tree:
    """The processes that carry a mark, and what they were seen to take."""

    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    peak_mb: float = 0.0
    peak_without_files_mb: float = 0.0
    _member: dict[int, bool] = field(default_factory=dict)
    _cpu: dict[int, float] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        """CPU that the members were seen to take."""
        return sum(self._cpu.values())

    def environment(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return an environment whose processes are members.

        Python may keep the bytecode of what it imports there: pip has written that of the peers, and a first run, which is not
        timed, writes ours.
        """
        return {name: value for name, value in given.items() if name != _NO_BYTECODE} | {MARK: self.mark}

    def add(self, pid: int) -> None:
        """Count a process in: until it has replaced its parent's program, its environment does not show the mark."""
        self._member[pid] = True

    def sample(self) -> None:
        """Look at all members once."""
        total_kb = file_kb = 0
        for pid in self.members():
            with contextlib.suppress(OSError, IndexError, ValueError):
                pss = _read_pss_kb(pid)
                total_kb += pss["Pss"]
                file_kb += pss["Pss_File"]
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        self.peak_mb = max(self.peak_mb, total_kb * 1024 / 1e6)
        self.peak_without_files_mb = max(self.peak_without_files_mb, (total_kb - file_kb) * 1024 / 1e6)

    def members(self) -> list[int]:
        """Return the processes that are there now, zombies left out."""
        present = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        for pid in set(self._member) - set(present):
            del self._member[pid]
        for pid in present:
            if pid not in self._member:
                self._member[pid] = self._is_member(pid)
        return [pid for pid in present if self._member.get(pid) and not _is_zombie(pid)]

    def _is_member(self, pid: int) -> bool:
        with contextlib.suppress(OSError, IndexError, ValueError):
            if f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return True
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            return self._member.get(parent, False)
        return False

    def end(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until the members are gone, so that they do not disturb the next run; then end those that stay."""
        deadline = time.monotonic() + _GONE_WAIT_S
        while process.poll() is not None and self.members() and time.monotonic() < deadline:
            time.sleep(_PERIOD_S)
        for pid in self.members():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _read_pss_kb(pid: int) -> dict[str, int]:
    """Return ``Pss`` and its parts, 0 for a process that has ended."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return defaultdict(int, {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)})


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True
