"""How the held-out rows are cut into groups changes nothing of what is measured, and no more than a group is answered at once."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import yaml

from lepton_ray.artifacts.kinds import Dataset
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.core.files import read_json
from lepton_ray.data import parts
from lepton_ray.data.parts import Folder, read_parts
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec
from lepton_ray.stages import export, featurize, held_out
from lepton_ray.stages.blocks import folder_of

from .contexts import LABELS, context_in, label_columns

_ROWS, _GROUP, _GOLDEN = 600, 7, 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rng = np.random.default_rng(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "size", "colour", "user", "kind", "weight", "marks"])
        for number in range(_ROWS):
            kind = "abc"[rng.integers(3)]
            size = "" if number % 11 == 5 else f"{rng.normal() + 'abc'.index(kind):.4f}"
            marks = "|".join(mark for mark in ("x", "y") if rng.random() < 0.5) or "z"
            weight = f"{abs(rng.normal()) + 'abc'.index(kind):.4f}"
            writer.writerow([number, size, rng.choice(["p", "q"]), f"u{rng.integers(9)}", kind, weight, marks])
    return path


def result_of(source: Path, folder: Path, task: str) -> dict[str, Any]:
    section = LABELS[task]
    kinds: dict[str, Any] = {"number": "ignored", "size": "number", "colour": "category", "user": "ignored"}
    evaluate = {"ranking": {"group_by": "user", "relevant": 1.5}} if task == "regression" else {}
    spec = {
        "name": "rows",
        "storage": str(folder),
        "data": {"source": {"kind": "csv", "uri": str(source)}, "columns": {**kinds, **label_columns(task)}, **section},
        "model": {"kind": "autoencoder"} if "anomalies" in section else {"kind": "mlp", "hidden": [4]},
        "train": {"epochs": 2, "global_batch_size": 32},
        "export": {"golden_rows": _GOLDEN},
        "evaluate": evaluate,
    }
    return run(parse_spec(yaml.safe_dump(spec), source="x"))


@pytest.mark.slow_but("classification")
@pytest.mark.parametrize("task", list(LABELS))
def test_groups_change_nothing_and_are_answered_one_by_one(
    source: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = result_of(source, tmp_path / "whole", task)
    monkeypatch.setattr(parts, "_PARQUET_ROW_GROUP", _GROUP)
    monkeypatch.setattr(featurize, "_GROUP_BYTES", 64)
    monkeypatch.setattr(export, "_ROWS_AT_ONCE", _GROUP)  # of those that the reference of drift has
    answered: list[int] = []
    plain = Predictor.run

    def noted(self: Predictor, feeds: Any) -> Any:
        answered.append(len(next(iter(feeds.values()))))
        return plain(self, feeds)

    monkeypatch.setattr(Predictor, "run", noted)
    cut = result_of(source, tmp_path / "cut", task)
    num_test = cut["clean"].split_rows["test"]
    assert num_test > 3 * _GROUP
    assert sum(answered) >= num_test
    assert {rows for rows in answered if rows > _GROUP} <= {_GOLDEN}
    assert cut["evaluate"].metrics == pytest.approx(whole["evaluate"].metrics, rel=1e-6, nan_ok=True)
    assert cut["evaluate"].baseline == pytest.approx(whole["evaluate"].baseline, rel=1e-6, nan_ok=True)
    for name in ("golden_records.json", "golden_outputs.json"):
        assert read_json(cut["export"].path / name) == read_json(whole["export"].path / name)


def test_a_baseline_of_more_rows_than_memory_should_hold_is_fitted_on_some_and_said_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featurize, "_GROUP_BYTES", 64)
    monkeypatch.setattr(held_out, "BASELINE_BYTES", 2048)
    result = result_of(source, tmp_path, "classification")
    of = result["clean"].split_rows["train"]
    row_bytes = sum(given.row_bytes for given in result["featurize"].inputs)
    num_rows = -(-of // -(-of * row_bytes // 2048))
    page = (result["evaluate"].folder / "report.html").read_text()
    assert f"logistic regression, of {num_rows:,} of {of:,} rows" in page
    assert result["evaluate"].baseline["accuracy"] > 0.4


def test_of_many_rows_a_sample_is_looked_at_from_the_first_to_the_last(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_PARQUET_ROW_GROUP", _GROUP)
    monkeypatch.setattr(held_out, "_TYPED_BYTES", 6_000)
    # its parity gate holds the golden rows against their model input
    result = result_of(source, tmp_path, "classification")
    context = context_in(Path(result["clean"].location))
    every = read_parts(folder_of(result["clean"], context), result["clean"].splits["test"])
    rows, places = held_out.sample(result["clean"], "test", context)
    assert 16 <= rows.num_rows < every.num_rows / 2
    assert np.all(np.diff(places) > 0)
    for name in every.column_names:
        assert rows.column(name).to_pylist() == every.column(name).take(pa.array(places)).to_pylist()
    assert np.bincount(places * 4 // every.num_rows, minlength=4).min() >= 2
    golden = read_json(result["export"].path / "golden_records.json")["records"]
    sizes = [size for size in every.column("size").to_pylist() if size is not None]
    found = [sizes.index(record["size"]) for record in golden if record.get("size") is not None]
    assert max(found) > 0.75 * len(sizes)


def test_rows_that_are_all_the_same_are_sampled_as_any_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rows have one hash: all of them would be in the sample, or none."""
    folder = Folder(pafs.LocalFileSystem(), str(tmp_path))
    table = pa.table({"size": [1.5] * 4000, "_line": np.arange(4000)})
    part = folder.write_parquet("test/0.parquet", table)
    none: dict[str, Any] = {"quarantine": (), "columns": {}, "classes": (), "class_rows": {}}
    dataset = Dataset(splits={"test": (part,)}, ledger=Ledger.of(4000, {}), **none)
    dataset = dataset.model_copy(update={"location": str(tmp_path)})
    monkeypatch.setattr(held_out, "_TYPED_BYTES", 24 * 1000)
    rows, places = held_out.sample(dataset, "test", context_in(tmp_path))
    assert 300 < rows.num_rows <= 1000
    assert np.bincount(places // 1000, minlength=4).min() > 50
