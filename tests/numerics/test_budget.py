"""A training that its budget ends goes on with a larger one to the result of an undisturbed one, to the bit."""

import random
from pathlib import Path

import pytest

from lepton_ray.core.errors import BudgetError
from lepton_ray.cost.meter import Meter
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec
from lepton_ray.train import in_process
from tests.numerics.training_case import SEED, assert_equal, build_of, make_data, make_spec, train_alone

SPEC = """
name: budget
storage: {folder}/{storage}
data:
  source: {{kind: csv, uri: {folder}/rows.csv}}
  label: y
  columns: {{a: number, b: number, y: category}}
model: {{kind: mlp, hidden: [4]}}
train: {{epochs: 5}}
evaluate: {{baseline: none}}
cost: {{usd_per_hour: 1, budget_usd: 1000}}
"""


def test_the_loop_stops_after_a_checkpoint(tmp_path: Path) -> None:
    asked: list[int] = []

    def spent_after_two() -> str:
        asked.append(1)
        return "enough" if len(asked) == 2 else ""

    data, spec, folder = make_data(), make_spec(), tmp_path / "work"
    with pytest.raises(BudgetError, match="enough"):
        in_process.fit(build_of(), data, spec, SEED, folder, lambda text: None, spent_after_two)
    heard: list[str] = []
    resumed = in_process.fit(build_of(), data, spec, SEED, folder, heard.append)
    assert len(heard) == spec.epochs - 2
    assert_equal(resumed, train_alone(spec, data))


@pytest.mark.slow
def test_a_run_stopped_at_each_question_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt gets one question further: before stages, between epochs."""
    rng = random.Random(4)
    rows = [(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(150)]
    text = "".join(f"{a:.4f},{b:.4f},{'yes' if a > b else 'no'}\n" for a, b in rows)
    (tmp_path / "rows.csv").write_text(f"a,b,y\n{text}")
    undisturbed = run(parse_spec(SPEC.format(folder=tmp_path, storage="undisturbed")))
    spec = parse_spec(SPEC.format(folder=tmp_path, storage="runs"))
    left = [0]

    def ask(meter: Meter) -> str:
        left[0] -= 1
        return "" if left[0] >= 0 else "the budget is spent"

    monkeypatch.setattr(Meter, "over_budget", ask)
    stops = 0
    while True:
        left[0] = 2
        try:
            done = run(spec)
            break
        except BudgetError:
            stops += 1
    assert stops > 3
    assert done["train"].history == undisturbed["train"].history
    assert done["train"].digest == undisturbed["train"].digest
    assert done["evaluate"].metrics == undisturbed["evaluate"].metrics
    page = (done["evaluate"].folder / "report.html").read_text()
    assert "<h2>Cost</h2>" in page
    assert "US dollars" in page
