"""Export: one graph from raw tensors to labels that answers as torch does, golden rows, and the parity gate."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest
import torch

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import to_records
from lepton_ray.core.errors import QualityGateError
from lepton_ray.export.golden import check_parity, choose_rows, outputs_to_json
from lepton_ray.export.model_card import write_card
from lepton_ray.export.to_onnx import export_model, predict
from lepton_ray.features.categories import CategoryState
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.images import ImageState
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.state import FeatureState
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import CnnModel, MlpModel
from lepton_ray.stages import export
from lepton_ray.stages.export import _without_passwords
from lepton_ray.stages.featurize import inputs_of

_CLASSES = ("", "ja, sí", "no\n'\"")
_TABLE = DataSpec.model_validate(
    {
        "source": {"kind": "csv", "uri": "a.csv"},
        "label": "y",
        "columns": {"a": "number", "b": "number", "c": "category", "y": "category"},
    }
)
_PICTURES = DataSpec.model_validate(
    {
        "source": {"kind": "image_folder", "uri": "a"},
        "label": "y",
        "columns": {"p": {"kind": "image", "height": 5, "width": 6, "channels": 3}, "y": "category"},
    }
)


@pytest.fixture(scope="module")
def mlp() -> tuple[Any, ort.InferenceSession]:
    """A model of 2 numbers and a category of 2, with the session of its export."""
    number = NumberState(impute=3.0, offset=1.0, scale=2.0)
    state = FeatureState(
        numbers={"a": number, "b": number}, categories={"c": CategoryState(vocabulary=("x", "y"), missing_index=0)}
    )
    return _export(MlpModel(kind="mlp", hidden=(8, 4), dropout=0.5), _TABLE, state)


@pytest.fixture(scope="module")
def cnn() -> tuple[Any, ort.InferenceSession]:
    """A model of colour pictures with odd sides, with the session of its export."""
    model = CnnModel(kind="cnn", channels=(3, 4), hidden=7, dropout=0.5)
    return _export(model, _PICTURES, FeatureState(images={"p": ImageState(shape=(5, 6, 3), factor=1 / 255)}))


def _export(spec: Any, data: DataSpec, state: FeatureState) -> tuple[Any, Any]:
    torch.manual_seed(0)
    inputs = inputs_of(state)
    model = build_model(spec, inputs, len(_CLASSES)).train()
    prepare = compile_graph(Signature.of(data, Target(task="classification", classes=_CLASSES)), state)
    graph = export_model(model, inputs, prepare, Target(task="classification", classes=_CLASSES))
    assert [value.name for value in graph.graph.output] == ["label", "probabilities"]
    return model, ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def _torch_answer(model: Any, features: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.softmax(model.eval()(torch.from_numpy(features)), dim=1).numpy()


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_an_exported_mlp_answers_as_torch_does(mlp: tuple[Any, Any], rows: int) -> None:
    model, session = mlp
    rng = np.random.default_rng(rows)
    numbers = rng.normal(size=(rows, 2))
    numbers[rng.random((rows, 2)) < 0.3] = np.nan
    texts = rng.choice(["x", "y", "", "other"], (rows, 1)).astype(object)
    scaled = (np.where(np.isnan(numbers), 3.0, numbers) - 1.0) / 2.0
    one_hot = [[text in ("x", ""), text == "y"] for text in texts[:, 0]]
    wanted = _torch_answer(model, np.concatenate([scaled, one_hot], axis=1).astype(np.float32))
    label, probabilities = session.run(["label", "probabilities"], {"numbers": numbers, "categories": texts})
    assert np.abs(probabilities - wanted).max() < 1e-5
    assert label.tolist() == [_CLASSES[index] for index in wanted.argmax(1)]


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_an_exported_cnn_answers_as_torch_does(cnn: tuple[Any, Any], rows: int) -> None:
    model, session = cnn
    pictures = np.random.default_rng(rows).integers(0, 256, (rows, 5, 6, 3), dtype=np.uint8)
    wanted = _torch_answer(model, np.moveaxis(pictures / np.float32(255), 3, 1).copy())
    label, probabilities = session.run(["label", "probabilities"], {"image": pictures})
    assert np.abs(probabilities - wanted).max() < 1e-5
    assert label.tolist() == [_CLASSES[index] for index in wanted.argmax(1)]


class _Norm(torch.nn.Module):
    """Rows of length 1, or of none; with constants that are easily taken for 0 and 1."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        length = values.pow(2).sum(1, keepdim=True).sqrt() + 1e-8
        return values / length * 1.000001 - 3e-9


