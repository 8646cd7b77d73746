"""SIGKILL in the middle of reading and of cleaning: of the driver, and of a worker of Ray Data. Nothing changes but the time.

A connector and a rule of the user's own write down what they are asked for, and kill the process that they run in, once.
"""

from typing import Any

import pytest

from .conftest import Workplace

NUM_PARTS, ROWS_PER_PART = 10, 200
MODULE = """
import os, signal
import numpy as np, pyarrow as pa
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.connectors.base import Part

def note(name, value):
    with open(f"{FOLDER}/{name}.log", "a") as file:
        file.write(f"{value}\\n")

def die_once(name):
    try:
        os.remove(f"{FOLDER}/kill_{name}")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

class Numbers:
    def __init__(self, data):
        self.data = data
    def columns(self):
        return {"n": "int64", "c": "string", "y": "string"}
    def parts(self):
        note("parts", "asked")
        return [Part({"start": i * ROWS}) for i in range(PARTS)]
    def read(self, part):
        start = part.where["start"]
        note("read", start)
        if start == 5 * ROWS:
            die_once("read")
        n = np.arange(start, start + ROWS)
        cells = pa.table({"n": n % 700, "c": [f"t{i % 13}" for i in n], "y": ["yes" if i % 3 else "no" for i in n]})
        bad = (BadRecord(start + ROWS, "what?", "ragged_row", "the row must have 3 cells, got 1"),)
        yield RawBlock("numbers", cells, n + 1, None, bad)
    def size_bytes(self):
        return None
    def fingerprint(self):
        return 1

def is_fine(table):
    first = int(table.column("n")[0].as_py())
    note("judged", first)
    if first == 400:
        die_once("judge")
    return pa.array(np.asarray(table.column("n")) % 50 != 7)
"""
SPEC = """
name: kill
seed: 4
data:
  engine: {engine}
  source: {{kind: custom, connector: "mine:Numbers"}}
  columns: {{n: number, c: category, y: category}}
  label: y
clean:
  max_removed_fraction: 1
  rules: [{{kind: function, function: "mine:is_fine", columns: [n]}}]
  outliers: {{method: z_score, threshold: 1.6}}
"""


def prepare(workplace: Workplace, engine: str, kill: str | None = None) -> None:
    constants = f"FOLDER, PARTS, ROWS = {str(workplace.folder)!r}, {NUM_PARTS}, {ROWS_PER_PART}\n"
    (workplace.folder / "mine.py").write_text(constants + MODULE)
    (workplace.folder / "spec.yaml").write_text(SPEC.format(engine=engine))
    if kill:
        (workplace.folder / f"kill_{kill}").touch()


def asked(workplace: Workplace, name: str) -> list[str]:
    return (workplace.folder / f"{name}.log").read_text().split()


def facts(stages: Any) -> Any:
    """What a run left, but for when and where: parts with their digests, ledgers, splits."""
    raw, dataset, features = stages["ingest"], stages["clean"], stages["featurize"]
    return (
        raw["rows"],
        raw["quarantine"],
        dataset["ledger"],
        dataset["splits"],
        dataset["quarantine"],
        features["splits"],
    )


@pytest.fixture(scope="module")
def undisturbed(shared_workplace: Workplace) -> Any:
    prepare(shared_workplace, "local")
    stages = shared_workplace.run_json("run", "spec.yaml")["stages"]
    ledger = stages["clean"]["ledger"]
    assert ledger["rows_in"] == NUM_PARTS * (ROWS_PER_PART + 1)
    assert set(ledger["removed"]) == {"ragged_row", "rule_broken", "outlier"}
    assert ledger["rows_kept"] + sum(ledger["removed"].values()) == ledger["rows_in"]
    return facts(stages)


@pytest.mark.parametrize("where", ["read", "judge"])
def test_a_killed_driver_goes_on_without_reading_finished_parts_again(
    workplace: Workplace, undisturbed: Any, where: str
) -> None:
    prepare(workplace, "local", where)
    assert workplace.run("run", "spec.yaml").returncode == -9
    done = (
        {path.stem for path in workplace.folder.glob("runs/kill/ingest/*/work/reading/*.json")}
        if where == "read"
        else None
    )
    before = asked(workplace, "read")
    stages = workplace.run_json("run", "spec.yaml")["stages"]
    assert facts(stages) == undisturbed
    again = asked(workplace, "read")[len(before) :]
    finished = (
        set(map(str, range(0, NUM_PARTS * ROWS_PER_PART, ROWS_PER_PART)))
        if done is None
        else {str(int(stem) * ROWS_PER_PART) for stem in done}
    )
    assert finished
    assert not finished & set(again)
    assert len(again) == NUM_PARTS - len(finished)
    assert asked(workplace, "parts") == ["asked"]


@pytest.mark.parametrize("where", ["read", pytest.param("judge", marks=pytest.mark.slow)])
def test_a_killed_worker_of_ray_data_changes_nothing(workplace: Workplace, undisturbed: Any, where: str) -> None:
    prepare(workplace, "ray", where)
    stages = workplace.run_json("run", "spec.yaml")["stages"]
    assert not (workplace.folder / f"kill_{where}").exists()
    assert facts(stages) == undisturbed
