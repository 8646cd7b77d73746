"""Boards and alerts of runs, by Prometheus and Alertmanager over a real pipeline: rows in quarantine, trials that fail, workers that
stand still, a budget.

The run is interrupted in its training and goes on with a budget that it cannot keep.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_ray.observe.boards import COST, PIPELINE, SEARCH, TRAINING

from . import monitored
from .conftest import BIN, REPOSITORY, Head, processes_named, stop_group
from .monitored import Live, needs_prometheus

HEAD_ENVIRONMENT = {**monitored.HEAD_ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}  # workers import this module
EXIT_BUDGET = 4
_BAD_FRACTION = 0.2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), needs_prometheus]


def build(spec: Any, inputs: Any, num_outputs: int) -> Any:
    """A model of a user that some settings of the search break."""
    import torch

    if spec.options["fault"]:
        raise RuntimeError("planted")
    return torch.nn.Linear(inputs[0].shape[0], num_outputs)


@pytest.fixture(scope="module")
def live(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with monitored.monitored(head, tmp_path_factory.mktemp("live")) as live:
        live.trust(head)
        yield live


@pytest.fixture(scope="module")
def spec(head: Head) -> Path:
    """Ten files, of whose rows a fifth cannot be read; a search of which one trial of four does not fail; a training without an end."""
    rng, folder = random.Random(0), head.home / "rows"
    folder.mkdir()
    for number in range(10):
        lines = []
        for _ in range(2000):
            size = rng.uniform(0, 100)
            is_bad = rng.random() < _BAD_FRACTION
            lines.append(f"{'unknown size' if is_bad else size},{'large' if size > 50 else 'small'}")
        (folder / f"{number}.csv").write_text("size,is\n" + "\n".join(lines))
    settings = {
        "name": "sizes",
        "storage": str(head.home / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(folder)},
            "label": "is",
            "columns": {"size": "number", "is": "category"},
            "engine": "ray",
        },
        "model": {"kind": "custom", "module": f"{__name__}:build", "options": {"fault": 0}},
        "tune": {
            "space": {"model.options.fault": {"kind": "choice", "values": [0, 1, 2, 3]}},
            "searcher": "grid",
            "epochs": 2,
            "max_failed_trials": 3,
        },
        "train": {"num_workers": 2, "epochs": 1_000_000},
        "cost": {"usd_per_hour": 36.0, "budget_h": 10.0},
    }
    path = head.home / "spec.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@contextmanager
def running(head: Head, spec: Path, *settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a spec on the cluster; ends with the block."""
    words = [word for setting in settings for word in ("--set", setting)]
    log = head.home / "run.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [str(BIN / "lepton-ray"), "run", str(spec), *words],
            cwd=REPOSITORY,
            env={**head.environment, "RAY_ADDRESS": head.address},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            yield process
        except BaseException as error:
            error.add_note(log.read_text()[-4000:])
            raise
        finally:
            stop_group(process)


@contextmanager
def stopped(processes: list[int]) -> Iterator[None]:
    """Let processes stand still."""
    assert processes
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def test_every_panel_of_a_run_has_data_and_its_faults_alert_and_clear(live: Live, head: Head, spec: Path) -> None:
    begin = time.monotonic()
    panels = [panel for board in (PIPELINE, SEARCH, TRAINING, COST) for panel in board.panels]
    with running(head, spec) as run:
        live.shows([panel for panel in panels if "ray_lepton_requests" not in panel.query], run)
        live.sees("firing", ["LeptonQuarantineShareHigh", "LeptonTrialsFail"], begin)
        (share,) = live.query("sum(ray_lepton_quarantine_fraction)")
        assert float(share["value"][1]) == pytest.approx(_BAD_FRACTION, abs=0.02)
        assert not live.query("ray_lepton_budget_used_fraction > 0.5")
        with stopped(processes_named("RayTrainWorker")):
            live.sees("firing", ["LeptonTrainingStalled"], begin)
        live.sees("resolved", ["LeptonTrainingStalled"], begin)
    live.sees("resolved", ["LeptonQuarantineShareHigh", "LeptonTrialsFail"], begin)


def test_a_budget_that_is_nearly_spent_alerts_before_the_run_stops_and_clears(
    live: Live, head: Head, spec: Path
) -> None:
    begin = time.monotonic()
    stages = json.loads((head.home / "runs/sizes/spent.json").read_text())["stages"]
    spent_s = sum(stage["seconds"] for stage in stages.values())
    with running(head, spec, f"cost.budget_h={(spent_s + 60) / 0.9 / 3600}") as run:
        live.sees("firing", ["LeptonBudgetAlmostSpent"], begin)
        assert run.poll() is None
        assert run.wait(monitored.WAIT_S) == EXIT_BUDGET
    live.sees("resolved", ["LeptonBudgetAlmostSpent"], begin)
