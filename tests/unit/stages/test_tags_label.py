"""Tags as the label, from raw records to what the package answers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lepton_ray.artifacts.kinds import Dataset
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.commands.drift import measure_drift
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.pipeline import run
from lepton_ray.serve.endpoint import Endpoint, Limits, NoMeter
from lepton_ray.spec import parse_spec
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.clean import clean
from lepton_ray.stages.featurize import load_split
from lepton_ray.stages.ingest import ingest

from .contexts import context_in

_TAGS = ("large", "red", "round")


def _rows(rows: int = 400) -> list[dict[str, Any]]:
    """Red is a matter of colour, large of size, round of shape; every 40th row has a null for its tags, one a number too many."""
    rng = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    for number in range(rows):
        size, colour, shape = rng.uniform(0, 1), rng.choice(["red", "green"]), rng.choice(["ball", "cube"])
        holds = {"large": size > 0.6, "red": colour == "red", "round": shape == "ball"}
        tags = [tag for tag in _TAGS[:: 1 if number % 2 else -1] if holds[tag]]
        made.append({"size": round(size, 4), "colour": colour, "shape": shape, "tags": tags})
    for number in range(0, rows, 40):
        made[number]["tags"] = None
    return made


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        for row in rows:
            tags = row["tags"]
            writer.writerow([*list(row.values())[:-1], "" if tags is None else "|".join(tags) or "(none)"])


def _spec(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "things",
        "storage": str(folder / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(folder / "things.csv")},
            "label": "tags",
            "columns": {
                "size": "number",
                "colour": "category",
                "shape": "category",
                "tags": {"kind": "tags", "none_words": ["(none)"]},
            },
        },
        "model": {"kind": "linear"},
        "train": {"epochs": 20, "global_batch_size": 32, "lr": 0.1, "schedule": "cosine"},
        **changes,
    }


def _clean(folder: Path, column: dict[str, Any], source: dict[str, str], **section: Any) -> Dataset:
    columns = {**_spec(folder)["data"]["columns"], "tags": {"kind": "tags", **column}}
    data = DataSpec.model_validate({"source": source, "label": "tags", "columns": columns})
    raw = ingest(data, context_in(folder / "ingest")).model_copy(update={"location": str(folder / "ingest")})
    return clean(data, CleanSpec.model_validate(section), raw, context_in(folder / "clean"))


def _fates(folder: Path) -> dict[int, tuple[str, str]]:
    paths = folder.glob("*/quarantine/*.parquet")
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return {row["_line"]: (row["_reason"], row["_detail"]) for row in rows}


def _kept(folder: Path) -> dict[int, tuple[str, str]]:
    paths = [path for split in ("train", "val", "test") for path in (folder / "clean" / split).glob("*.parquet")]
    return {row["_line"]: (path.parent.name, row["tags"]) for path in paths for row in pq.read_table(path).to_pylist()}


def _parsed(spec: dict[str, Any]) -> Any:
    return parse_spec(yaml.safe_dump(spec), source="x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("things")
    _write_csv(folder / "things.csv", _rows())
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> Any:
    gates = {"f1": {"min": 0.9}, "label_accuracy": {"min": 0.9}, "baseline_f1": {"min": 0.9}}
    return run(_parsed(_spec(folder, evaluate={"gates": gates})))


def test_tags_are_learned_and_measured(result: Any) -> None:
    assert {"label_accuracy", "exact_match", "average_precision"} <= set(result["evaluate"].metrics)
    assert result["evaluate"].metrics["exact_match"] > 0.8
    assert result["export"].parity["package"] < 1e-5
    page = (result["evaluate"].folder / "report.html").read_text()
    assert "logistic regressions" in page
    assert "tags a row: mean" in page


def test_each_tag_is_a_class_and_rows_without_any_stay(result: Any, folder: Path) -> None:
    dataset = result["clean"]
    kept = [row["tags"] for row in _rows() if row["tags"] is not None]
    assert dataset.classes == _TAGS
    assert dataset.ledger.removed == {"missing_label": 10}
    totals = {tag: sum(rows[tag] for rows in dataset.class_rows.values()) for tag in _TAGS}
    assert totals == {tag: sum(tag in tags for tags in kept) for tag in _TAGS}
    assert [] in kept


def test_a_model_learns_from_0_and_1_for_each_tag(result: Any, folder: Path) -> None:
    features = result["featurize"]
    _, labels_NC = load_split(features, "train", context_in(features.folder))
    assert labels_NC.dtype == np.float32
    assert labels_NC.shape == (features.split_rows["train"], 3)
    assert labels_NC.sum(axis=0).tolist() == [result["clean"].class_rows["train"][tag] for tag in _TAGS]


def test_the_package_answers_probabilities_and_labels(result: Any) -> None:
    package = open_package(result["export"].path)
    assert package.signature.classes == _TAGS
    records = [
        {"size": 0.95, "colour": "red", "shape": "ball"},
        {"size": 0.05, "colour": "green", "shape": "cube", "tags": ["red"]},
    ]
    endpoint = Endpoint(Predictor(package), "things", Limits(), NoMeter())
    response = endpoint.ask("POST", "/predict", json.dumps(records).encode())
    status, body = response.code, response.body
    first, second = json.loads(body)["predictions"]
    assert status == 200
    assert (first["labels"], second["labels"]) == (list(_TAGS), [])
    assert set(first["probabilities"]) == set(_TAGS)


def test_the_reference_has_the_share_of_each_tag(result: Any) -> None:
    label = json.loads((Path(result["export"].path) / "reference.json").read_text())["label"]
    assert label["kind"] == "tags"
    assert label["fractions"]["round"] == pytest.approx(0.5, abs=0.1)


def test_labelled_records_tell_how_good_the_answers_are(result: Any, tmp_path: Path) -> None:
    rows = _rows()
    rows[1]["tags"] = [*rows[1]["tags"], "oval"]
    rows[2]["tags"] = ["oval", *rows[2]["tags"]]
    _write_csv(tmp_path / "new.csv", rows)
    found = measure_drift(str(result["export"].path), str(tmp_path / "new.csv"), is_labelled=True)
    assert (found.rows, found.labelled, found.unknown_labels) == (390, 390, {"oval": 2})
    assert (found.metrics or {})["label_accuracy"] > 0.9


def test_lists_and_texts_make_the_same_snapshot(folder: Path, tmp_path: Path) -> None:
    rows = _rows()
    (tmp_path / "things.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = pa.schema(
        {"size": pa.float64(), "colour": pa.string(), "shape": pa.string(), "tags": pa.list_(pa.string())}
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "things.parquet")
    uris = {"csv": folder / "things.csv", "jsonl": tmp_path / "things.jsonl", "parquet": tmp_path / "things.parquet"}
    kept = {}
    for kind, uri in uris.items():
        column = {"none_words": ["(none)"]} if kind == "csv" else {}
        dataset = _clean(tmp_path / kind, column, {"kind": kind, "uri": str(uri)})
        assert dataset.ledger.removed == {"missing_label": 10}
        first = 2 if kind == "csv" else 1
        kept[kind] = {line - first: fate for line, fate in _kept(tmp_path / kind).items()}
    assert kept["csv"] == kept["jsonl"] == kept["parquet"]
    assert kept["csv"].keys() == {number for number, row in enumerate(rows) if row["tags"] is not None}


def _write_few(folder: Path, cells: list[str]) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{number / 7:.3f},red,ball,{cell}\n" for number, cell in enumerate(cells))
    (folder / "few.csv").write_text("size,colour,shape,tags\n" + rows)
    return {"kind": "csv", "uri": str(folder / "few.csv")}


def test_bad_cells_are_in_quarantine_with_their_reason(tmp_path: Path) -> None:
    source = _write_few(tmp_path, [*["a|b", "b|a", "c|b"] * 6, "", "a|x", "[]", "[null]"])
    dataset = _clean(tmp_path, {"allowed": ["a", "b", "c"], "required": True}, source, max_removed_fraction=1)
    assert _fates(tmp_path) == {
        20: ("missing_label", "tags is the label and must be given, got nothing"),
        21: ("not_allowed", "tags must be one of a, b, c (each tag), got 'a|x'"),
        22: ("missing_required", "tags must hold a tag, got '[]'"),
        23: ("type_error", "tags must be a list of texts, or a text, got '[null]'"),
    }
    assert {tags for _, tags in _kept(tmp_path).values()} == {"a|b", "b|c"}
    assert dataset.class_rows["train"].keys() == {"a", "b", "c"}


def test_rows_are_the_same_whatever_the_order_of_their_tags(tmp_path: Path) -> None:
    source = _write_few(tmp_path, ["a|b"] * 9)
    with (tmp_path / "few.csv").open("a") as file:
        file.write("0.000,red,ball,b|a|b\n")
    dataset = _clean(tmp_path, {}, source)
    assert dataset.ledger.removed == {"duplicate": 1}
    assert dataset.ledger.rows_kept == 9


def test_rare_tags_stop_the_run_or_are_left_out(tmp_path: Path) -> None:
    source = _write_few(tmp_path, [*["a", "b", "a|b"] * 5, "a|odd", "odd"])
    with pytest.raises(
        DataError, match=r"at least 3 rows, got 'odd' 2\. Add rows, .* or set data.columns.tags.rare to leave_out"
    ):
        _clean(tmp_path / "stop", {}, source)
    dataset = _clean(tmp_path / "leave", {"rare": "leave_out"}, source)
    assert dataset.classes == ("a", "b")
    assert dataset.left_out == {"odd": 2}
    assert dataset.ledger.rows_kept == 17
    assert "tags left out: 'odd' 2" in dataset.account()
    assert all(rows.keys() == {"a", "b"} for rows in dataset.class_rows.values())


def test_one_tag_is_no_choice(tmp_path: Path) -> None:
    source = _write_few(tmp_path, ["a"] * 9)
    with pytest.raises(
        DataError, match=r"data.label \(tags\) must have at least 2 classes in the kept rows, got \['a'\]"
    ):
        _clean(tmp_path, {}, source)


def test_keras_learns_tags(folder: Path) -> None:
    pytest.importorskip("keras", reason="the extra 'keras' is not installed")
    spec = _spec(folder, name="of_keras", evaluate={"baseline": "none", "gates": {"f1": {"min": 0.9}}})
    spec["train"]["framework"] = "keras"
    assert run(_parsed(spec))["export"].parity["package"] < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": {"gates": {"accuracy": {"min": 0.5}}}}, r"gates must name metrics of the multi_label of tags \(label_accuracy, .*'accuracy'"),
        ({"train": {"augment": {"balance": "weights"}}}, r"balance must be left out for a label that is a number or tags"),
        ({"features": {"select": {"best": {"by": "mutual_information", "num_features": 1}}}}, r"select.best must not be given without a data.label that is a category"),
        (
            {"clean": {"duplicates": {"columns": ["tags"]}}},
            r"clean.duplicates.columns must name a column of kind .*, got 'tags' of kind 'tags'",
        ),
    ],
)  # fmt: skip
def test_what_needs_one_class_a_row_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _parsed(_spec(tmp_path, **changes))


def test_tags_are_no_feature(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    spec["data"]["label"] = "colour"
    with pytest.raises(
        SpecError,
        match=r"columns.tags must be the label to be of kind 'tags': tags are no features yet, got label 'colour'",
    ):
        _parsed(spec)