def test_small_constants_stay_and_where_code_came_from_does_not() -> None:
    state = FeatureState(numbers={name: NumberState(impute=0.0, offset=0.0, scale=1.0) for name in "ab"})
    columns = {"a": "number", "b": "number", "y": "number"}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "a"}, "label": "y", "columns": columns})
    target = Target(task="regression", num_values=2, mean=2e-9, std=1e-7)
    prepare = compile_graph(Signature.of(data, target), state)
    graph = export_model(_Norm(), inputs_of(state), prepare, target)
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (values,) = session.run(["values"], {"numbers": rows})
    wanted = np.array([[0.0, 0.0], [0.6, 0.8]]) * 1.000001 - 3e-9
    np.testing.assert_allclose(values, wanted * 1e-7 + 2e-9, rtol=1e-6)
    assert np.all(values[0] > 0), "the mean is added to a row of zeros too"
    assert b"test_export.py" not in graph.SerializeToString()


def test_the_training_codes_answer_is_without_dropout(mlp: tuple[Any, Any]) -> None:
    model, _ = mlp
    features = np.ones((2, 4), np.float32)
    got = predict(model.train(), Target(task="classification", classes=_CLASSES), [features])
    assert np.array_equal(got, _torch_answer(model, features))
    assert got.sum(1) == pytest.approx([1, 1])


def _test_table(a: list[float], c: list[str]) -> pa.Table:
    return pa.table({"a": a, "b": [0.0] * len(a), "c": c, "y": ["x"] * len(a)})


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0]),
        (2, [0, 2]),
        (4, [0, 2, 5, 6]),
        (5, [0, 2, 3, 5, 6]),
        (6, [0, 1, 2, 4, 5, 6]),
        (99, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_golden_rows_hold_missing_values_if_there_are_any(count: int, expected: list[int]) -> None:
    table = _test_table([1, 2, None, 3, 4, 5, None], ["u", "u", "u", "u", None, "u", None])
    assert (
        choose_rows(table, Signature.of(_TABLE, Target(task="classification", classes=_CLASSES)), count).tolist()
        == expected
    )


def test_golden_rows_may_all_or_none_have_missing_values() -> None:
    signature = Signature.of(_TABLE, Target(task="classification", classes=_CLASSES))
    assert choose_rows(_test_table([None] * 5, ["u"] * 5), signature, 4).tolist() == [0, 1, 3, 4]
    assert choose_rows(_test_table([1.0] * 5, ["u"] * 5), signature, 4).tolist() == [0, 1, 2, 4]
    pictures = pa.table({"p": [b"\x00" * 90] * 3, "y": ["x"] * 3})
    assert choose_rows(
        pictures, Signature.of(_PICTURES, Target(task="classification", classes=_CLASSES)), 2
    ).tolist() == [0, 2]


def test_golden_rows_of_a_sorted_split_are_of_its_beginning_and_its_end() -> None:
    signature = Signature.of(_TABLE, Target(task="classification", classes=_CLASSES))
    chosen = choose_rows(_test_table([float(n) for n in range(1000)], ["u"] * 1000), signature, 3)
    assert chosen.tolist() == [0, 454, 999], "the first, the sixth and the last of the twelve that are tried"


def test_golden_rows_are_those_that_a_record_gives_again() -> None:
    """A text that reading would change again has no record."""
    columns = {"c": {"kind": "category", "replace": {"1": "0", "2": "1"}}, "y": "category"}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "label": "y", "columns": columns})
    signature = Signature.of(data, Target(task="classification", classes=_CLASSES))
    table = pa.table({"c": ["1", "0", "1", "x", "0"], "y": ["x"] * 5})
    chosen = choose_rows(table, signature, 5)
    again = signature.encode(to_records(table.take(pa.array(chosen)), signature))["categories"][:, 0]
    assert again.tolist() == table.column("c").take(pa.array(chosen)).to_pylist()
    assert len(chosen) >= 3


