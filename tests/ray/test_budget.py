"""Trainings and searches on a cluster stop when their budget is spent and go on from there; what is spent is exported."""

import re
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.errors import BudgetError
from lepton_ray.core.spent import Spent
from lepton_ray.cost.meter import Budget, Meter
from lepton_ray.spec.model import TrainSpec
from lepton_ray.spec.tune import TuneSpec
from lepton_ray.tune.place import place_of

from .conftest import wait_until
from .test_search import LR, ONE, journal_in, rates, shrink
from .test_train import build, make_data


@pytest.mark.slow
def test_workers_end_after_a_report_and_go_on_from_it(cluster: None, tmp_path: Path) -> None:
    import ray

    from lepton_ray.train import in_process, on_ray

    spec = TrainSpec(num_workers=2, epochs=400, global_batch_size=32, lr=1e-3)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    with pytest.raises(BudgetError, match="all is spent"):
        on_ray.fit(build, make_data(), spec, 5, storage, lambda text: None, lambda: "all is spent")
    report = storage.read_progress()
    assert report is not None
    assert 1 <= report["epoch"] < spec.epochs
    wait_until(lambda: ray.available_resources().get("CPU") == 4, "the end of the workers")
    short = spec.model_copy(update={"epochs": report["epoch"] + 1})
    resumed = on_ray.fit(build, make_data(), short, 5, storage, lambda text: None)
    one = in_process.fit(build, make_data(), short, 5, tmp_path / "alone", lambda text: None)
    assert len(resumed.history) == short.epochs
    assert resumed.history[-1]["val_loss"] == pytest.approx(one.history[-1]["val_loss"], abs=1e-4)


@pytest.mark.slow
def test_a_search_keeps_its_finished_trials_and_tries_the_rest_later(cluster: None, tmp_path: Path) -> None:
    from lepton_ray.tune import on_ray

    asked = {"num_trials": 5, "epochs": 2, "searcher": "random", "scheduler": "none", "space": LR, **ONE}
    spec = TuneSpec.model_validate(asked)
    search = partial(on_ray.search, spec, shrink, _data(), 1, place=place_of(spec, {}, 120.0))
    whole = search(journal_in(tmp_path / "whole"), lambda text: None)
    journal = journal_in(tmp_path / "cut")

    def spent() -> str:
        return "all is spent" if len(journal.read()) >= 2 else ""

    with pytest.raises(BudgetError, match="all is spent"):
        search(journal, lambda text: None, over_budget=spent)
    kept = journal.read()
    assert 2 <= len(kept) < 5
    assert all(trial.epochs == 2 for trial in kept), "a trial that was cut off is no finished one"
    found = search(journal, lambda text: None)
    assert found.trials[: len(kept)] == kept
    assert sorted(rates(found.trials)) == sorted(rates(whole.trials))


def _data() -> Any:
    import numpy as np

    return np.arange(3)


def exported(*prefixes: str) -> dict[str, float]:
    """Return what this node's metrics port shows of ours, by name and by stage or reason."""
    from lepton_ray.engine.session import connect

    url = connect().metrics_url
    assert url is not None
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith(prefixes):
            name, _, value = line.rpartition(" ")
            labels = re.search(r'\b(?:stage|reason)="(\w+)"', name)
            found[name.partition("{")[0] + (f"/{labels[1]}" if labels else "")] = float(value)
    return found


@pytest.mark.slow
def test_what_is_spent_is_exported(cluster: None) -> None:
    from lepton_ray.cost import on_ray

    meter = Meter(lambda: 7.5, Budget(usd=10.0), {"train": Spent(12.0, 4.0)})
    on_ray.export(meter)
    names = ("ray_lepton_cost", "ray_lepton_budget")
    wait_until(lambda: len(exported(*names)) >= 4, "the export")
    assert exported(*names) == {
        "ray_lepton_cost_usd/train": 4.0,
        "ray_lepton_cost_s/train": 12.0,
        "ray_lepton_cost_usd_per_h": 7.5,
        "ray_lepton_budget_used_fraction": 0.4,
    }


@pytest.mark.slow
def test_what_is_in_quarantine_is_exported_also_of_stages_that_came_before_ray(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_ray.engine import session
    from lepton_ray.pipeline import quarantine_metrics

    monkeypatch.setattr(session, "is_connected", lambda: False)
    quarantine_metrics.tell(Ledger.of(200, {"type_error": 10}))
    quarantine_metrics.tell(Ledger.of(200, {"type_error": 10, "duplicate": 40}))
    session.connect()
    shares = {"ray_lepton_quarantine_fraction/type_error": 0.05, "ray_lepton_quarantine_fraction/duplicate": 0.2}
    wait_until(lambda: exported("ray_lepton_quarantine") == shares, "the export")


def test_the_machines_of_a_cluster_are_those_that_a_plan_counts(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from lepton_ray.engine import there
    from lepton_ray.engine.resources import num_held

    found = there.look()
    assert (found.is_cluster, len(found.machines), found.total("CPU")) == (True, 1, 4)
    assert there.num_held(found.machines, {"CPU": 1.5}) == num_held({"CPU": 1.5}) == 2
    assert there.count_others() is None, "a local cluster has nobody else's machines"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert there.count_others() == 0
