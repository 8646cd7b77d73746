"""What the benchmarks rest on: the table, the comparison of results, the measure of a whole process tree, loads on servers, the results file."""

import argparse
import base64
import importlib
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    for folder in (BENCHMARKS, BENCHMARKS / "data", BENCHMARKS / "train", BENCHMARKS / "serve"):
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
    lasting = "import time; time.sleep(1)"  # or it may end before it is looked at
    measured = measure.run_command([sys.executable, "-c", lasting], memory=True)
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


@pytest.mark.slow
def test_a_bare_loop_takes_the_steps_of_ours(tools: Any, tmp_path: Path) -> None:
    tools("images").write_images(tmp_path, 70, 20)
    found = []
    for name in ("bare torch loop", "ours, torch"):
        command = [sys.executable, str(BENCHMARKS / "train" / "contender.py"), name, str(tmp_path), "2"]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1]))
    bare, ours = found
    assert ours["losses"] == pytest.approx(bare["losses"], rel=1e-5)  # in another order of sums
    assert bare["accuracy"] == ours["accuracy"]


WRK = """
Running 4s test @ http://127.0.0.1:8001/predict
  1 threads and 16 connections
  Latency Distribution
     50%  284.00us
     75%    1.10ms
     90%   12.00ms
     99%    1.20s
  40210 requests in 4.02s, 12.11MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 10
Requests/sec:  10002.49
Transfer/sec:      3.01MB
"""


def test_refusals_and_lost_requests_are_no_answers(tools: Any) -> None:
    point = tools("points").read_wrk(WRK)
    assert (point.answers, point.errors) == (40_200, 15)
    assert point.requests_per_s == pytest.approx(40_200 / 4.02)
    assert (point.p50_ms, point.p99_ms) == pytest.approx((0.284, 1200))


class Refusing(BaseHTTPRequestHandler):
    """Refuses each third request."""

    protocol_version = "HTTP/1.1"
    asked = itertools.count(1)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if next(self.asked) % 3 == 0 else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_load_that_does_not_wait_keeps_to_its_rate_and_counts_refusals(tools: Any, refusing: str) -> None:
    ask = tools("asks").Ask("/predict", {"content-type": "application/json"}, b"[]")
    point = tools("points").load(refusing, ask, 4, 1.0, tools("measure").Tree(), per_s=60)
    assert 30 <= point.offered_per_s <= 60.5
    assert 1.5 < point.answers / point.errors < 2.5
    assert point.answers + point.errors <= 61


def test_what_is_asked_can_be_told_apart_and_read_back(tools: Any) -> None:
    """The same image in each form, as each server would read it."""
    asks, packages = tools("asks"), tools("packages")
    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(1, 32, 32, 3)
    rows = packages.Rows("cifar10", [{"image": image[0].tolist()}], image, np.zeros((1, 10)))
    (record,) = json.loads(asks.PLAIN.forms["json"](rows).body)
    assert np.array_equal(record["image"], image[0])
    assert asks.PLAIN.forms["raw"](rows).body == image.tobytes()
    ask = asks.OURS.forms["raw"](rows)
    length = int(ask.headers["inference-header-content-length"])
    (tensor,) = json.loads(ask.body[:length])["inputs"]
    assert tensor["parameters"]["binary_data_size"] == len(ask.body[length:]) == image.nbytes
    sent = json.loads(asks.LITSERVE.forms["raw"](rows).body)["pixels"]
    assert base64.b64decode(sent) == image.tobytes()
    assert "raw" not in asks.MLFLOW.forms


def test_a_target_is_met_on_its_side_of_the_bound_alone(tools: Any) -> None:
    target = tools("targets").Target
    assert target("x", 15.0, at_least=15).is_met
    assert not target("x", 14.9, at_least=15).is_met
    assert not target("x", 0.021, at_most=0.02).is_met
    assert not target("x", float("nan"), at_most=0.02).is_met
    assert target("x", 14.9, at_least=15).row() == "| x | at least 15 | 14.9 | NO |"


def test_the_targets_of_the_table_are_ratios_of_medians(tools: Any) -> None:
    single, point = tools("single"), tools("points").Point
    rates = {name: 1_000.0 for name in single.SERVERS}
    rates |= {single.OURS_NAME: 30_000.0, single.PLAIN_SERVE: 250.0, single.BARE: 70_000.0, single.STARLETTE: 14_000.0}
    found = {
        name: {
            n: [
                point(rate * factor, 1.0, 9.0 if name != single.OURS_NAME else 5.0, 0, 100, cpu_ms=1 / rate)
                for factor in (0.5, 1, 1.1)
            ]
            for n in single.CONNECTIONS
        }
        for name, rate in rates.items()
    }
    targets = {target.what: target for target in single.table_targets(found)}
    assert targets["requests/s at 64, times plain Ray Serve"].measured == pytest.approx(120)
    assert targets["p99 at 16, as share of the best peer's"].measured == pytest.approx(5 / 9)
    missed = {what for what, target in targets.items() if not target.is_met}
    assert missed == {f"requests/s at {n}, times bare listener" for n in (16, 64)}
    arguments = argparse.Namespace(seconds=4, rounds=3, only=["ours", "bare listener"])
    text = "\n".join(single.describe_table(arguments, "table", ["ours", "bare listener"], found))
    assert 'bench.py table --seconds 4 --rounds 3 --only "ours" "bare listener"`' in text
    assert "| ours | 30000 (15000 to 33000) / 30000" in text
    assert "litserve " in text


def test_throughput_that_falls_under_overload_misses_its_target(tools: Any) -> None:
    several, point = tools("several"), tools("points").Point
    arguments = argparse.Namespace(seconds=4, rounds=1, only=None)

    def missed(rates: dict[float, float]) -> list[str]:
        batches = {times: [point(rate, 1.0, 2.0, 30, 90)] for times, rate in rates.items()}
        rows = {n: [point(100.0, 1.0, 2.0, 0, 100)] for n in several._ROW_CONNECTIONS}
        return [line for line in several.describe_overload(arguments, batches, rows) if "| NO |" in line]

    assert not missed({0.5: 50.0, 1: 100.0, 2: 100.0, 4: 95.0})
    assert len(missed({0.5: 50.0, 1: 100.0, 2: 100.0, 4: 80.0})) == 1


def test_replicas_are_compared_with_one(tools: Any) -> None:
    several, point = tools("several"), tools("points").Point
    arguments = argparse.Namespace(seconds=4, rounds=1, only=None)
    found = {n: [point(100.0 * n, 1.0, 2.0, 0, 100, cpu_ms=10.0)] for n in several.REPLICAS}
    text = "\n".join(several.describe_growth(arguments, found))
    assert f"| 4 | {100 * 4 * several.BATCH_ROWS} ({12800} to {12800}) | 4.00 | 4.00 of" in text
    assert "| NO |" not in text


@pytest.mark.parametrize("name", ["starlette", "fastapi", "litserve", "bentoml", "mlflow"])
def test_peers_are_pinned(name: str) -> None:
    lines = (BENCHMARKS / "serve" / "peers" / name / "requirements.txt").read_text().split()
    assert f"{name}==" in " ".join(lines)
    assert all(re.fullmatch(r"[a-z0-9-]+==[\d.]+", line) for line in lines)
