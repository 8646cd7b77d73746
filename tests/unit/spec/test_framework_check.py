"""``train.framework``: what it refuses, and that neither framework loads the other."""

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_ray.core import settings
from lepton_ray.spec.framework_check import check_framework
from lepton_ray.spec.model import CnnModel, FusionModel, LoraSpec, MlpModel, PretrainedModel, TrainSpec
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
        ({"train": {"framework": "tensorflow"}}, "Input should be 'torch', 'keras' or 'jax'"),
        ({"train": {"framework": "keras"}, "export": {"also": ["onnx"]}}, "Input should be 'saved_model' or 'litert'"),
        ({"train": {"framework": "keras"}, "export": {"also": ["litert", "litert"]}}, "also must name each file once"),
    ],
)
def test_what_cannot_be_done_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _spec(**sections)


_BACKBONE = PretrainedModel(kind="pretrained", backbone="somewhere")
_LORA = PretrainedModel(kind="pretrained", backbone="somewhere", lora=LoraSpec())


def test_what_keras_does_not_learn_of_a_backbone_is_refused() -> None:
    model = FusionModel(kind="fusion", encoders={"pixels": _LORA, "features": MlpModel(kind="mlp")})
    assert check_framework(_BACKBONE, TrainSpec(framework="keras"), ExportSpec()) == []
    for place, given in (("model", _LORA), ("model.encoders.pixels", model)):
        (problem,) = check_framework(given, TrainSpec(framework="keras"), ExportSpec())
        assert problem.startswith(f"{place}.lora must be left out for train.framework 'keras', got it. Remove it")


@pytest.mark.parametrize("framework", ["keras", "jax"])
def test_what_torch_alone_shares_among_workers_is_refused(framework: Any) -> None:
    train = TrainSpec(framework=framework, parallelism="fsdp", num_workers=2)
    (problem,) = check_framework(MlpModel(kind="mlp"), train, ExportSpec())
    assert problem.startswith(f"train.parallelism must be left out for train.framework {framework!r}, got 'fsdp'")


def test_jax_takes_what_keras_takes_and_devices_beside() -> None:
    for device in ({"use_gpu": True}, {"use_tpu": True, **_SLICE}, {}):
        _spec(train={"framework": "jax", "num_workers": 4, **device}, export={"also": ["litert"]})
    (problem,) = check_framework(_BACKBONE, TrainSpec(framework="jax"), ExportSpec())
    assert problem.startswith("model.kind must not be 'pretrained' for train.framework 'jax', got it. Use another")


_SLICE = {"tpu_type": "TPU-V6E", "tpu_topology": "4x4"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"use_tpu": True, **_SLICE, "framework": "keras"},
            "use_tpu must be false for train.framework 'keras', got true",
        ),
        ({"use_tpu": True, **_SLICE, "use_gpu": True}, "use_gpu must be false with use_tpu, got true"),
        ({"use_tpu": True, "tpu_type": "TPU-V6E"}, "tpu_topology must be given with use_tpu"),
        ({"use_tpu": True, "tpu_topology": "4x4"}, "tpu_type must be given with use_tpu"),
        (_SLICE, "tpu_type and tpu_topology must be left out without use_tpu"),
        ({"use_tpu": True, "tpu_type": "TPU-V6E", "tpu_topology": "16"}, "String should match pattern"),
        ({"use_tpu": True, "tpu_type": "v6e", "tpu_topology": "4x4"}, "Input should be 'TPU-V2'"),
        (
            {"use_tpu": True, "tpu_type": "TPU-V4", "tpu_topology": "1x1x1"},
            "must hold whole hosts of 4 chips, got 1x1x1 with 1",
        ),
        (
            {"use_tpu": True, **_SLICE, "num_workers": 6},
            "num_workers must be a multiple of the 4 hosts of a TPU-V6E slice of 4x4, got 6: Ray .* Use 8",
        ),
        ({"use_tpu": True, **_SLICE, "min_workers": 2}, "min_workers must be a multiple of the 4 hosts .* got 2"),
    ],
)
def test_slices_that_ray_would_not_reserve_are_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _spec(train={"framework": "jax", "num_workers": 8, "global_batch_size": 48, **train})


def test_a_search_in_one_process_is_refused_for_tpus_alone() -> None:
    space = {"train.lr": {"kind": "choice", "values": [0.1, 0.2]}}
    slices = {"framework": "jax", "use_tpu": True, **_SLICE, "num_workers": 4}
    with pytest.raises(ValidationError, match=r"tune.workers_per_trial must be at least 2 for train.use_tpu"):
        _spec(train=slices, tune={"space": space})
    assert _spec(train={"framework": "jax"}, tune={"space": space}).tune is not None
    assert _spec(train=slices, tune={"space": space, "workers_per_trial": 4}).tune is not None


_TRAINED = """
import sys
from functools import partial
import numpy as np
from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.train.rows import TrainData
from lepton_ray.train.frameworks import load_training

framework = sys.argv[1]
x, y = np.ones((4, 3), np.float32), np.arange(4) % 2
spec = TrainSpec(framework=framework, epochs=1)
loop, checkpoint = load_training(framework)
state = loop.start_state(partial(build_model, MlpModel(kind="mlp"), [ModelInput(name="x", shape=(3,))], 2, framework), spec, 0)
next(loop.train_epochs(state, TrainData({"x": x}, y, {"x": x}, y), spec, 0))
print([name for name in ("torch", "tensorflow", "keras") if name in sys.modules])
"""


@pytest.mark.slow_but("torch-loaded0")
@pytest.mark.parametrize(
    ("framework", "loaded"), [("torch", ["torch"]), ("keras", ["tensorflow", "keras"]), ("jax", ["keras"])]
)
def test_training_loads_its_own_framework_alone_and_prints_nothing(framework: str, loaded: list[str]) -> None:
    environment = {**os.environ, **(settings.jax_environment("cpu") if framework == "jax" else {})}
    command = [sys.executable, "-c", _TRAINED, framework]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{loaded}\n"
    assert done.stderr == ""