def _outputs(labels: list[str], probabilities: list[list[float]]) -> dict[str, Any]:
    return {"label": labels, "probabilities": probabilities}


_WANTED = _outputs(["a", "b"], [[0.7, 0.3], [0.4, 0.6]])


def test_outputs_are_stored_as_labels_and_lists() -> None:
    assert outputs_to_json(
        np.array([[0.75, 0.25], [0.25, 0.75]], np.float32), Target(task="classification", classes=("a", "b"))
    ) == _outputs(["a", "b"], [[0.75, 0.25], [0.25, 0.75]])


def test_parity_measures_the_greatest_difference() -> None:
    got = _outputs(["a", "b"], [[0.7, 0.3], [0.404, 0.596]])
    assert check_parity("x", got, _WANTED, 0.01) == pytest.approx(0.004)
    with pytest.raises(
        QualityGateError, match=r"x must answer as the training code within 0.001, but differs by 0.004"
    ):
        check_parity("x", got, _WANTED, 0.001)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["got", "wanted", "both"])
def test_parity_is_never_met_by_what_is_no_number(bad: float, side: str) -> None:
    broken = _outputs(["a", "b"], [[0.7, 0.3], [bad, 0.6]])
    got, wanted = (broken if side in (name, "both") else _WANTED for name in ("got", "wanted"))
    with pytest.raises(QualityGateError), np.errstate(invalid="ignore"):
        check_parity("x", got, wanted, 1e9)


def test_parity_demands_equal_labels_unless_there_is_a_tie() -> None:
    with pytest.raises(QualityGateError, match="x must answer 'a' for golden row 0, got 'b'"):
        check_parity("x", _outputs(["b", "b"], _WANTED["probabilities"]), _WANTED, 0.01)
    tie = _outputs(["a"], [[0.5, 0.5]])
    assert check_parity("x", _outputs(["b"], [[0.499, 0.501]]), tie, 0.01) == pytest.approx(0.001)
    one_class = _outputs(["a"], [[1.0]])
    assert check_parity("x", one_class, one_class, 0.01) == 0


@pytest.mark.parametrize(
    "got", [_outputs(["a"], [[0.7, 0.3]]), _outputs(["a", "b"], [[0.7], [0.4]]), _outputs([], []), _outputs(["a"], [])]
)
def test_parity_is_not_met_by_answers_of_another_shape(got: dict[str, Any]) -> None:
    with pytest.raises(QualityGateError):
        check_parity("x", got, _WANTED, 1.0)


def test_parity_of_a_number_far_from_the_others_counts_in_its_distance() -> None:
    """A model gives the distance in float32: of a million spreads no digit is known to a thousandth of one."""
    wanted = outputs_to_json(np.array([110.0, 100.0 + 1e7]), Target(task="regression", mean=100.0, std=10.0))
    assert check_parity("x", {"value": [110.0, 101.0 + 1e7]}, wanted, 1e-5) == pytest.approx(1e-7)
    for value in ([110.001, 100.0 + 1e7], [110.0, 300.0 + 1e7]):
        with pytest.raises(QualityGateError, match=r"x must answer as the training code within 1e-05.* clip them"):
            check_parity("x", {"value": value}, wanted, 1e-5)


