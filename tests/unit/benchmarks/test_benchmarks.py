"""What the benchmarks rest on: the table, the comparison of results, the measure of a whole process tree, the results file."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ROWS = 20_000


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmarks, which are scripts and find each other beside themselves."""
    for folder in (BENCHMARKS, BENCHMARKS / "data", BENCHMARKS / "train"):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


def run_contender(script: str, source: Path, target: Path, *arguments: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "data" / script), str(source), str(target), *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_the_table_is_the_same_in_pieces_and_in_both_formats(tools: Any, tmp_path: Path) -> None:
    generate = tools("generate")
    csv, parquet = generate.write_table(tmp_path, ROWS)
    table = pq.read_table(parquet)
    assert pa.concat_tables([generate.make_rows(0, 7_001), generate.make_rows(7_001, ROWS)]).equals(table)
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    assert pyarrow.csv.read_csv(csv, convert_options=options).cast(table.schema).equals(table)
    distinct = table.group_by(table.column_names).aggregate([]).num_rows
    assert 0.04 < 1 - distinct / ROWS < 0.06
    assert pc.count_distinct(table.column("id")).as_py() == distinct, "id names a row"
    for name in table.column_names[1:]:
        assert 0.015 < table.column(name).null_count / ROWS < 0.15, name
    assert pc.max(table.column("income")).as_py() > 100 * pc.quantile(table.column("income"), 0.99)[0].as_py()


def test_contenders_agree(tools: Any, tmp_path: Path) -> None:
    csv, parquet = tools("generate").write_table(tmp_path, ROWS)
    check = tools("check")
    reference = tmp_path / "pandas.parquet"
    run_contender("with_pandas.py", csv, reference)
    expected = (
        f"{tools('generate').make_rows(0, ROWS).group_by(list(tools('job').COLUMNS)).aggregate([]).num_rows} rows"
    )
    run_contender("ours.py", parquet, tmp_path / "ours", "local")
    assert check.check_equal(reference, tmp_path / "ours").startswith(expected)
    for library in ("polars", "duckdb"):
        run_contender(f"with_{library}.py", csv, tmp_path / f"{library}.parquet")
        assert check.check_equal(reference, tmp_path / f"{library}.parquet").startswith(expected)


def test_the_comparison_sees_a_difference_and_no_order(tools: Any, tmp_path: Path) -> None:
    generate, job, check = tools("generate"), tools("job"), tools("check")
    rows = generate.make_rows(0, 300)
    rows = rows.filter(pc.is_valid(rows.column("note"))).group_by(rows.column_names).aggregate([])
    columns = {name: pc.fill_null(rows.column(name).cast(pa.float64()), 0) for name in job.NUMBERS}
    for name, values in job.CATEGORIES.items():
        columns |= {f"{name}_{value}": pc.fill_null(pc.equal(rows.column(name), value), False) for value in values}
    result = pa.table({"id": rows.column("id"), **columns, "note": rows.column("note")})

    def compare(other: pa.Table) -> str:
        for name, table in (("a", result), ("b", other)):
            pq.write_table(table, tmp_path / name)
        return check.check_equal(tmp_path / "a", tmp_path / "b")

    def with_cell(name: str, change: Any) -> pa.Table:
        cells = result.column(name).to_pylist()
        cells[17] = change(cells[17])
        return result.set_column(result.schema.get_field_index(name), name, pa.array(cells))

    assert compare(result.take(pa.array(range(result.num_rows - 1, -1, -1)))).startswith(f"{result.num_rows} rows")
    compare(with_cell("usage", lambda value: value + 9e-7))
    for name, change in {
        "usage": lambda value: value + 2e-6,
        "visits": lambda value: float("nan"),
        "note": lambda value: value + " ",
        "channel_fair": lambda value: not value,
        "id": lambda value: value + "x",
    }.items():
        with pytest.raises(ValueError, match=f"{name} differs"):
            compare(with_cell(name, change))
    with pytest.raises(ValueError, match="rows differ"):
        compare(result.slice(1))
    with pytest.raises(ValueError, match="id must be unique"):
        compare(pa.concat_tables([result.slice(1), result.slice(1, 1)]))


