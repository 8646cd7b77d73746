"""A dataset scored through Ray Data and by threads alike, with workers and drivers that are killed on the way."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.artifacts.package import ModelPackage, open_package
from lepton_ray.commands.score_dataset import score_dataset
from lepton_ray.data import csv_text
from lepton_ray.data.connectors import files
from lepton_ray.pipeline import run as run_pipeline
from lepton_ray.spec import load_spec

from .conftest import REPOSITORY, wait_until

_ROWS = 600_000


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    lines = [f"{n * 0.32:.2f},{'ab'[n % 2]},{'large' if n > 150 else 'small'}\n" for n in range(300)]
    (folder / "rows.csv").write_text("size,kind,is\n" + "".join(lines))
    (folder / "spec.yaml").write_text(
        f"name: sizes\nstorage: {folder}/runs\nseed: 1\n"
        f"data: {{source: {{kind: csv, uri: {folder}/rows.csv}}, label: is,\n"
        "  columns: {size: {kind: number, max: 96}, kind: category, is: category}}\n"
        "model: {kind: mlp, hidden: []}\ntrain: {epochs: 2}\n"
    )
    return Path(run_pipeline(load_spec(str(folder / "spec.yaml"), []))["export"].path)


def _write(path: Path, rows: int) -> None:
    """Each hundredth record is refused."""
    path.write_text("size,kind,note\n" + "".join(f"{n % 98},a,{n:060d}\n" for n in range(rows)))


def _contents(output: Path) -> dict[str, bytes]:
    found = (path for path in sorted(output.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def _score(open_model: Any, source: Path, output: Path, use_ray: bool) -> tuple[int, int]:
    return score_dataset(open_model, str(source), str(output), use_ray, lambda message: None)


@pytest.mark.slow
def test_ray_data_gives_the_same_bytes_also_when_a_worker_is_killed(
    cluster: None, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PART_BYTES", 20_000)
    monkeypatch.setattr(csv_text, "_MIN_READ_BYTES", 20_000)
    _write(tmp_path / "d.csv", 9_800)
    counts = _score(partial(open_package, package), tmp_path / "d.csv", tmp_path / "local", use_ray=False)
    assert counts == (9_700, 100)
    driver, flag = os.getpid(), tmp_path / "kill"
    flag.touch()

    def open_or_die() -> ModelPackage:
        if os.getpid() != driver and flag.exists():
            flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return open_package(package)

    assert _score(open_or_die, tmp_path / "d.csv", tmp_path / "ray", use_ray=True) == counts
    assert not flag.exists()
    assert _contents(tmp_path / "ray") == _contents(tmp_path / "local")


@pytest.mark.parametrize(
    "options", [pytest.param([], id="threads"), pytest.param(["--ray"], id="ray", marks=pytest.mark.slow)]
)
def test_a_killed_driver_goes_on_to_what_an_undisturbed_one_gives(
    package: Path, tmp_path: Path, options: list[str]
) -> None:
    _write(tmp_path / "d.csv", _ROWS)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "lepton_ray", "predict", str(package), "d.csv", *options, "-o"]

    def start(output: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*command, output], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)

    done = tmp_path / "out" / "work" / "scoring"
    killed = start("out/")
    wait_until(lambda: killed.poll() is not None or (done.is_dir() and any(done.glob("0*.json"))), "the first part")
    killed.kill()
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    for output in ("out/", "undisturbed/"):
        process = start(output)
        _, said = process.communicate(timeout=200)
        assert process.returncode == 1, said
        assert said.endswith(f"{_ROWS} records: {_ROWS - _ROWS // 98} scored, {_ROWS // 98} refused\n".encode())
    assert _contents(tmp_path / "out") == _contents(tmp_path / "undisturbed")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["records"] == _ROWS
