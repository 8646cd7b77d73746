"""What is lost while workers train: the controller, the disk, a machine. The rerun comes to the losses of one undisturbed process."""

import errno
import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from lepton_ray.core.errors import EngineError
from lepton_ray.spec.model import TrainSpec

from .conftest import processes_named
from .test_train import build, make_data
from .two_nodes import TwoNodes, run_on_two_nodes

EPOCHS = 8


def spec_of(**settings: Any) -> TrainSpec:
    return TrainSpec.model_validate({"num_workers": 2, "epochs": EPOCHS, "global_batch_size": 8, "lr": 1e-3} | settings)


def long_data() -> Any:
    """6000 rows: in batches of 8 some epochs take longer than the second between two reports."""
    data = make_data(200)
    return replace(data, x_train={"x": np.tile(data.x_train["x"], (40, 1))}, y_train=np.tile(data.y_train, 40))


def losses(history: list[dict[str, float]]) -> Any:
    """Sums in float32 depend on their order: 1e-4 is rounding, a step left out or taken twice is more."""
    return pytest.approx([epoch["val_loss"] for epoch in history], abs=1e-4)


def alone(folder: Path, **settings: Any) -> Any:
    from lepton_ray.train import in_process

    spec = spec_of(num_workers=1, **settings)
    return losses(in_process.fit(build, long_data(), spec, 5, folder / "alone", lambda text: None).history)


@pytest.mark.slow
def test_a_killed_controller_is_started_again(cluster: None, tmp_path: Path) -> None:
    from lepton_ray.train import on_ray

    heard: list[str] = []

    def kill_it_once(text: str) -> None:
        if not heard:
            (controller,) = processes_named("TrainController")
            os.kill(controller, signal.SIGKILL)
        heard.append(text)

    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    state = on_ray.fit(build, long_data(), spec_of(), 5, storage, kill_it_once)
    assert "Ray Train's controller died: starting it again" in heard
    assert [epoch["val_loss"] for epoch in state.history] == alone(tmp_path)


class FullDisk(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Room for one optimizer's state while the file ``full`` is there; other files of a second checkpoint are written."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        name, full = "optimizer.safetensors", Path(self.storage_options["full"])
        is_second = any(Path(path).parent.parent.glob(f"*/{name}"))
        if "w" in mode and path.endswith(name) and full.exists() and is_second:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super()._open(path, mode, **options)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_full_disk_is_said_and_costs_nothing_that_was_written(cluster: None, tmp_path: Path, framework: str) -> None:
    from lepton_ray.train import on_ray

    full = tmp_path / "full"
    full.touch()
    files = pafs.PyFileSystem(pafs.FSSpecHandler(FullDisk(full=str(full))))
    storage = on_ray.Storage(files, str(tmp_path / "ray"))
    fit = partial(on_ray.fit, partial(build, framework), long_data())
    with pytest.raises(EngineError, match="No space left on device"):
        fit(spec_of(framework=framework, max_failures=0), 5, storage, lambda text: None)
    (written,) = (tmp_path / "ray" / "train").glob("*/optimizer.safetensors")
    before = json.loads((written.parent / "state.json").read_text())["history"]
    full.unlink()
    state = fit(spec_of(framework=framework), 5, storage, lambda text: None)
    whole = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "whole"))
    undisturbed = fit(spec_of(framework=framework), 5, whole, lambda text: None)
    assert state.history == undisturbed.history
    assert state.history[: len(before)] == before


def train_and_lose(nodes: TwoNodes, folder: str, how: str) -> list[float]:
    """Train on both nodes and lose one after the first report."""
    from lepton_ray.train import on_ray

    heard: list[str] = []

    def lose(text: str) -> None:
        if not heard:
            getattr(nodes, how)()
        heard.append(text)

    storage = on_ray.Storage(pafs.LocalFileSystem(), folder)
    spec = spec_of(cpus_per_worker=2.0, min_workers=1, epochs=20)
    state = on_ray.fit(build, long_data(), spec, 5, storage, lose)
    return [epoch["val_loss"] for epoch in state.history]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lose", "give_notice"])
def test_a_lost_machine_leaves_fewer_workers_and_the_same_steps(tmp_path: Path, how: str) -> None:
    history = run_on_two_nodes(train_and_lose, str(tmp_path / "ray"), how)
    assert history == alone(tmp_path, epochs=20)


def build_counted(folder: Path) -> Any:
    (folder / str(os.getpid())).touch()
    return build()


@pytest.mark.slow
def test_training_starts_with_the_workers_that_there_is_room_for(cluster: None, tmp_path: Path) -> None:
    """Three workers of two CPUs on four: two start, and share each batch of 32 rows, and the last of 22, as one would have taken them."""
    from lepton_ray.train import in_process, on_ray

    spec = TrainSpec(num_workers=3, min_workers=1, cpus_per_worker=2.0, epochs=3, global_batch_size=32, lr=1e-2)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    builders = tmp_path / "builders"
    builders.mkdir()
    state = on_ray.fit(partial(build_counted, builders), make_data(), spec, 5, storage, lambda text: None)
    assert len(list(builders.iterdir())) == 1 + 2, "this process and two workers"
    undisturbed = in_process.fit(build, make_data(), spec, 5, tmp_path / "alone", lambda text: None)
    assert [epoch["val_loss"] for epoch in state.history] == losses(undisturbed.history)
