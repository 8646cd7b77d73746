"""Small packages made without torch, shared by the tests of artifacts, serving and the command line."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import seal
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.files import write_json
from lepton_ray.features.categories import CategoryState
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.graph_builder import IR_VERSION, OPSET, OPSET_ML
from lepton_ray.features.images import ImageState
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.state import FEATURES, FeatureState
from lepton_ray.spec.data import DataSpec
from tests.browser import Browser, open_browser

_MIXED = {
    "source": {"kind": "csv", "uri": "a.csv"},
    "label": "outcome",
    "columns": {
        "record": "ignored",
        "age": {"kind": "number", "min": 0, "max": 120, "required": True},
        "colour": "category",
        "income": "number",
        "size": {"kind": "category", "allowed": ["S", "M", "L"], "required": True},
        "outcome": "category",
    },
}
_PICTURES = {
    "source": {"kind": "image_folder", "uri": "pictures"},
    "label": "shape",
    "columns": {"picture": {"kind": "image", "height": 2, "width": 3, "channels": 1}, "shape": "category"},
}
_MIXED_STATE = FeatureState(
    numbers={
        "age": NumberState(impute=40.0, offset=40.0, scale=20.0),
        "income": NumberState(impute=1000.0, offset=1200.0, scale=400.0),
    },
    categories={
        "colour": CategoryState(vocabulary=("red", "blue"), missing_index=2),
        "size": CategoryState(vocabulary=("M", "S", "L"), missing_index=0),
    },
)
# rows: age, income, colour red blue missing, size M S L; columns: classes
WEIGHTS = np.array(
    [[1, -1, 0], [0.5, 0, -1], [2, 0, 0], [0, 2, 0], [0, 0, 2], [0.1, 0.2, 0.3], [0, 0.4, -0.4], [-0.3, 0, 0.6]],
    np.float32,
)
_GOLDEN = [
    {"age": 40.0, "income": 1200.0, "colour": "red", "size": "M"},
    {"age": 60.0, "income": None, "colour": None, "size": "L"},
]


def _add_model(prepare: onnx.ModelProto, weights: NDArray[np.float32], classes: Sequence[str]) -> bytes:
    """Put Flatten, Gemm, Softmax and the label behind the graph that prepares the input."""
    graph = prepare.graph
    graph.node.extend(
        [
            helper.make_node("Flatten", [FEATURES], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1, keepdims=0),
            helper.make_node(
                "LabelEncoder",
                ["index"],
                ["label"],
                domain="ai.onnx.ml",
                keys_int64s=list(range(len(classes))),
                values_strings=list(classes),
            ),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(classes)]),
    ]
    whole = helper.make_graph(graph.node, "model", graph.input, outputs, graph.initializer)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    model = helper.make_model(whole, ir_version=IR_VERSION, opset_imports=opsets)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _write_package(
    folder: Path,
    data: dict[str, Any],
    state: FeatureState,
    weights: NDArray[np.float32],
    classes: Sequence[str],
    golden: list[dict[str, Any]],
    outputs: dict[str, Any],
) -> Path:
    spec = DataSpec.model_validate(data)
    signature = Signature.of(spec, Target(task="classification", classes=tuple(classes)))
    folder.mkdir()
    graph = compile_graph(signature, state)
    (folder / "model.onnx").write_bytes(_add_model(graph, weights, classes))
    (folder / "signature.json").write_text(signature.model_dump_json(indent=2))
    write_json(folder / "golden_records.json", {"records": golden})
    write_json(folder / "golden_outputs.json", outputs)
    write_json(folder / "reference.json", {"rows": 9, "features": {}})
    write_json(folder / "metrics.json", {"val_loss": 0.5, "val_accuracy": 0.75})
    write_json(folder / "lineage.json", {"name": folder.name, "spec": {"data": spec.model_dump(mode="json")}})
    (folder / "MODEL_CARD.md").write_text("# card\n")
    seal(folder)
    return folder


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def expected_probabilities(records: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """What the mixed package must answer, in plain NumPy; columns are the classes no, maybe, yes."""
    rows = []
    for record in records:
        colour, size = record.get("colour"), record["size"]
        income = record.get("income")
        row = [(record["age"] - 40) / 20, ((1000 if income is None else income) - 1200) / 400]
        row += [colour == "red", colour == "blue", colour is None]
        rows.append([*row, size == "M", size == "S", size == "L"])
    return _softmax(np.array(rows, float) @ WEIGHTS.astype(float))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests: each loads its own page."""
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def _sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    classes = ("no", "maybe", "yes")
    probabilities = expected_probabilities(_GOLDEN)
    outputs = {"label": [classes[i] for i in probabilities.argmax(1)], "probabilities": probabilities.tolist()}
    _write_package(folder / "mixed", _MIXED, _MIXED_STATE, WEIGHTS, classes, _GOLDEN, outputs)
    rival = {"label": [classes[i] for i in probabilities.argmin(1)], "probabilities": probabilities[:, ::-1].tolist()}
    _write_package(folder / "rival", _MIXED, _MIXED_STATE, -WEIGHTS, classes, _GOLDEN, rival)
    weights = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    picture = {"picture": [[[255], [0], [255]], [[0], [255], [0]]]}
    outputs = {"label": ["odd"], "probabilities": _softmax(np.array([[3.0, 0.0]])).tolist()}
    empty = FeatureState(images={"picture": ImageState(shape=(2, 3, 1), factor=1 / 255)})
    _write_package(folder / "pictures", _PICTURES, empty, weights, ("odd", "even"), [picture], outputs)
    return folder


@pytest.fixture
def mixed_package(_sealed: Path, tmp_path: Path) -> Path:
    """A package of its own: numbers age (0 to 120, required) and income, categories colour and size, three classes."""
    return Path(shutil.copytree(_sealed / "mixed", tmp_path / "mixed"))


@pytest.fixture
def rival_package(_sealed: Path, tmp_path: Path) -> Path:
    """The mixed package with all weights turned round."""
    return Path(shutil.copytree(_sealed / "rival", tmp_path / "rival"))


@pytest.fixture
def picture_package(_sealed: Path, tmp_path: Path) -> Path:
    """A package of its own: pictures of 2x3 grey pixels; the logits are the sums of the even and odd pixels / 255."""
    return Path(shutil.copytree(_sealed / "pictures", tmp_path / "pictures"))


@pytest.fixture(name="expected_probabilities")
def _expected_probabilities() -> Any:
    return expected_probabilities


class AppClient:
    """Calls an ASGI application in this process; an exception that leaves it is seen as the answer it gave before."""

    def __init__(self, app: Any) -> None:
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and wait for its answer."""

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str) -> httpx.Response:
        """GET."""
        return self.request("GET", path)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, **options)


@pytest.fixture(scope="session")
def call_app() -> type[AppClient]:
    """The client's class: ``call_app(app).get(path)``."""
    return AppClient
