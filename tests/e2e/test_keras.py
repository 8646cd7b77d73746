"""The specs of jobs/specs in Keras instead of PyTorch: the same gates, and a killed worker."""

import json

import onnxruntime as ort
import pytest

from .conftest import REPOSITORY, Workplace
from .test_kill import assert_same, prepare, wait_for_epoch

DIGITS = str(REPOSITORY / "jobs/specs/handwritten_digits.yaml")
MEDICAL = str(REPOSITORY / "jobs/specs/medical_diagnosis.yaml")
KERAS = ("--set", "train.framework=keras")


@pytest.mark.slow
def test_handwritten_digits_meets_its_gate_and_is_served(workplace: Workplace) -> None:
    """The gate is below what five seeds gave on the 269 held-out rows: 0.959 to 0.985 in Keras, 0.959 to 0.978 in torch (both 0.9725
    in the mean). The spec's own gate, 0.97, lies within that spread."""
    changes = ("serve.port=0", "export.also=[saved_model, litert]", "evaluate.gates.accuracy.min=0.95")
    settings = [item for change in changes for item in ("--set", change)]
    stages = workplace.run_json("run", DIGITS, *KERAS, *settings)["stages"]
    assert stages["evaluate"]["metrics"]["accuracy"] >= 0.95
    assert stages["train"]["num_workers"] == 2
    assert stages["deploy"]["parity"] <= 1e-5
    assert set(stages["export"]["parity"]) == {"saved_model", "litert", "package", "http"}
    package = workplace.folder / stages["export"]["folder"] / "package"
    assert (package / "saved_model/saved_model.pb").is_file()
    assert (package / "model.tflite").is_file()
    prepare_outputs = ort.InferenceSession(package / "prepare.onnx").get_outputs()
    assert [output.name for output in prepare_outputs] == ["features"]
    assert {"tensorflow", "keras"} <= set(json.loads((package / "lineage.json").read_text())["versions"])


@pytest.mark.slow
def test_medical_diagnosis_searches_trains_and_meets_its_gates(workplace: Workplace) -> None:
    changes = ("--set", "tune.num_trials=2", "--set", "train.num_workers=1", "--set", "serve=null")
    stages = workplace.run_json("run", MEDICAL, *KERAS, *changes)["stages"]
    assert stages["tune"]["num_trials"] == 2
    assert stages["evaluate"]["metrics"]["accuracy"] >= 0.95


@pytest.mark.slow
def test_killed_worker_is_replaced(workplace: Workplace, shared_workplace: Workplace) -> None:
    prepare(shared_workplace)
    undisturbed = shared_workplace.run_json("run", "spec.yaml", *KERAS)["stages"]
    prepare(workplace)
    driver = workplace.start("run", "spec.yaml", *KERAS, "--json")
    wait_for_epoch(workplace, 2)
    workers = workplace.workers()
    assert len(workers) == 2
    workplace.kill(workers[0])
    output, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, output + errors
    assert_same(json.loads(output)["stages"], undisturbed)