DAEMON = """
import os, sys, time
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        held = bytearray(os.urandom(1)) * 150_000_000
        os.write(writer, b"x")
        time.sleep(2)
    os._exit(0)
os.wait()
os.read(reader, 1)
time.sleep(1)
"""


def test_the_measure_counts_a_daemon_and_waits_for_it(tools: Any) -> None:
    run_command = tools("measure").run_command
    start = time.monotonic()
    measured = run_command([sys.executable, "-c", DAEMON], memory=True)
    assert 150 < measured.peak_mb < 200
    assert 0.9 < measured.seconds < time.monotonic() - start - 0.2, "the daemon outlives the command"
    assert 0.01 < measured.cpu_seconds < 1.5


SHARING = """
import mmap, os, time
held = mmap.mmap(-1, 100_000_000)
for start in range(0, 100_000_000, 1_000_000):
    held[start : start + 1_000_000] = b"x" * 1_000_000
for _ in range(3):
    if os.fork() == 0:
        held[::4096]
        time.sleep(1)
        os._exit(0)
time.sleep(1)
"""


def test_the_measure_counts_shared_memory_once(tools: Any) -> None:
    assert 100 < tools("measure").run_command([sys.executable, "-c", SHARING], memory=True).peak_mb < 200


def test_the_command_counts_though_its_mark_is_not_seen_yet(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is looked at before it has replaced its parent's program, whose environment has no mark."""
    measure = tools("measure")
    monkeypatch.setattr(measure.Tree, "_is_member", lambda self, pid: False)
    measured = measure.run_command([sys.executable, "-c", "print(sum(range(3_000_000)))"], memory=True)
    assert measured.peak_mb > 1


def test_a_command_that_fails_says_why(tools: Any) -> None:
    with pytest.raises(RuntimeError, match="ended with 3:\nno such luck"):
        tools("measure").run_command([sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"])


def test_a_section_replaces_its_own_and_no_other(tools: Any, tmp_path: Path) -> None:
    results, path = tools("results"), tmp_path / "RESULTS.md"
    for name, body in (("a", "one"), ("b", "two"), ("a", r"three \1"), ("c", "four")):
        results.replace_section(name, body, path)
    assert path.read_text() == (
        "# Results\n\n<!-- begin a -->\nthree \\1\n<!-- end a -->\n\n<!-- begin b -->\ntwo\n<!-- end b -->\n\n"
        "<!-- begin c -->\nfour\n<!-- end c -->\n"
    )


def test_the_images_are_those_of_their_seed_and_hold_their_class(tools: Any, tmp_path: Path) -> None:
    images = tools("images")
    x, y = images.make_images(400, 0)
    again, other = images.make_images(400, 0)[0], images.make_images(400, 1)[0]
    assert np.array_equal(x, again)
    assert not np.array_equal(x, other)
    assert (x.shape, x.dtype) == ((400, 3, 32, 32), np.float32)
    middle = x[:, :, 8:24, 8:24]  # the pattern covers it wherever it starts
    assert middle.std() > 1.005  # of noise alone it is 1
    assert sorted(set(y.tolist())) == list(range(10))


def test_a_bare_loop_takes_the_steps_of_ours(tools: Any, tmp_path: Path) -> None:
    tools("images").write_images(tmp_path, 70, 20)
    found = []
    for name in ("bare torch loop", "ours, torch"):
        command = [sys.executable, str(BENCHMARKS / "train" / "contender.py"), name, str(tmp_path), "2"]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1]))
    bare, ours = found
    assert ours["losses"] == pytest.approx(bare["losses"], rel=1e-5)  # in another order of sums
    assert bare["accuracy"] == ours["accuracy"]
