"""Installs that leave parts out: a serving image needs no training framework, and says what it lacks for more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPOSITORY, Workplace

MODULES = (
    "import sys, lepton_ray.artifacts.predictor, lepton_ray.serve.http, lepton_ray.serve.on_ray; print(*sys.modules)"
)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the serving extra alone."""
    folder = tmp_path_factory.mktemp("serving")
    subprocess.run([sys._base_executable, "-m", "venv", str(folder)], check=True)
    constraints = ["-c", str(REPOSITORY / "constraints.txt")]
    subprocess.run([str(folder / "bin/pip"), "install", "-q", *constraints, f"{REPOSITORY}[serve]"], check=True)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_serving_install_scores_and_serves_and_cannot_train(
    serving: Path, shared_workplace: Workplace, workplace: Workplace
) -> None:
    rows = "\n".join(f"{n},{n % 13}.5,{'yes' if n % 13 > 6 else 'no'}" for n in range(300))
    (shared_workplace.folder / "rows.csv").write_text(f"id,x,y\n{rows}\n")
    spec = shared_workplace.run("init", "rows.csv").stdout
    (shared_workplace.folder / "spec.yaml").write_text(spec)
    package = shared_workplace.folder / "runs/rows/latest/export/package"
    assert shared_workplace.run("run", "spec.yaml").returncode == 0

    installed = subprocess.run([serving / "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    names = {entry["name"] for entry in json.loads(installed.stdout)}
    assert names & {"torch", "tensorflow", "mlflow", "pandas", "scikit-learn", "onnx"} == set()

    command = [serving / "lepton-ray", "predict", package, shared_workplace.folder / "rows.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 300

    loaded = subprocess.run(
        [serving / "python", "-c", MODULES], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"torch", "tensorflow"} & set(loaded) == set()

    run = [serving / "lepton-ray", "run", shared_workplace.folder / "spec.yaml", "--set", f"storage={workplace.folder}"]
    refused = subprocess.run(run, cwd=shared_workplace.folder, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "pip install 'lepton-ray[pipeline]'" in refused.stderr
    assert "Traceback" not in refused.stderr
