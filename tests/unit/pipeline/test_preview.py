"""The plan of a run: what runs and why, what it asks for, takes and costs; and nothing is written."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ray.core.errors import BudgetError, DataError, SpecError
from lepton_ray.core.spent import Spent
from lepton_ray.cost.bounds import Bounds
from lepton_ray.cost.meter import SpentFile
from lepton_ray.data.connectors.csv_files import CsvConnector
from lepton_ray.engine import there
from lepton_ray.engine.there import There
from lepton_ray.pipeline import needs, run
from lepton_ray.pipeline import preview as preview_module
from lepton_ray.pipeline.preview import Preview, preview
from lepton_ray.pipeline.spending import Spending
from lepton_ray.spec import parse_spec
from lepton_ray.spec.run import RunSpec

ROWS = 400
DATA = """
name: shop
storage: {folder}/runs
data:
  source: {{kind: csv, uri: {folder}/rows.csv}}
  label: y
  columns: {{a: number, b: category, y: category}}
clean: {{duplicates: keep}}
"""
MODEL = """
model: {{kind: mlp, hidden: [4]}}
train: {{epochs: 4}}
"""


def write_rows(path: Path, count: int = ROWS) -> None:
    rng = random.Random(1)
    rows = [f"{rng.gauss(0, 1):.5f},{rng.choice('uvw')},{rng.choice('no')}\n" for _ in range(count)]
    path.write_text("a,b,y\n" + "".join(rows))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_JOB_SUBMISSION_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(there, "is_connected", lambda: False)
    write_rows(tmp_path / "rows.csv")
    return tmp_path


def spec_of(folder: Path, *overrides: str, text: str = DATA) -> RunSpec:
    return parse_spec(text.format(folder=folder), overrides)


def with_model(folder: Path, *overrides: str) -> RunSpec:
    return spec_of(folder, *overrides, text=DATA + MODEL)


def whys(found: Preview) -> dict[str, tuple[bool, str]]:
    return {stage.fate.stage.name: (stage.fate.runs, "; ".join(stage.fate.why)) for stage in found.stages}


def everything(folder: Path) -> dict[str, tuple[int, float]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_nothing_is_written_and_no_row_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("a plan reads no rows")

    run(spec_of(folder))
    monkeypatch.chdir(folder)
    for name in ("read", "parts"):
        monkeypatch.setattr(CsvConnector, name, refuse)
    monkeypatch.setattr("lepton_ray.artifacts.store.sha256_file", refuse)
    before = everything(folder)
    for spec in (with_model(folder), with_model(folder, "seed=3"), with_model(folder, f"storage={folder}/other")):
        preview(spec)
        preview(spec, force=True)
    assert everything(folder) == before


def test_a_source_that_is_written_first_is_not_written_by_a_plan(folder: Path) -> None:
    prepare = "data.source.prepare=lepton_ray.testing.samples:write_medical_diagnosis"
    found = preview(spec_of(folder, f"data.source.uri={folder}/later.csv", prepare))
    assert not (folder / "later.csv").exists()
    assert "write_medical_diagnosis writes it first" in whys(found)["ingest"][1]
    assert found.sizes.rows is None
    with pytest.raises(DataError, match="nothing is at"):
        preview(spec_of(folder, f"data.source.uri={folder}/later.csv"))


def test_a_source_with_prepare_that_is_there_has_the_key_that_the_run_gives_it(folder: Path) -> None:
    prepare = "data.source.prepare=lepton_ray.testing.samples:write_medical_diagnosis"
    run(spec_of(folder, prepare))
    assert [runs for runs, _ in whys(preview(spec_of(folder, prepare))).values()] == [False, False, False]


def test_a_reference_that_is_written_first_is_not_written_by_a_plan(folder: Path) -> None:
    reference = f"{{kind: csv, uri: {folder}/keys.csv, prepare: 'lepton_ray.testing.samples:write_medical_diagnosis'}}"
    rules = f"clean.rules=[{{kind: foreign_key, columns: b, reference: {reference}}}]"
    run(spec_of(folder))
    found = preview(spec_of(folder, rules))
    assert not (folder / "keys.csv").exists()
    assert "write_medical_diagnosis writes it first" in whys(found)["clean"][1]


def test_what_is_done_is_skipped_and_what_follows_waits(folder: Path) -> None:
    assert whys(preview(with_model(folder)))["ingest"] == (True, "not done before")
    run(spec_of(folder))
    found = whys(preview(with_model(folder)))
    assert {name: runs for name, (runs, _) in found.items()} == {
        "ingest": False,
        "clean": False,
        "featurize": False,
        "train": True,
        "export": True,
        "evaluate": True,
    }
    assert found["export"][1].startswith("follows train; skipped after all if")
    forced = preview(with_model(folder), force=True)
    assert all(stage.fate.runs for stage in forced.stages)
    from_clean = whys(preview(with_model(folder), from_stage="clean"))
    assert from_clean["ingest"][0] is False
    assert from_clean["featurize"] == (True, "--from clean asks for it")
    with pytest.raises(SpecError, match="--from must name a stage of this spec"):
        preview(with_model(folder), from_stage="trian")


@pytest.mark.parametrize(
    ("stage", "override", "reason"),
    [
        ("clean", "clean.duplicates=drop", "clean.duplicates was None, is"),
        ("ingest", "seed=7", "seed was 0, is 7"),
        ("featurize", "features.numbers.scale=none", "features.numbers.scale was 'standard', is 'none'"),
        ("clean", "clean.max_removed_fraction=0.5", "clean.max_removed_fraction was 0.2, is 0.5"),
    ],
)
def test_the_part_of_the_key_that_changed_is_named(folder: Path, stage: str, override: str, reason: str) -> None:
    run(spec_of(folder))
    runs, why = whys(preview(spec_of(folder, override)))[stage]
    assert runs
    assert reason in why


def test_another_file_and_other_code_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lepton_ray.stages import ingest

    run(spec_of(folder))
    write_rows(folder / "rows.csv", ROWS + 1)
    assert whys(preview(spec_of(folder)))["ingest"] == (True, "what it reads has changed (files, tables, backbones)")
    monkeypatch.setattr(ingest, "VERSION", 99)
    assert "the stage's code has changed" in whys(preview(spec_of(folder)))["ingest"][1]


def test_runs_of_before_stay_readable(folder: Path) -> None:
    """Manifests without what a plan compares and scales: they are skipped as ever, and no time is made up from them."""
    run(spec_of(folder))
    for path in folder.glob("runs/shop/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        for name in ("depends", "work", "is_resumed"):
            manifest.pop(name, None)  # latest/ leads to them a second time
        path.write_text(json.dumps(manifest))
    assert [runs for runs, _ in whys(preview(spec_of(folder))).values()] == [False, False, False]
    assert all(result.skipped for result in run(spec_of(folder)).results.values())
    found = preview(spec_of(folder, "seed=1"), force=True)
    assert found.unknown == ["ingest", "clean", "featurize"]
    assert "did not note with what" in whys(preview(spec_of(folder, "seed=1")))["ingest"][1]


def test_times_come_from_past_runs_and_scale_with_rows(folder: Path) -> None:
    run(spec_of(folder))
    seconds = {
        path.parent.parent.name: json.loads(path.read_text())["seconds"]
        for path in folder.glob("runs/shop/*/*/manifest.json")
    }
    same = {stage.fate.stage.name: stage.seconds for stage in preview(spec_of(folder), force=True).stages}
    assert same["ingest"] == Bounds.exactly(seconds["ingest"])
    write_rows(folder / "rows.csv", 4 * ROWS)
    found = preview(spec_of(folder))
    more = {stage.fate.stage.name: stage.seconds for stage in found.stages}
    assert more["ingest"] is not None
    assert more["ingest"].low == pytest.approx(seconds["ingest"])
    assert more["ingest"].high == pytest.approx(4 * seconds["ingest"], rel=0.05)
    assert found.sizes.rows == Bounds.exactly(pytest.approx(4 * ROWS, rel=0.05))
    assert found.sizes.rows_from.startswith("those of the last ingest")
    assert found.to_json()["rows"] == {**found.sizes.rows.to_json(), "from": found.sizes.rows_from}


def test_a_stage_that_was_resumed_tells_no_time(folder: Path) -> None:
    run(spec_of(folder))
    path = next(folder.glob("runs/shop/clean/*/manifest.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_resumed": True}))
    assert preview(spec_of(folder), force=True).unknown == ["clean"]


def test_memory_of_training_follows_from_the_features(folder: Path) -> None:
    run(spec_of(folder))
    found = {stage.fate.stage.name: stage for stage in preview(with_model(folder)).stages}
    memory = found["train"].memory
    num_bytes = (0.7 + 0.15) * ROWS * (4 * 4 + 8)  # a number and three words, and the label
    assert memory is not None
    assert memory.num_bytes.low == pytest.approx(num_bytes, rel=0.02)
    assert memory.num_bytes.high == pytest.approx(2 * num_bytes, rel=0.02)
    assert found["train"].spilled == Bounds.exactly(0)


def machines(monkeypatch: pytest.MonkeyPatch, *each: dict[str, float], is_cluster: bool = True) -> None:
    monkeypatch.setattr(preview_module, "look", lambda: There("the cluster at x", is_cluster, each))


def test_what_is_asked_is_held_against_what_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["train.num_workers=6", "train.use_gpu=true", "train.global_batch_size=60", "serve={}"]
    space = "tune={epochs: 3, num_trials: 7, cpus_per_trial: 2, space: {train.lr: {kind: uniform, low: 0.1, high: 1}}}"
    spec = with_model(folder, *settings, space)
    machines(monkeypatch, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 5.0, "GPU": 2.0})
    asked = {stage.fate.stage.name: stage.asked for stage in preview(spec).stages}
    assert (asked["tune"].what, asked["tune"].at_once, asked["tune"].lacking) == ("7 trials of 2 CPU", 4, "")
    assert asked["train"].what == "6 workers of 1 CPU, 1 GPU"
    assert asked["train"].lacking == "room for 3 more of 1 CPU, 1 GPU"
    assert asked["deploy"].what == "1 to 2 replicas of 1 CPU"
    machines(monkeypatch, {"CPU": 1.0})
    assert {s.fate.stage.name: s.asked for s in preview(spec).stages}["tune"].lacking == "room for one trial (2 CPU)"


def test_trials_of_several_workers_are_counted_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = (
        "tune={epochs: 3, num_trials: 7, workers_per_trial: 3, space: {train.lr: {kind: uniform, low: 0.1, high: 1}}}"
    )
    spec = with_model(folder, space, "train.global_batch_size=60")
    machines(monkeypatch, {"CPU": 8.0})
    asked = {stage.fate.stage.name: stage.asked for stage in preview(spec).stages}["tune"]
    assert (asked.what, asked.at_once) == ("7 trials of 3 workers of 1 CPU", 2)


@pytest.mark.parametrize(
    ("override", "least"),
    [
        ("train.epochs=4", 7 * 10),
        ("train.early_stopping_epochs=2", 7 * 3),
        ("tune.stop_after_trials_without_improvement=2", 3 * 10),
        ("tune.scheduler={kind: asha, grace_epochs: 1}", 7),
    ],
)
def test_what_may_end_sooner_is_in_the_least_of_a_search(folder: Path, override: str, least: int) -> None:
    space = "tune={epochs: 10, num_trials: 7, scheduler: {kind: none}, space: {train.lr: {kind: uniform, low: 0.1, high: 1}}}"
    spec = with_model(folder, space, override)
    sizes = SimpleNamespace(rows=Bounds.exactly(100), splits={"train": Bounds.exactly(80)})
    work = needs._work("tune", spec, sizes, SimpleNamespace(at_once=2))  # type: ignore[arg-type]
    assert work is not None
    assert work["epochs"] == Bounds(least, 70)


def test_money_is_time_by_the_price_of_the_machines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(spec_of(folder))
    cost = "cost={provider: aws, head: m5.large, worker: m5.xlarge}"
    machines(monkeypatch, {"CPU": 2.0}, {"CPU": 4.0}, {"CPU": 4.0})
    found = preview(spec_of(folder, cost), force=True)
    assert found.usd_per_hour == Bounds.exactly(pytest.approx(0.096 + 2 * 0.192))
    assert found.usd is not None
    assert found.usd.high == pytest.approx((found.seconds.high or 0) / 3600 * 0.48)
    assert "aws us-east-1" in found.prices
    with pytest.raises(SpecError, match=r"cost\.head must be in the table"):
        preview(spec_of(folder, "cost={provider: aws, head: m5.huge}"))


def test_without_prices_money_is_unknown(folder: Path) -> None:
    found = preview(spec_of(folder))
    assert found.usd is None
    assert found.to_json()["usd_per_hour"] is None


def test_the_verdict_on_the_budget(folder: Path) -> None:
    run(spec_of(folder))
    took = preview(spec_of(folder), force=True).seconds.low
    unknown = preview(with_model(folder, "cost.budget_h=100"))
    assert unknown.verdict == "whether the budget lasts is not known"
    assert preview(spec_of(folder, f"cost.budget_h={took / 3600 * 2}"), force=True).verdict.startswith(
        "the budget lasts"
    )
    assert "does not last" in preview(spec_of(folder, f"cost.budget_h={took / 3600 / 2}"), force=True).verdict
    write_rows(folder / "rows.csv", 4 * ROWS)
    assert preview(spec_of(folder, f"cost.budget_h={took / 3600 * 2}")).verdict == "the budget may not last"
    assert preview(spec_of(folder)).verdict == ""


def price(monkeypatch: pytest.MonkeyPatch, usd_per_hour: float) -> None:
    monkeypatch.setattr(Spending, "usd_per_hour", lambda self: usd_per_hour)


def test_a_run_over_its_budget_stops_between_stages_and_goes_on_with_a_larger_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(spec_of(folder, f"storage={folder}/undisturbed"))
    price(monkeypatch, 1e9)  # an hour of any time at all
    cost = "cost={usd_per_hour: 1, budget_usd: 1}"
    with pytest.raises(
        BudgetError, match=r"cost\.budget_usd must cover.*budget is 1 USD.*--set cost\.budget_usd="
    ) as caught:
        run(spec_of(folder, cost))
    assert caught.value.exit_status == 4
    price(monkeypatch, 0.0)
    with pytest.raises(BudgetError):  # what was spent counts, at whatever price the rest is
        run(spec_of(folder, cost))
    spent = SpentFile(
        preview_module.Store.look_at(f"{folder}/runs", "shop").filesystem, f"{folder}/runs/shop/spent.json"
    )
    assert sum(one.usd or 0 for one in spent.read().values()) >= 1
    assert "does not last" in preview(spec_of(folder, cost)).verdict
    done = run(spec_of(folder, "cost={usd_per_hour: 1, budget_usd: 1000000000}"))
    assert done["featurize"].digest == undisturbed["featurize"].digest
    assert done.to_json()["spent"]["ingest"]["usd"] >= 1
    assert spent.read() == {}, "the run came to its end: the next one counts from 0"


def test_a_run_whose_stages_are_all_done_needs_no_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(spec_of(folder))
    price(monkeypatch, 1e9)
    done = run(spec_of(folder, "cost={usd_per_hour: 1, budget_usd: 1e-9}"))
    assert all(result.skipped for result in done.results.values())


def test_the_section_changes_no_result(folder: Path) -> None:
    run(spec_of(folder))
    done = run(spec_of(folder, "cost={usd_per_hour: 3}"))
    assert all(result.skipped for result in done.results.values())
    assert set(done.spent) == {"ingest", "clean", "featurize"}
    assert all(isinstance(one, Spent) for one in done.spent.values())


def test_a_wrong_price_stops_a_run_before_it_reads(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"cost\.provider must be in the table"):
        run(spec_of(folder, "cost={provider: nobody, head: x}"))
    assert not (folder / "runs").exists()