@pytest.mark.parametrize("scores", [[-5.0, -4.0, -2.5], [-5.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("threshold", [-3.0, 0.0])
def test_parity_of_scores_below_zero_counts_as_of_those_above(scores: list[float], threshold: float) -> None:
    """A model of one's own may give scores of any sign, such as a negative log likelihood."""
    wanted = outputs_to_json(np.array(scores), Target(task="anomaly_detection", threshold=threshold))
    assert check_parity("x", {"score": scores}, wanted, 1e-4) == 0
    with pytest.raises(QualityGateError, match=r"x must answer as the training code within 0\.0001"):
        check_parity("x", {"score": [score + 100 for score in scores]}, wanted, 1e-4)


def test_a_row_that_is_answered_otherwise_alone_is_promoted_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All golden rows together are answered as the training code answered them, in one batch as well."""
    numbers = np.arange(4.0)

    def predictor_of(run: Any) -> Any:
        return lambda package: SimpleNamespace(signature=None, run=run)

    monkeypatch.setattr(export, "open_package", lambda path: None)
    monkeypatch.setattr(export, "to_feeds", lambda golden, signature: {"x": numbers})
    golden, outputs = pa.table({"x": numbers}), {"value": (numbers - numbers.mean()).tolist()}
    monkeypatch.setattr(export, "Predictor", predictor_of(lambda feeds: {"value": feeds["x"] - feeds["x"].mean()}))
    with pytest.raises(
        QualityGateError, match=r"the package must answer a row alone as it does beside others within 0\.1"
    ):
        export._hold("the package", Path(), golden, outputs, 0.1)
    monkeypatch.setattr(export, "Predictor", predictor_of(lambda feeds: {"value": feeds["x"] - numbers.mean()}))
    assert export._hold("the package", Path(), golden, outputs, 0.1)[1] == 0.0


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ({"kind": "csv", "uri": "a.csv"}, "csv at `a.csv`"),
        ({"kind": "kafka", "servers": "h:9092", "topic": "t"}, "kafka at `kafka topic t`"),
        ({"kind": "ray", "reader": "mongo", "options": {"uri": "x"}}, "ray at `ray.data.read_mongo`"),
        ({"kind": "custom", "connector": "a.b:c"}, "custom at `a.b:c`"),
        ({"kind": "iceberg", "catalog": {"name": "prod"}, "table": "ns.t"}, "iceberg at `ns.t`"),
        ({"kind": "sql", "uri": "postgresql://me:hunter2@db/sales", "table": "t"}, "sql at `postgresql://db/sales`"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_card_names_every_kind_of_source_and_no_password(source: dict[str, Any], place: str) -> None:
    data = {**_TABLE.model_dump(mode="json"), "source": source}
    lineage = {
        "name": "demo",
        "spec": {"data": data, "model": {"kind": "linear"}},
        "split_rows": {"train": 1},
        "epochs": 1,
        "best_epoch": 1,
    }
    target = Target(task="classification", classes=("n", "p"))
    assert f"- Data: {place}; rows: train 1" in write_card(Signature.of(_TABLE, target), lineage, {"val_loss": 1.0})


def test_a_package_carries_no_secret_of_its_source() -> None:
    source = {
        "kind": "http",
        "uri": "https://me:a@b@${HOST}/x",
        "headers": {"Authorization": "Bearer s", "X-Api-Key": "${KEY}", "Accept": "text/csv"},
        "options": [{"endpoint": "s3://${ID}:${PASSWORD}@bucket", "secret": "s", "level": 3}],
    }
    assert _without_passwords({"label": "y", "source": source}) == {
        "label": "y",
        "source": {
            "kind": "http",
            "uri": "https://${HOST}/x",
            "headers": {"X-Api-Key": "${KEY}", "Accept": "text/csv"},
            "options": [{"endpoint": "s3://${ID}:${PASSWORD}@bucket", "level": 3}],
        },
    }
