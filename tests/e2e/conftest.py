"""The command as a user runs it, in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
COMMAND = Path(sys.executable).parent / "lepton-ray"


@dataclass(frozen=True)
class Workplace:
    """A folder that ``lepton-ray`` is run in; its processes carry a mark in their environment."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return {**kept, "LEPTON_TEST": str(self.folder)}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [str(COMMAND), *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, timeout_s: float = 500) -> "subprocess.CompletedProcess[str]":
        command = [str(COMMAND), *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run_json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SIGTERM handler is not set" not in done.stderr, "a thread has started a second cluster at the end"
        return json.loads(done.stdout)

    def processes(self) -> dict[int, str]:
        """Live processes that this folder's commands started, by what they call themselves."""
        mark = f"LEPTON_TEST={self.folder}\0".encode()
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes() + b"\0":
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def workers(self) -> list[int]:
        """Live processes that train."""
        return [pid for pid, name in self.processes().items() if "TrainWorker" in name]

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_s: float = 300) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
            time.sleep(0.05)
        return value

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture(scope="module")
def shared_workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("work"))
