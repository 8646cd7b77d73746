"""Scoring files with a package: a line for each record in the order of the file, also for those that cannot be scored."""

import json
import re

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pyarrow import orc

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import seal
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.signature import Signature
from lepton_ray.commands.score import score_file, source_of
from lepton_ray.core.errors import DataError, RecordError
from lepton_ray.spec.data import DataSpec

TABLE = {"x": {"kind": "number", "max": 100}, "c": {"kind": "category", "required": True}, "y": "category"}
IMAGES = {"image": {"kind": "image", "height": 2, "width": 2, "channels": 1}, "y": "category"}
TYPES = {"FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING, "UINT8": TensorProto.UINT8}


def write_package(folder, columns, **source):
    """A package that answers ``high`` where the first tensor's mean over a row is 10 or more, else ``low``."""
    data = DataSpec.model_validate({"source": {"uri": "x", **source}, "columns": columns, "label": "y"})
    signature = Signature.of(data, Target(task="classification", classes=("high", "low")))
    folder.mkdir()
    (folder / "signature.json").write_text(signature.model_dump_json())
    lineage = {"name": "n", "spec": {"data": data.model_dump(mode="json")}}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    onnx.save(_model(signature), folder / "model.onnx")
    seal(folder)
    return str(folder)


def _model(signature):
    first = signature.inputs[0]
    nodes = [
        helper.make_node("Cast", [first.name], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["wide"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["mean"]),
        helper.make_node("Less", ["mean", "ten"], ["is_low"]),
        helper.make_node("Cast", ["is_low"], ["low"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "low"], ["high"]),
        helper.make_node("Concat", ["high", "low"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "index"], ["label"]),
    ]
    constants = {
        "axes": np.array([1]),
        "ten": np.float32(10),
        "one": np.float32(1),
        "classes": np.array(["high", "low"], object),
    }
    inputs = [helper.make_tensor_value_info(t.name, TYPES[t.datatype], ["n", *t.shape[1:]]) for t in signature.inputs]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def score(package, path):
    lines = []
    counts = score_file(package, str(path), lines.append)
    return counts, [json.loads(json.dumps(line)) for line in lines]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_every_record_has_a_line(tmp_path, delimiter):
    package = write_package(tmp_path / "p", TABLE, kind="csv", delimiter=delimiter)
    text = 'c,x\na,3\nb,30\na\n"a\nb",12\n\na,500\n,1\na,NA\na,word\n'
    (tmp_path / "d.csv").write_text(text.replace(",", delimiter))
    counts, lines = score(package, tmp_path / "d.csv")
    assert counts == (4, 4)
    assert {line["line"]: line.get("label", "error") for line in lines} == {
        **{2: "low", 3: "high", 4: "error", 5: "high"},
        **{8: "error", 9: "error", 10: "high", 11: "error"},  # Less is false of NaN
    }
    assert [line["line"] for line in lines] == sorted(line["line"] for line in lines)
    assert lines[0]["probabilities"] == {"high": 0, "low": 1}
    assert lines[4]["error"] == "x must be at most 100, got 500"


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.csv", "x,c,zip,old\n3,a,1,2\n"), ("d.jsonl", '{"x": 3}\n{"c": "a", "zip": 1, "old": 2}\n')],
)
def test_columns_that_the_training_data_did_not_have_are_told(tmp_path, name, content):
    """And those that it had, and the model leaves out, are not."""
    package = write_package(tmp_path / "p", {**TABLE, "old": "ignored"}, kind="csv")
    (tmp_path / name).write_text(content)
    told = []
    score_file(package, str(tmp_path / name), lambda answer: None, told.append)
    assert told == [["zip"]]


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("d.json", '{"records": [{"c": "a", "x": 3}, {"c": "b", "x": 30}]}', r"such as 'x', got only \['records'\]"),
        ("d.jsonl", '{"zip": 3, "town": "Ulm"}\n', r"such as 'x', got only \['zip', 'town'\]"),
    ],
)
def test_records_of_which_no_column_is_known_are_refused(tmp_path, name, content, rule):
    """A body for the endpoint is one record, of whose columns the model has none: its answer would look like any other."""
    package = write_package(tmp_path / "p", TABLE, kind="csv")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rule):
        score(package, tmp_path / name)


def test_a_file_is_read_in_the_encoding_of_the_training(tmp_path):
    package = write_package(tmp_path / "p", TABLE, kind="csv", encoding="utf-16")
    (tmp_path / "d.csv").write_bytes("c,x\na,3\nb,30\n".encode("utf-16"))
    counts, lines = score(package, tmp_path / "d.csv")
    assert counts == (2, 0)
    assert [line["label"] for line in lines] == ["low", "high"]


