"""A file with every fault a hand-made CSV can have, from the command line to the answers of the endpoint."""

import json
import random
import signal
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from .conftest import Workplace

SPEC = """
name: messy
data:
  source: {kind: csv, uri: in}
  columns:
    age: {kind: number, min: 0, max: 120}
    city: category
    income: number
    bought: {kind: category, allowed: ["yes", "no"]}
  label: bought
clean: {max_removed_fraction: 0.5}
model: {kind: mlp, hidden: [8]}
train: {epochs: 5}
serve: {port: 0}
"""

BAD = {
    "ragged_row": ["41,oslo,100", "41,oslo,100,yes,more"],
    "type_error": ["forty,rome,100,yes", "41,rome,1e999,no"],
    "out_of_range": ["-1,rome,100,yes", "121,rome,100,no"],
    "not_allowed": ["50,rome,100,maybe"],
    "missing_label": ["50,rome,100,", "50,rome,100,NA"],
    "too_many_missing": [",,,yes"],
    "duplicate": ["33.25,oslo,77.5,yes"],
    "invalid_utf8": [b"50,m\xfcnchen,100,yes"],
}


def good_rows() -> list[str]:
    rng = random.Random(1)
    rows = ["33.25,oslo,77.5,yes", '44,"an, other\ncity",,no', "NA,東京,1,yes"]
    for number in range(300):
        age, income = rng.uniform(18, 80), rng.uniform(0, 200)
        city = rng.choice(["oslo", "rome", "", '"quoted ""city"""'])
        rows.append(f"{age:.3f},{city},{income:.2f}{number},{'yes' if age > 40 else 'no'}")
    return rows


def write_messy(folder: Path) -> int:
    """Write the file with a BOM and mixed line ends; returns the number of records."""
    rows: list[bytes] = [row.encode() for row in good_rows()]
    bad = [row if isinstance(row, bytes) else row.encode() for rows_of in BAD.values() for row in rows_of]
    for index, row in enumerate(bad):
        rows.insert(5 + 7 * index, row)
    ends = [b"\n", b"\r\n", b"\r"]
    content = b"".join(row + ends[index % 3] for index, row in enumerate([b"age,city,income,bought", *rows]))
    (folder / "in").mkdir()
    (folder / "in" / "a.csv").write_bytes(b"\xef\xbb\xbf" + content)
    (folder / "in" / "b_empty.csv").write_bytes(b"")
    (folder / "in" / "c_header_alone.csv").write_text("age,city,income,bought")
    (folder / "in" / "d_wrong_header.csv").write_text("age,town,income,bought\n50,rome,100,yes\n51,rome,100,no\n")
    return len(rows) + 2


@pytest.fixture(scope="module")
def served(shared_workplace: Workplace) -> Any:
    """The pipeline on the messy file, its endpoint kept up."""
    records = write_messy(shared_workplace.folder)
    (shared_workplace.folder / "spec.yaml").write_text(SPEC)
    process = shared_workplace.start("run", "spec.yaml", "--serve", "--json")
    assert process.stderr is not None
    errors = ""
    for line in process.stderr:
        errors += line
        if line.startswith("serving at"):
            break
    assert "serving at" in errors, errors
    yield records, errors.rsplit("serving at ", 1)[1].split()[0]
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(output)["stages"]["deploy"]["parity"] <= 1e-5
    shared_workplace.wait_until(lambda: not shared_workplace.processes(), "the end of all processes")


def artifact(workplace: Workplace, stage: str) -> tuple[Path, Any]:
    manifest = next(workplace.folder.glob(f"runs/messy/{stage}/*/manifest.json"))
    return manifest.parent, json.loads(manifest.read_text())["artifact"]


def test_ledger_holds_to_the_row(served: Any, shared_workplace: Workplace) -> None:
    _, dataset = artifact(shared_workplace, "clean")
    removed = {reason: len(rows) for reason, rows in BAD.items()}
    assert dataset["ledger"] == {
        "rows_in": served[0],
        "rows_kept": len(good_rows()),
        "removed": dataset["ledger"]["removed"],
    }
    assert dataset["ledger"]["removed"] == {**removed, "wrong_header": 2}


