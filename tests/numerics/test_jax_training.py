"""The loop of Keras on JAX: what Keras on TensorFlow gives, many devices equal one, resumed equals undisturbed.

JAX and TensorFlow run in processes of their own, which give each other checkpoints. Tolerances: float32 sums in another order
differ by some 1e-7 a step, of 12; bfloat16 rounds to 4e-3 of a number.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lepton_ray.core import settings
from lepton_ray.engine.session import free_port
from lepton_ray.train import keras_checkpoint, keras_loop

from . import jax_case
from .jax_case import CASES, SEED, SHARED

pytest.importorskip("jax", reason="the extra 'jax' is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a program is compiled for each case
_REPOSITORY = Path(__file__).parents[2]
_TOLERANCE = {"bfloat16": 5e-3}
_TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def _start(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.numerics.jax_case", *arguments]
    return subprocess.Popen(
        command, cwd=_REPOSITORY, env={**os.environ, **settings.jax_environment("cpu"), **environment}
    )


def _finish(*workers: subprocess.Popen[bytes]) -> None:
    try:
        assert [worker.wait(timeout=600) for worker in workers] == [0] * len(workers)
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of all cases: their start, TensorFlow's and JAX's."""
    folder = tmp_path_factory.mktemp("jax")
    for name, case in CASES.items():
        (folder / "start" / name).mkdir(parents=True)
        keras_checkpoint.save(keras_loop.start_state(case.build, case.spec(), SEED), folder / "start" / name)
    worker = _start(str(folder), "one")
    for name in CASES:
        jax_case.train(keras_loop, folder, "tensorflow", name)
    _finish(worker)
    return folder


def _assert_close(mine: Path, theirs: Path, tolerance: float) -> None:
    histories = [json.loads((place / "state.json").read_text())["history"] for place in (mine, theirs)]
    assert len(histories[0]) == 3
    for got, wanted in zip(*histories, strict=True):
        losses = [name for name in wanted if name.endswith("loss")]
        assert [got[name] for name in losses] == pytest.approx([wanted[name] for name in losses], abs=tolerance)
        assert got == pytest.approx(wanted, abs=max(tolerance, 0.15 if tolerance > 1e-3 else 0))
    for name in ("model", "best", "average", "optimizer"):
        if (theirs / f"{name}.safetensors").is_file():
            got, wanted = (load_file(place / f"{name}.safetensors") for place in (mine, theirs))
            assert got.keys() == wanted.keys()
            for path, value in wanted.items():
                np.testing.assert_allclose(got[path], value, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("name", CASES)
def test_from_equal_weights_jax_trains_to_what_tensorflow_does(folder: Path, name: str) -> None:
    _assert_close(folder / "one" / name, folder / "tensorflow" / name, _TOLERANCE.get(name, 5e-6))
    start, end = (load_file(folder / run / name / "model.safetensors") for run in ("start", "one"))
    assert max(np.abs(end[path] - value).max() for path, value in start.items()) > 1e-2


def test_resumed_after_each_epoch_is_equal_to_the_bit(folder: Path) -> None:
    for file in sorted((folder / "undisturbed").iterdir()):
        assert (folder / "resumed" / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(list((folder / "resumed").iterdir())) == 5


def test_two_processes_and_two_devices_take_the_steps_of_one(folder: Path) -> None:
    """The second has no row of the last batch, and its share of the rows is filled up."""
    address = f"127.0.0.1:{free_port()}"
    _finish(*(_start(str(folder), "two", address, str(rank)) for rank in range(2)))
    _finish(_start(str(folder), "devices", **_TWO_DEVICES))
    for name in SHARED:
        for run in ("two", "devices"):
            _assert_close(folder / run / name, folder / "one" / name, _TOLERANCE.get(name, 5e-6))