def test_records_that_overflow_are_refused_alone(tmp_path, monkeypatch):
    run = Predictor.run

    def overflowing(self, feeds):
        if (too_large := np.flatnonzero(feeds["numbers"][:, 0] < -1e99)).size:
            raise RecordError(f"records[{too_large[0]}] must give finite probabilities")
        return run(self, feeds)

    monkeypatch.setattr(Predictor, "run", overflowing)
    package = write_package(tmp_path / "p", TABLE, kind="csv")
    (tmp_path / "d.csv").write_text("c,x\na,3\na,-1e300\na,500\na,30\n")
    counts, lines = score(package, tmp_path / "d.csv")
    assert counts == (2, 2)
    assert [(line["line"], line.get("label")) for line in lines] == [(2, "low"), (3, None), (4, None), (5, "high")]
    assert lines[1]["error"] == "must give finite probabilities"


def test_a_package_of_a_csv_takes_other_files_too(tmp_path):
    package = write_package(tmp_path / "p", TABLE, kind="csv", delimiter=";")
    (tmp_path / "d.tsv").write_text("c\tx\na\t3\n")
    (tmp_path / "d.jsonl").write_text('{"c": "a", "x": 30, "y": "label is not read"}\n[]\n')
    assert score(package, tmp_path / "d.tsv")[0] == (1, 0)
    assert score(package, tmp_path / "d.jsonl")[0] == (1, 1)


def test_files_of_every_kind_are_scored(tmp_path):
    package = write_package(tmp_path / "p", TABLE, kind="csv")
    table = pa.table({"x": [3.0, 30.0, 500.0], "c": ["a", "b", "a"]})
    pq.write_table(table, tmp_path / "d.parquet")
    pyarrow.feather.write_feather(table, str(tmp_path / "d.feather"))
    orc.write_table(table, str(tmp_path / "d.orc"))
    with pa.CompressedOutputStream(str(tmp_path / "d.csv.gz"), "gzip") as file:
        pacsv.write_csv(table, file)
    for name in ("d.parquet", "d.feather", "d.orc", "d.csv.gz"):
        counts, lines = score(package, tmp_path / name)
        assert counts == (2, 1)
        assert [line.get("label") for line in lines] == ["low", "high", None]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.CSV", "csv"),
        ("a.b.csv.gz", "csv"),
        ("a.tab.zst", "csv"),
        ("s3://bucket/a.json.bz2", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.pq", "parquet"),
        ("a.arrows", "arrow"),
        ("a.ipc", "arrow"),
        ("a.orc", "orc"),
    ],
)
def test_the_source_of_a_file_is_told_by_its_suffix(name, kind):
    is_tab_separated = ".tab" in name
    delimiter = {"delimiter": "\t"} if is_tab_separated else {}
    assert source_of(name) == {"kind": kind, "uri": name, **delimiter}


@pytest.mark.parametrize("name", ["a", "csv", "a.gz", "a.parquet.gz", "a.csv.zip", "a.csv.gz.gz", "a.txt"])
def test_a_file_of_no_known_suffix_is_refused(name):
    with pytest.raises(DataError, match=re.escape(f"got {name!r}")):
        source_of(name)


def test_images_are_told_apart_by_file(tmp_path):
    package = write_package(tmp_path / "p", IMAGES, kind="image_folder")
    folder = tmp_path / "d"
    folder.mkdir()
    for name, value in (("a", 200), ("c", 3), ("d", 90)):
        Image.fromarray(np.full((2, 2), value, np.uint8)).save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"no image")
    counts, lines = score(package, folder)
    assert counts == (3, 1)
    assert [line["file"] for line in lines] == [str(folder / f"{name}.png") for name in "abcd"]
    assert [line.get("label") for line in lines] == ["high", None, "low", "high"]


def test_the_wrong_kind_of_file_is_an_error_that_says_so(tmp_path):
    (tmp_path / "d.csv").write_text("c,x\na,3\n")
    images = write_package(tmp_path / "images", IMAGES, kind="image_folder")
    table = write_package(tmp_path / "table", TABLE, kind="csv")
    with pytest.raises(DataError, match="takes a folder of images"):
        score(images, tmp_path / "d.csv")
    with pytest.raises(DataError, match="takes a file of records"):
        score(table, tmp_path)


@pytest.mark.parametrize("text", ["", "c,x\n", "\n\n"])
def test_a_file_without_records_is_an_error(tmp_path, text):
    package = write_package(tmp_path / "p", TABLE, kind="csv")
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match="must hold records"):
        score(package, tmp_path / "d.csv")


def test_a_file_without_a_feature_refuses_every_record(tmp_path):
    package = write_package(tmp_path / "p", TABLE, kind="csv")
    (tmp_path / "d.csv").write_text("c,z\na,3\nb,4\n")
    counts, lines = score(package, tmp_path / "d.csv")
    assert counts == (0, 2)
    assert {line["error"] for line in lines} == {"the header lacks x"}
