"""``train.framework``: what it refuses, and that neither framework loads the other."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_ray.spec.framework_check import check_framework
from lepton_ray.spec.model import TrainSpec
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
    assert check_framework(TrainSpec.model_validate({"framework": "keras", **step}), ExportSpec(), spec.data) == []


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


def test_a_number_as_label_is_refused() -> None:
    data = {"source": {"kind": "csv", "uri": "a"}, "label": "a", "columns": {"a": "number", "y": "category"}}
    with pytest.raises(ValidationError, match=r"data\.label must be a category for train\.framework 'keras'"):
        _spec(data=data, train={"framework": "keras"})


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
