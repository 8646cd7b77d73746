"""Ray Data and threads of this process give the same artifacts, to the digest, for any table and any rules."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import DataError, EngineError
from lepton_ray.data import csv_text, on_ray
from lepton_ray.data.connectors import files
from lepton_ray.spec import parse_spec
from lepton_ray.stages.clean import clean
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.featurize import featurize
from lepton_ray.stages.ingest import ingest, preflight

CELL = st.sampled_from(
    ["", "NA", "1", "-0", "2.5", "1e5", "inf", "x", " y ", '"q,""r"', "é", "\U0001f600", "\x00", "1,2", '"open', "NaN"]
)
ROW = st.tuples(CELL, CELL, CELL, st.sampled_from(["2024-02-29", "", "9999-12-31", "never"]), st.sampled_from("ab"))
RULES = st.lists(
    st.sampled_from(
        [
            "{kind: compare, left: x, operator: <=, right: z}",
            "{kind: given, columns: [x, z], at_least: 1}",
            "{kind: unique, columns: [c], keep: greatest, by: x}",
            "{kind: compare, left: c, operator: in, values: [y, é, '1'], missing: break}",
        ]
    ),
    max_size=2,
    unique=True,
)
OUTLIERS = st.sampled_from(["null", "{method: iqr, threshold: 1}", "{method: quantile, high: 0.9}"])
SPEC = """
name: any
seed: 2
data:
  engine: {engine}
  source: {{kind: csv, uri: {path}}}
  columns:
    x: number
    z: number
    c: {{kind: category, normalise: [lower, spaces]}}
    t: time
    y: {{kind: category, allowed: [a, b]}}
  label: y
clean: {{rules: [{rules}], outliers: {outliers}, max_removed_fraction: 1, max_missing_fraction: 1, min_rows_per_class: 1}}
features: {{numbers: {{impute: mean, clip: {{kind: quantile}}}}}}
model: {{kind: mlp}}
"""


def context(folder):
    folder.mkdir(parents=True)
    work = f"{folder}/work"
    return RunContext("any", 2, "s", folder, str(folder), pafs.LocalFileSystem(), work, True, lambda text: None)


def run(folder, spec):
    preflight(spec.data)
    try:
        raw = ingest(spec.data, context(folder / "ingest" / "0"))
        raw = raw.model_copy(update={"location": f"{folder}/ingest/0"})
        dataset = clean(spec.data, spec.clean, raw, context(folder / "clean" / "0"))
        dataset = dataset.model_copy(update={"folder": folder / "clean" / "0", "location": f"{folder}/clean/0"})
        features = featurize(spec.data, spec.clean, spec.features, dataset, context(folder / "featurize" / "0"))
    except DataError as error:
        return str(error).replace(str(folder), "")
    return [artifact.model_dump(exclude={"folder", "location"}) for artifact in (raw, dataset, features)]


def both(tmp, path, rules, outliers):
    results = []
    for engine in ("local", "ray"):
        spec = parse_spec(SPEC.format(engine=engine, path=path, rules=", ".join(rules), outliers=outliers))
        results.append(run(tmp / engine, spec))
    return results


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=30, max_size=120), RULES, OUTLIERS, st.integers(200, 1500))
def test_any_table_gives_the_same_artifacts_through_either_engine(cluster, rows, rules, outliers, part_bytes):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PART_BYTES", part_bytes)
        patch.setattr(csv_text, "_MIN_READ_BYTES", part_bytes)
        path = Path(name) / "d.csv"
        path.write_text("x,z,c,t,y\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
        local, on_ray = both(Path(name), path, rules, outliers)
    assert local == on_ray


def test_many_rows_in_many_parts(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 1 << 18)
    monkeypatch.setattr(csv_text, "_MIN_READ_BYTES", 1 << 18)
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 40_000)).round(2)
    lines = [
        f"{a},{b},{c},2024-01-01,{'ab'[int(a > b)]}\n"
        for a, b, c in zip(x, z, rng.choice(list("uvw"), 40_000), strict=True)
    ]
    path = tmp_path / "d.csv"
    path.write_text("x,z,c,t,y\n" + "".join(lines))
    local, on_ray = both(
        tmp_path, path, ["{kind: compare, left: x, operator: <, value: 3}"], "{method: z_score, threshold: 3}"
    )
    assert local == on_ray
    raw, dataset, _ = local
    assert len(raw["rows"]) > 2
    assert dataset["ledger"]["rows_kept"] + sum(dataset["ledger"]["removed"].values()) == 40_000


def _refuse_three(item: int) -> int:
    if item == 3:
        raise DataError("column 'a' must be whole, got 1.5. Mend it")
    return item


def _break_at_three(item: int) -> float:
    return 1 / (item - 3)


def test_an_error_within_a_task_is_told_as_it_is_without_ray(cluster: None) -> None:
    with pytest.raises(DataError, match=r"^column 'a' must be whole, got 1\.5\. Mend it$"):
        list(on_ray.map_parts(_refuse_three, range(6)))
    with pytest.raises(EngineError, match=r"a Ray Data task failed: ZeroDivisionError: division by zero$"):
        list(on_ray.map_parts(_break_at_three, range(6)))
