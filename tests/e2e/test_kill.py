"""SIGKILL: of the driver and of a worker, in the middle of an epoch. The run goes on to an undisturbed run's metrics."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from .conftest import Workplace

EPOCHS = 5
SPEC = f"""
name: kill
seed: 11
data:
  source: {{kind: csv, uri: rows.csv}}
  columns: {{a: number, b: number, c: category, y: category}}
  label: y
model: {{kind: mlp, hidden: [64, 64], dropout: 0.2}}
train: {{num_workers: 2, epochs: {EPOCHS}, global_batch_size: 16, lr: 1e-3}}
"""


def prepare(workplace: Workplace) -> None:
    """8,000 rows: an epoch takes long enough to be killed in its middle."""
    rng = random.Random(5)
    with (workplace.folder / "rows.csv").open("w") as file:
        file.write("a,b,c,y\n")
        for _ in range(8_000):
            a, b, c = rng.gauss(0, 1), rng.gauss(3, 2), rng.choice("uvw")
            score = a + 0.3 * b * (c == "u") - (c == "w") + rng.gauss(0, 0.5)
            file.write(f"{a:.6f},{b:.6f},{c},{'yes' if score > 0.5 else 'no'}\n")
    (workplace.folder / "spec.yaml").write_text(SPEC)


@pytest.fixture(scope="module")
def undisturbed(shared_workplace: Workplace) -> Any:
    prepare(shared_workplace)
    return shared_workplace.run_json("run", "spec.yaml")["stages"]


def wait_for_epoch(workplace: Workplace, epoch: int) -> None:
    def has_come() -> bool:
        for path in workplace.folder.glob("runs/kill/train/*/work/progress.json"):
            text = path.read_text()
            return bool(text) and json.loads(text)["epoch"] >= epoch
        return False

    workplace.wait_until(has_come, f"epoch {epoch}")


def assert_same(stages: Any, undisturbed: Any) -> None:
    assert stages["train"]["history"] == undisturbed["train"]["history"]
    assert stages["train"]["best_epoch"] == undisturbed["train"]["best_epoch"]
    assert stages["evaluate"]["metrics"] == undisturbed["evaluate"]["metrics"]
    assert model_bytes(stages) == model_bytes(undisturbed)


def model_bytes(stages: Any) -> bytes:
    return (Path(stages["export"]["folder"]) / "package/model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two whole runs
def test_killed_driver_goes_on_where_it_was(workplace: Workplace, undisturbed: Any) -> None:
    prepare(workplace)
    driver = workplace.start("run", "spec.yaml", "--json")
    wait_for_epoch(workplace, 2)
    workplace.kill(driver.pid)
    driver.communicate()
    workplace.wait_until(lambda: not workplace.workers(), "the end of the dead driver's workers")
    assert list(workplace.folder.glob("runs/kill/train/*/work/train/checkpoint_*"))
    stages = workplace.run_json("run", "spec.yaml")["stages"]
    assert [stages[name]["skipped"] for name in ("ingest", "clean", "featurize", "train")] == [True, True, True, False]
    assert_same(stages, undisturbed)


@pytest.mark.slow
def test_killed_worker_is_replaced(workplace: Workplace, undisturbed: Any) -> None:
    prepare(workplace)
    driver = workplace.start("run", "spec.yaml", "--json")
    wait_for_epoch(workplace, 2)
    workers = workplace.workers()
    assert len(workers) == 2
    workplace.kill(workers[0])
    output, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0, output + errors
    assert_same(json.loads(output)["stages"], undisturbed)


def test_two_runs_on_one_folder_exclude_each_other(workplace: Workplace) -> None:
    prepare(workplace)
    first = workplace.start("run", "spec.yaml", "--json")
    workplace.wait_until(lambda: (workplace.folder / "runs/kill/ingest").exists(), "the first stage")
    second = workplace.run("run", "spec.yaml", "--json")
    assert second.returncode == 1
    assert "must be used by one run at a time" in json.loads(second.stdout)["error"]
    workplace.kill(first.pid)
    first.communicate()
