"""Packages: every change to a file is found and named; what goes in is checked and comes out the same in any batch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import open_package, seal
from lepton_ray.artifacts.predictor import MAX_BATCH_ROWS, Predictor
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import empty_feeds
from lepton_ray.core.errors import ArtifactError, RecordError
from lepton_ray.spec.data import DataSpec

_FILES = (
    "MODEL_CARD.md",
    "digests.json",
    "golden_outputs.json",
    "golden_records.json",
    "lineage.json",
    "metrics.json",
    "model.onnx",
    "reference.json",
    "signature.json",
)
_RECORD = {"age": 30, "income": 10.5, "colour": "red", "size": "S"}


def _refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_package(folder)
    return str(caught.value)


def test_a_package_holds_the_promised_files_and_opens(mixed_package: Path) -> None:
    assert tuple(sorted(path.name for path in mixed_package.iterdir())) == _FILES
    package = open_package(str(mixed_package))
    assert (package.name, len(package.version), package.digest[:12]) == ("mixed", 12, package.version)
    assert package.digest == seal(mixed_package)


@pytest.mark.parametrize("name", _FILES)
@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_one_changed_byte_in_any_file_is_refused_by_name(mixed_package: Path, name: str, position: str) -> None:
    path = mixed_package / name
    content = bytearray(path.read_bytes())
    index = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[position]
    content[index] ^= 1
    path.write_bytes(content)
    assert f"{path} has changed" in _refusal(mixed_package)


def test_any_changed_character_of_the_digests_is_refused(mixed_package: Path) -> None:
    path = mixed_package / "digests.json"
    text = path.read_text()
    for index in range(0, len(text), 7):
        if text[index].isspace():
            continue  # layout means nothing
        path.write_text(text[:index] + ("0" if text[index] != "0" else "1") + text[index + 1 :])
        assert "digests.json has changed" in _refusal(mixed_package)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"files": 3}', '{"files": {}, "package": ""}', "\udcff"])
def test_digests_of_another_form_are_refused(mixed_package: Path, text: str) -> None:
    (mixed_package / "digests.json").write_text(text, errors="surrogateescape")
    assert "digests.json has changed" in _refusal(mixed_package)


@pytest.mark.parametrize("name", _FILES)
def test_a_removed_file_is_refused_by_name(mixed_package: Path, name: str) -> None:
    (mixed_package / name).unlink()
    assert name in _refusal(mixed_package)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "sub/extra.bin", "ü\n.txt"])
def test_an_added_file_is_refused_by_name(mixed_package: Path, name: str) -> None:
    (mixed_package / name).parent.mkdir(exist_ok=True)
    (mixed_package / name).write_bytes(b"")
    assert f"{mixed_package / name} does not belong to the package" in _refusal(mixed_package)


def test_what_is_no_package_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, Path(__file__)):
        assert "must be a model package, but it has no digests.json" in _refusal(path)
    assert "must be a model package, but nothing is there" in _refusal(tmp_path / "none")


@pytest.mark.parametrize("name", ["signature.json", "lineage.json"])
def test_a_sealed_package_of_another_version_says_so(mixed_package: Path, name: str) -> None:
    for content in (b'{"from": "the future"}', b"[]", b"\xff"):
        (mixed_package / name).write_bytes(content)
        seal(mixed_package)
        assert "must be a model package of this version" in _refusal(mixed_package)


def test_a_moved_package_keeps_its_digest(mixed_package: Path, tmp_path: Path) -> None:
    digest = open_package(mixed_package).digest
    target = tmp_path / "odd näme's\n%20"
    mixed_package.rename(target)
    assert open_package(target).digest == digest
    assert Predictor(open_package(target)).predict([_RECORD])["label"].tolist()


def _records(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "age": float(rng.uniform(0, 120)),
            "income": None if rng.random() < 0.3 else float(rng.normal(1000, 500)),
            "colour": rng.choice(["red", "blue", "never seen", None]),
            "size": str(rng.choice(["S", "M", "L"])),
        }
        for _ in range(count)
    ]


def test_answers_are_the_closed_form_and_do_not_depend_on_the_batch(
    mixed_package: Path, expected_probabilities: Callable[[Any], Any]
) -> None:
    predictor = Predictor(open_package(mixed_package), num_threads=2)
    records = _records(5000)
    whole = predictor.predict(records)
    assert np.abs(whole["probabilities"] - expected_probabilities(records)).max() < 1e-6
    classes = np.array(["no", "maybe", "yes"], object)
    assert (whole["label"] == classes[whole["probabilities"].argmax(1)]).all()
    for start in (0, 1023, 1024, 4999):
        one = predictor.predict(records[start : start + 1])
        assert one["label"].tolist() == whole["label"][start : start + 1].tolist()
        assert np.abs(one["probabilities"] - whole["probabilities"][start]).max() <= 1e-7


class _Counted:
    """A session that keeps how many rows each call has."""

    def __init__(self, session: Any) -> None:
        self._session, self.rows = session, list[int]()

    def run(self, outputs: Any, feeds: Any) -> Any:
        self.rows.append(len(next(iter(feeds.values()))))
        return self._session.run(outputs, feeds)


def test_a_graph_may_ask_for_fewer_rows_at_a_time(mixed_package: Path) -> None:
    wanted = Predictor(open_package(mixed_package)).predict(_records(7))
    graph = onnx.load(mixed_package / "model.onnx")
    onnx.helper.set_model_props(graph, {MAX_BATCH_ROWS: "3"})
    onnx.save(graph, mixed_package / "model.onnx")
    seal(mixed_package)
    predictor = Predictor(open_package(mixed_package))
    predictor._session = counted = _Counted(predictor._session)
    got = predictor.predict(_records(7))
    assert counted.rows == [3, 3, 1]
    assert got["label"].tolist() == wanted["label"].tolist()


def test_no_rows_give_empty_outputs_of_the_right_form(mixed_package: Path, picture_package: Path) -> None:
    for folder, width in ((mixed_package, 3), (picture_package, 2)):
        predictor = Predictor(open_package(folder))
        outputs = predictor.predict([])
        full = predictor.run(empty_feeds(predictor.signature, 2))
        for name, values in outputs.items():
            assert (len(values), values.dtype, values.ndim) == (0, full[name].dtype, full[name].ndim)
        assert outputs["probabilities"].shape == (0, width)


def test_the_graph_runs_in_onnxruntime_alone(mixed_package: Path, expected_probabilities: Callable[[Any], Any]) -> None:
    session = ort.InferenceSession(str(mixed_package / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"numbers": np.array([[30, math.nan]]), "categories": np.array([["red", "S"]], object)}
    label, probabilities = session.run(["label", "probabilities"], feeds)
    wanted = expected_probabilities([{**_RECORD, "income": None}])
    assert np.abs(probabilities - wanted).max() < 1e-6
    assert label.tolist() == [["no", "maybe", "yes"][int(wanted.argmax())]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": "old"}, "records[1].age must be a number or null, got 'old'"),
        ({"age": "121"}, "records[1].age must be at most 120, got 121.0"),
        ({"age": True}, "records[1].age must be a number or null, got True"),
        ({"age": [30]}, "records[1].age must be a number or null, got [30]"),
        ({"age": None}, "records[1].age must be given, got nan"),
        ({"age": -0.5}, "records[1].age must be at least 0, got -0.5"),
        ({"age": 121}, "records[1].age must be at most 120, got 121.0"),
        ({"income": math.inf}, "records[1].income must be a finite number, got inf"),
        ({"income": 10**400}, "records[1].income must be a finite number, got inf"),
        ({"income": 10**5000}, "records[1].income must be a finite number, got inf"),
        ({"colour": ["red"]}, "records[1].colour must be a text or null, got ['red']"),
        ({"colour": {}}, "records[1].colour must be a text or null, got {}"),
        ({"colour": 10**5000}, "records[1].colour must be a text or null, got a large int"),
        ({"colour": "\ud800"}, "records[1].colour must be a text or null, got '\\ud800'"),
        ({"size": None}, "records[1].size must be given, got nothing"),
        ({"size": " NA "}, "records[1].size must be given, got nothing"),
        ({"size": "XL"}, "records[1].size must be one of S, M, L, got 'XL'"),
        ({"weight": 3}, "records[1].weight must be a known field. Known are: age, colour, income, size"),
        ({3: 3}, "records[1].3 must be a known field. Known are: age, colour, income, size"),
    ],
)
def test_a_wrong_value_is_refused_with_field_rule_and_value(
    mixed_package: Path, change: dict[Any, Any], message: str
) -> None:
    with pytest.raises(RecordError) as caught:
        open_package(mixed_package).signature.encode([_RECORD, {**_RECORD, **change}])
    assert str(caught.value) == message


def test_an_unknown_field_of_many_records_is_told_once(mixed_package: Path) -> None:
    with pytest.raises(RecordError) as caught:
        open_package(mixed_package).signature.encode(
            [{**_RECORD, "x": 1, "y": 2}, _RECORD, *[{**_RECORD, "x": 3, "y": 4}] * 40]
        )
    assert [text.partition(" ")[0] for text in str(caught.value).split("; ")] == ["records[0].x", "records[2].y"]


@pytest.mark.parametrize("record", [None, 3, "age", ["age"], [["age", 3]]])
def test_a_record_that_is_no_object_is_refused(mixed_package: Path, record: Any) -> None:
    with pytest.raises(RecordError, match=r"records\[0\] must be an object of fields, got "):
        open_package(mixed_package).signature.encode([record])


def test_categories_mean_what_cleaning_made_of_them(mixed_package: Path) -> None:
    signature = open_package(mixed_package).signature
    given = ["red", " red\t", "", "NA", " null ", None, "Red", True, 3, 2.5]
    feeds = signature.encode([{**_RECORD, "colour": value} for value in given])
    wanted = ["red", "red", "", "", "", "", "Red", "true", "3", "2.5"]
    assert feeds["categories"][:, 0].tolist() == wanted


def test_a_text_is_read_as_in_a_file_of_records(mixed_package: Path) -> None:
    signature = open_package(mixed_package).signature
    given = ["30", " 30.0\t", "3e1", 30, 30.0]
    assert signature.encode([{**_RECORD, "age": value} for value in given])["numbers"][:, 0].tolist() == [30.0] * 5
    assert np.isnan(
        signature.encode([{**_RECORD, "income": value} for value in ("", "NA", " null ")])["numbers"][:, 1]
    ).all()


def test_columns_that_the_model_does_not_read_may_be_there(mixed_package: Path) -> None:
    signature = open_package(mixed_package).signature
    feeds = signature.encode([{**_RECORD, "record": object(), "outcome": [1]}])
    assert feeds["numbers"].tolist() == [[30.0, 10.5]]


def test_the_number_and_length_of_problems_is_bounded(mixed_package: Path) -> None:
    signature = open_package(mixed_package).signature
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    for bad in ("x" * 10**6, deep, {"k" * 10**6: 1}, 10**5000):
        for records in ([{"age": bad}] * 1000, [{**_RECORD, "colour": [bad]}] * 1000, [bad] * 1000):
            with pytest.raises(RecordError) as caught:
                signature.encode(records)
            is_unknown_field = records[0] is bad and isinstance(bad, dict)  # told once
            assert str(caught.value).count("records[") == (1 if is_unknown_field else 20)
            assert len(str(caught.value)) < 20 * 250
    with pytest.raises(RecordError) as caught:
        signature.encode([{f"{number}{'x' * 10**4}": 1} for number in range(1000)])
    assert len(str(caught.value)) < 20 * 250


def test_wide_data_does_not_make_long_answers() -> None:
    columns = {f"column{index}": "number" for index in range(5000)} | {"y": "category"}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "a"}, "label": "y", "columns": columns})
    with pytest.raises(RecordError) as caught:
        Signature.of(data, Target(task="classification", classes=("a", "b"))).encode(
            [{f"colum{row}x": 1} for row in range(100)]
        )
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (None, "the shape nothing"),
        ("abc", "the shape 'abc'"),
        ([], "the shape 0"),
        ([[1, 2, 3], [4, 5, 6]], "the shape 2x3"),
        ([[[1], [2]], [[3]]], "lists of unequal length"),
        ([[[1], [2], [3]], [[4], [5], [256]]], "values outside of that"),
        ([[[1], [2], [3]], [[4], [5], [-1]]], "values outside of that"),
        ([[[1], [2], [3]], [[4], [5], [1.0]]], "values outside of that"),
        ([[[1], [2], [3]], [[4], [5], [None]]], "values outside of that"),
        ([[[1], [2], [3]], [[4], [5], ["6"]]], "values outside of that"),
        ([[[1], [2], [3]], [[4], [5], [10**5000]]], "values outside of that"),
        ([[[True], [True], [True]], [[True], [True], [True]]], "values outside of that"),
    ],
)
def test_a_picture_of_another_form_is_refused(picture_package: Path, picture: Any, problem: str) -> None:
    with pytest.raises(RecordError) as caught:
        open_package(picture_package).signature.encode([{"picture": picture}])
    rule = "records[0].picture must be 2x3x1 whole numbers from 0 to 255, got "
    assert str(caught.value) == rule + problem


@pytest.mark.parametrize("numbers", [[0, 1, 0, 1, 1, 0], [0, 255, 3, 4, 5, 6], [True, 2, 3, 4, 5, False]])
def test_a_picture_of_nested_numbers_is_its_pixels(picture_package: Path, numbers: list[int]) -> None:
    """Where all are 0 or 1 another way must be taken than else, as they could be truth values."""
    picture = np.array(numbers, object).reshape(2, 3, 1)
    feeds = open_package(picture_package).signature.encode([{"picture": picture.tolist()}])
    assert np.array_equal(feeds["image"], picture.astype(np.uint8)[None])


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(_ANY | st.dictionaries(st.sampled_from(["age", "colour", "income", "size", "record"]), _ANY), max_size=4)
)
def test_any_records_are_answered_or_refused(mixed_predictor: Predictor, records: list[Any]) -> None:
    try:
        outputs = mixed_predictor.predict(records)
    except RecordError:
        return
    assert len(outputs["label"]) == len(records)
    assert np.isfinite(outputs["probabilities"]).all()


@pytest.fixture(scope="module")
def mixed_predictor(_sealed: Path) -> Predictor:
    return Predictor(open_package(_sealed / "mixed"))
