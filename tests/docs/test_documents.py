"""The documents: README's commands run as written, links lead somewhere, examples in docs parse."""

import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.spec import RunSpec
from lepton_ray.spec.model import CustomModel

REPOSITORY = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
)
BIN = Path(sys.executable).parent
_JOBS = (_DIGITS, _CREDIT) = (
    "lepton-ray run jobs/specs/handwritten_digits.yaml",
    "lepton-ray run jobs/specs/credit_risk.yaml",
)


def blocks(name: str) -> list[list[str]]:
    """Commands of each bash block, comments left out."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    found = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [[line for line in block.splitlines() if line and not line.startswith("#")] for block in found]


def commands(name: str) -> list[str]:
    return [command for block in blocks(name) for command in block]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: a clone's jobs, and a data file of their own."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "jobs").symlink_to(REPOSITORY / "jobs")
    rng = random.Random(3)
    with (folder / "customers.csv").open("w") as file:
        file.write("customer,age,city,spent,churned\n")
        for number in range(400):
            age, spent, city = rng.randint(18, 90), rng.uniform(0, 500), rng.choice(["oslo", "rome", ""])
            file.write(f"{number},{age},{city},{spent:.2f},{'yes' if spent < 200 + age else 'no'}\n")
    return folder


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, "PATH": f"{BIN}:{kept['PATH']}"}


def run(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True, timeout=500, check=False
    )


def plain_commands(name: str) -> list[str]:
    """Commands that end by themselves, one after the other; ``make`` targets are tested below."""
    return [c for c in commands(name) if not c.startswith(("make ", "curl ", "lepton-ray serve", *_JOBS))]


@pytest.fixture(scope="module")
def follow(clone: Path) -> Callable[[str], "subprocess.CompletedProcess[str]"]:
    """Run a command of the README once all before it have run; each test takes the time of its own command."""
    done: dict[str, subprocess.CompletedProcess[str]] = {}

    def follow(last: str) -> "subprocess.CompletedProcess[str]":
        for command in plain_commands("README.md"):
            if last in done:
                break
            if command not in done:
                done[command] = run(command, clone)
        return done[last]

    return follow


@pytest.mark.parametrize("command", plain_commands("README.md"))
def test_readme_command_runs_as_written(
    command: str, follow: Callable[[str], "subprocess.CompletedProcess[str]"]
) -> None:
    done = follow(command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_library_is_used_as_written(
    follow: Callable[[str], "subprocess.CompletedProcess[str]"], clone: Path
) -> None:
    follow(next(c for c in plain_commands("README.md") if c.startswith("lepton-ray init ")))
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/runs.md").read_text(encoding="utf-8"), re.DOTALL)
    (clone / "use.py").write_text(code)
    done = run("python use.py", clone)
    assert done.returncode == 0, done.stdout + done.stderr
    measured, answer = done.stdout.splitlines()
    assert measured.startswith("{'accuracy': ")
    assert answer.startswith("[{'label': ")


@pytest.mark.slow
@pytest.mark.parametrize("command", _JOBS)
def test_readme_job_runs_as_written(command: str, clone: Path) -> None:
    assert command in commands("README.md")
    done = run(command, clone)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server(clone: Path, follow: Callable[[str], object]) -> Iterator[None]:
    follow(plain_commands("README.md")[-1])
    (command,) = [c for c in commands("README.md") if c.startswith("lepton-ray serve")]
    process = subprocess.Popen(
        shlex.split(f"{BIN}/{command}"), cwd=clone, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("serving at"):
            break
    assert seen, "the server says where it serves"
    assert seen[-1].startswith("serving at http://127.0.0.1:8001"), "".join(seen)
    yield
    process.terminate()  # SIGINT is ignored below a shell that runs in the background
    process.communicate(timeout=300)
    assert process.returncode == 0


@pytest.mark.parametrize("command", [c for c in commands("README.md") if c.startswith("curl ")])
def test_readme_request_is_answered(command: str, server: None, clone: Path) -> None:
    done = run(f"{command} --fail-with-body", clone)
    assert done.returncode == 0, done.stdout
    assert '"error"' not in done.stdout


def test_make_targets_of_the_documents_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for path in DOCUMENTS
        for target in re.findall(r"make ([a-z-]+)\b(?=[`\n ]*(?:SERVE=1)?[`\n])", path.read_text())
    }
    assert {"demo", "test"} <= named
    assert named <= known


def test_both_readmes_have_the_same_commands() -> None:
    assert commands("README.zh-CN.md") == commands("README.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_reasons_in_the_documents_are_those_of_the_ledger() -> None:
    from lepton_ray.spec.clean import REASONS

    text = (REPOSITORY / "docs/spec.md").read_text()
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []


def test_models_in_the_documents_are_those_of_the_spec() -> None:
    """And the modules of one's own, in PyTorch and in Keras, are built as they are written."""
    import torch

    text = (REPOSITORY / "docs" / "models.md").read_text()
    kinds = re.findall(r"^\| `(\w+)` \|", text.partition("## Inputs")[0], re.MULTILINE)
    schema = RunSpec.model_json_schema()["properties"]["model"]["anyOf"][0]
    assert sorted(kinds[1:]) == sorted(schema["discriminator"]["mapping"])
    spec = CustomModel(kind="custom", module="my_package.models:build", options={"depth": 3})
    for code, rows in zip(
        re.findall(r"```python\n(.*?)```", text, re.DOTALL), (torch.zeros(2, 4), np.zeros((2, 4))), strict=True
    ):
        names: dict[str, Any] = {}
        exec(code, names)  # our own document
        assert names["build"](spec, [ModelInput(name="features", shape=(4,))], 5)(rows).shape == (2, 5)


def test_metrics_in_the_documents_are_those_of_the_catalogue() -> None:
    from lepton_ray.core.metrics import CATALOGUE

    text = "".join((REPOSITORY / "docs" / name).read_text() for name in ("endpoint.md", "monitoring.md"))
    for metric in CATALOGUE:
        assert f"`ray_{metric.name}{'_total' if metric.kind == 'counter' else ''}`" in text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demo_from_a_fresh_clone(tmp_path: Path) -> None:
    """The two commands of README do all the set-up; here the first, in a new environment."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
    bare = {key: value for key, value in environment().items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        ["make", "demo", f"PYTHON={sys._base_executable}"],
        cwd=clone,
        env=bare,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/predict -> 200" in done.stdout
    assert "ray_lepton_requests_total{" in done.stdout
