"""``train.framework``: what it refuses, and that neither framework loads the other."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_ray.spec.framework_check import check_framework
from lepton_ray.spec.model import CnnModel, FactorizationModel, FusionModel, MlpModel, TrainSpec
from lepton_ray.spec.release import ExportSpec
from lepton_ray.spec.run import RunSpec


def _spec(**sections: Any) -> RunSpec:
    data = {"source": {"kind": "csv", "uri": "a"}, "label": "y", "columns": {"a": "number", "y": "category"}}
    return RunSpec.model_validate({"name": "n", "data": data, "model": {"kind": "mlp"}, **sections})


def test_keras_takes_what_torch_takes() -> None:
    assert _spec().train.framework == "torch"
    augment = {"table": {"noise_std": 0.1}, "mixup_alpha": 0.2, "balance": "weights"}
    spec = _spec(
        train={"framework": "keras", "num_workers": 2, "optimizer": "sgd", "augment": augment},
        export={"also": ["saved_model", "litert"]},
        tune={"space": {"train.optimizer": {"kind": "choice", "values": ["adam", "adamw"]}}},
    )
    assert spec.export.also == ("saved_model", "litert")
    step = {"average_decay": 0.9, "precision": "bfloat16", "max_rows_per_pass": 8}
    train = TrainSpec.model_validate({"framework": "keras", **step})
    for model in (CnnModel(kind="cnn"), None):
        assert check_framework(model, train, ExportSpec()) == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"framework": "keras", "use_gpu": True}},
            r"train.use_gpu must be false for train.framework 'keras'",
        ),
        ({"export": {"also": ["litert"]}}, r"export.also must be empty for train.framework 'torch', got 'litert'"),
        ({"train": {"framework": "jax"}}, "Input should be 'torch' or 'keras'"),
        ({"train": {"framework": "keras"}, "export": {"also": ["onnx"]}}, "Input should be 'saved_model' or 'litert'"),
        ({"train": {"framework": "keras"}, "export": {"also": ["litert", "litert"]}}, "also must name each file once"),
    ],
)
def test_what_cannot_be_done_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _spec(**sections)


def test_a_family_that_keras_lacks_is_refused() -> None:
    lacking = FactorizationModel(kind="factorization")
    model = FusionModel(kind="fusion", encoders={"ids": lacking, "features": MlpModel(kind="mlp")})
    for place, given in (("model", lacking), ("model.encoders.ids", model)):
        (problem,) = check_framework(given, TrainSpec(framework="keras"), ExportSpec())
        assert problem.startswith(f"{place}.kind must be one that Keras has (not factorization, ")
        assert "got 'factorization'" in problem


def test_what_torch_alone_shares_among_workers_is_refused() -> None:
    train = TrainSpec(framework="keras", parallelism="fsdp", num_workers=2)
    (problem,) = check_framework(MlpModel(kind="mlp"), train, ExportSpec())
    assert problem.startswith("train.parallelism must be left out for train.framework 'keras', got 'fsdp'")


_TRAINED = """
import sys
from functools import partial
import numpy as np
from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.train.batches import TrainData
from lepton_ray.train.frameworks import load_training

framework = sys.argv[1]
x, y = np.ones((4, 3), np.float32), np.arange(4) % 2
spec = TrainSpec(framework=framework, epochs=1)
loop, checkpoint = load_training(framework)
state = loop.start_state(partial(build_model, MlpModel(kind="mlp"), [ModelInput(name="x", shape=(3,))], 2, framework), spec, 0)
next(loop.train_epochs(state, TrainData({"x": x}, y, {"x": x}, y), spec, 0))
print([name for name in ("torch", "tensorflow", "keras") if name in sys.modules])
"""


@pytest.mark.parametrize(("framework", "loaded"), [("torch", ["torch"]), ("keras", ["tensorflow", "keras"])])
def test_training_loads_its_own_framework_alone_and_prints_nothing(framework: str, loaded: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _TRAINED, framework], capture_output=True, text=True, check=True)
    assert done.stdout == f"{loaded}\n"
    assert done.stderr == ""