def test_bad_rows_are_in_quarantine_with_reason_and_original_text(served: Any, shared_workplace: Workplace) -> None:
    folders = [artifact(shared_workplace, stage)[0] / "quarantine" for stage in ("ingest", "clean")]
    rows = [row for folder in folders for path in folder.glob("*") for row in pq.read_table(path).to_pylist()]
    assert Counter(row["_reason"] for row in rows) == {**{k: len(v) for k, v in BAD.items()}, "wrong_header": 2}
    by_values = ("too_many_missing", "duplicate")  # removed for their typed values: these are kept
    texts = {row["_text"] for row in rows}
    assert {row["bought"] for row in rows if row["_reason"] in by_values} == {"yes"}
    for text in (row for reason, rows_of in BAD.items() for row in rows_of if reason not in by_values):
        expected = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
        assert expected in texts
    assert all(row["_detail"] and row["_line"] >= 2 and row["_source"].endswith(".csv") for row in rows)


def post(url: str, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_endpoint_answers_as_the_training_code(served: Any, shared_workplace: Workplace) -> None:
    """Golden rows hold texts and missing values; both protocols give the probabilities that torch gave."""
    url = served[1]
    package = artifact(shared_workplace, "export")[0] / "package"
    records = json.loads((package / "golden_records.json").read_text())["records"]
    expected = json.loads((package / "golden_outputs.json").read_text())["probabilities"]
    assert any(None in record.values() for record in records)
    _, answer = post(f"{url}/predict", records)
    got = [list(prediction["probabilities"].values()) for prediction in answer["predictions"]]
    numbers = [[record["age"], record["income"]] for record in records]
    cities = [[record["city"] or ""] for record in records]
    tensors = [
        {"name": "numbers", "datatype": "FP64", "shape": [len(records), 2], "data": numbers},
        {"name": "categories", "datatype": "BYTES", "shape": [len(records), 1], "data": cities},
    ]
    _, inferred = post(f"{url}/v2/models/messy/infer", {"inputs": tensors})
    flat = next(tensor["data"] for tensor in inferred["outputs"] if tensor["name"] == "probabilities")
    assert [value for row in got for value in row] == pytest.approx([v for row in expected for v in row], abs=1e-5)
    assert flat == pytest.approx([v for row in expected for v in row], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "JSON"),
        ({"rows": []}, 400, "records"),
        ([{"age": "forty"}], 422, "records[0].age must be a number or null, got 'forty'"),
        ([{"age": 30}, {"age": 500}], 422, "records[1].age must be at most 120, got 500"),
        ([{"agee": 30}], 422, "records[0].agee must be a known field"),
        ([{"city": ["oslo"]}], 422, "records[0].city must be a text or null"),
    ],
)
def test_bad_input_is_told_by_field_rule_and_value(served: Any, body: Any, status: int, words: str) -> None:
    code, answer = post(f"{served[1]}/predict", body)
    assert (code, list(answer)) == (status, ["error"])
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the source is empty"),
        (b"age,city,income,bought\n", "the source is empty"),
        (b"\xff\xfea\x00g\x00e\x00\n\x00", "the header is not UTF-8"),
        (b"age,city,income,bought\n1,oslo,2,yes\n2,oslo,2,yes\n3,oslo,3,yes\n", "at least 2 classes"),
        (b"age,city,income,bought\nx,oslo,2,yes\ny,oslo,2,no\n3,oslo,3,yes\n", "type_error 2"),
    ],
)
def test_hopeless_files_end_in_a_clear_error(workplace: Workplace, content: bytes, words: str) -> None:
    (workplace.folder / "in").mkdir()
    (workplace.folder / "in" / "a.csv").write_bytes(content)
    (workplace.folder / "spec.yaml").write_text(SPEC)
    done = workplace.run("run", "spec.yaml")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_header_that_lacks_columns_is_an_error_of_the_spec(workplace: Workplace) -> None:
    """Found before anything is read."""
    (workplace.folder / "in").mkdir()
    (workplace.folder / "in" / "a.csv").write_text("age,stadt,income,bought\n1,x,2,yes\n")
    (workplace.folder / "spec.yaml").write_text(SPEC)
    done = workplace.run("run", "spec.yaml")
    assert done.returncode == 2
    assert "data.columns.city must name a column of the source" in done.stderr
    assert not (workplace.folder / "runs" / "messy" / "ingest").exists()
