"""Workers that Ray Data feeds take the steps that this process takes on the same files."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import ray

from lepton_ray.core.errors import DataError, EngineError
from lepton_ray.spec.model import TrainSpec
from tests.numerics.streamed_case import row_numbers, streamed

from .test_train import build, make_data, weights_of


def streamed_data(**settings: Any) -> Any:
    return streamed(make_data(), group_size=7, groups_per_window=4, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("augment", [None, {"mixup_alpha": 0.4, "balance": "weights"}])
def test_two_workers_take_the_steps_that_one_takes(cluster: None, tmp_path: Path, framework: Any, augment: Any) -> None:
    """The last batch has 22 of 32 rows; sums in float32 depend on their order."""
    from lepton_ray.train import in_process, on_ray

    step = {"epochs": 2, "global_batch_size": 32, "lr": 1e-2, "augment": augment}
    spec = TrainSpec.model_validate({"framework": framework, "num_workers": 2, **step})
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    build_it = partial(build, framework)
    two = on_ray.fit(build_it, streamed_data(leg_steps=2), spec, 5, storage, lambda text: None)
    one = in_process.fit(build_it, streamed_data(leg_steps=2), spec, 5, tmp_path / "alone", lambda text: None)
    for name, weights in weights_of(one.model).items():
        np.testing.assert_allclose(weights_of(two.model)[name], weights, atol=1e-4)
    for mine, theirs in zip(two.history, one.history, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_ray_data_gives_rows_in_their_order_where_workers_hold_all_processors(cluster: None) -> None:
    from lepton_ray.train.rows import Cut
    from lepton_ray.train.streamed.on_ray import read_ahead
    from lepton_ray.train.streamed.reading import Pass

    def take_all() -> Any:
        stored = streamed(row_numbers(100), group_size=3).train
        for rank in (0, 1):
            here, there = (
                [
                    batch.labels(cut.places(batch.num_rows)).tolist()
                    for batch in Pass(stored, 12, (5, 1), cut).batches(read)
                ]
                for cut, read in (
                    (Cut(8, rank, 2), partial(read_ahead, 1 << 20)),
                    (Cut(8, rank, 2), streamed_data().read_ahead),
                )
            )
            assert here == there
        return here

    class Worker:
        """An actor: a task gives its processors back while it waits."""

        def take_all(self) -> Any:
            return take_all()

    worker = ray.remote(Worker).options(num_cpus=4).remote()
    assert len(ray.get(worker.take_all.remote(), timeout=100)) == 13
    ray.kill(worker)


def no_rows(window: Any) -> Any:
    raise DataError("rows must be there, got none. Look for them")


def test_what_a_reader_says_is_said(cluster: None) -> None:
    from lepton_ray.train.streamed.on_ray import read_ahead
    from lepton_ray.train.streamed.order import Window

    with pytest.raises(EngineError, match=r"a Ray Data task failed: .*rows must be there"):
        list(read_ahead(1 << 20, no_rows, [Window(0, (0,), 0, 1)]))
