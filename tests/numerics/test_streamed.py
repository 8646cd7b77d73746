"""Rows that stay in files: each once in an epoch, in an order that workers and restarts do not change, in bounded memory."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import SpecError
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.model import AutoencoderModel, CnnModel, MlpModel, TrainSpec
from lepton_ray.train import in_process, rows
from lepton_ray.train.batches import Batches, validation_shares
from lepton_ray.train.frameworks import load_training
from lepton_ray.train.rows import Cut, Source, TrainData
from lepton_ray.train.streamed import data as streamed_data
from lepton_ray.train.streamed.order import row_order, windows_of
from lepton_ray.train.streamed.reading import Pass

from .augment_case import data_of, spec_of
from .keras_case import FRAMEWORKS, NUM_CLASSES, inputs_of
from .streamed_case import row_numbers, store, streamed
from .training_case import Threads

_SEED = 5
_AUGMENT = {"table": {"noise_std": 0.3, "noise_fraction": 0.8}, "mixup_alpha": 0.4, "balance": "weights"}
_REPOSITORY = Path(__file__).parents[2]
_KERAS_SLOW = ["torch", pytest.param("keras", marks=pytest.mark.slow)]


pytestmark = pytest.mark.usefixtures("one_thread")


_GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple)


@given(_GROUPS, st.integers(1, 30), st.integers(1, 20), st.integers(1, 6), st.booleans(), st.data())
@settings(deadline=None)
def test_workers_take_each_row_of_an_epoch_once_whatever_the_sizes(
    groups: tuple[int, ...], window: int, size: int, world_size: int, is_shuffled: bool, data: Any
) -> None:
    """The workers' rows of a batch are the batch; begun at any batch, it goes on as if it had been read from the start."""
    numbers = row_numbers(sum(groups))
    stored = store(numbers.x_train, numbers.y_train, groups)
    draw = (_SEED, 1) if is_shuffled else None
    first = data.draw(st.integers(0, -(-sum(groups) // size)))

    def batches(**cut: Any) -> list[tuple[int, list[int]]]:
        found = []
        for batch in Pass(stored, window, draw, Cut(size, **cut)).batches(streamed_data.in_process.read_ahead):
            places = Cut(size, **cut).places(batch.num_rows)
            is_idle = Cut(size, **cut).is_idle(batch.num_rows)
            x, y = batch.take(places)["x"], batch.labels(places)
            assert (x[:, 0] == y).all()
            assert (x[:, 1] == -y).all()
            found.append((batch.start, [] if is_idle else y.tolist()))
        return found

    alone = batches()
    assert [len(rows) for _, rows in alone] == [
        min(size, len(numbers.y_train) - start) for start in range(0, sum(groups), size)
    ]
    assert sorted(row for _, rows in alone for row in rows) == numbers.y_train.tolist()
    if not is_shuffled:
        assert [row for _, rows in alone for row in rows] == numbers.y_train.tolist()
    for is_whole in (False, True):
        assert batches(is_whole=is_whole, first=first) == alone[first:]
        shares = [batches(rank=rank, world_size=world_size, is_whole=is_whole) for rank in range(world_size)]
        for (start, whole), *others in zip(alone, *shares, strict=True):
            assert {start} == {other_start for other_start, _ in others}
            assert [part for _, part in others] == [whole[rank::world_size] for rank in range(world_size)]


@given(_GROUPS, st.integers(1, 30), st.integers(0, 5), st.integers(0, 5))
def test_windows_hold_each_group_once_and_no_more_than_they_may(
    groups: tuple[int, ...], most: int, seed: int, epoch: int
) -> None:
    windows = windows_of(groups, most, (seed, epoch))
    assert sorted(group for window in windows for group in window.groups) == list(range(len(groups)))
    for window in windows:
        assert window.num_rows == sum(groups[group] for group in window.groups)
        assert window.num_rows <= most or len(window.groups) == 1
        assert sorted(row_order(window, (seed, epoch)).tolist()) == list(range(window.num_rows))
    starts = np.cumsum([0, *(window.num_rows for window in windows)])
    assert [window.start for window in windows] == starts[:-1].tolist()


def _order(data: Source, seed: int, epoch: int, size: int = 16) -> list[int]:
    shares = Batches(data, None, size, seed).shares(epoch, 0, 1)
    return [row for share in shares for row in share.y.tolist()]


def test_the_order_is_one_of_seed_and_epoch_and_mixes_groups() -> None:
    data = streamed(row_numbers(400), group_size=10, groups_per_window=8)
    order = _order(data, _SEED, 0)
    assert order == _order(data, _SEED, 0, size=7)
    assert len({tuple(_order(data, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    first_window = order[:80]
    assert len({row // 10 for row in first_window}) == 8
    assert len({row // 10 for row in order[:16]}) > 4, "a batch is not a group"
    assert first_window != sorted(first_window)
    positions = np.argsort(order)
    assert abs(np.corrcoef(positions, np.arange(400))[0, 1]) < 0.35, "nor are the groups in their order"


def test_another_window_has_another_order_of_rows() -> None:
    windows = windows_of((8, 8, 8), 8, (_SEED, 0))
    assert len({tuple(row_order(window, (_SEED, 0))) for window in windows}) == 3


@pytest.mark.parametrize("kind", ["image", "tokens", "table"])
def test_what_is_known_of_all_rows_is_what_memory_says(kind: str) -> None:
    data = data_of(kind, rows=37, num_classes=4)
    from_files = streamed(data)
    assert from_files.class_counts().tolist() == data.class_counts().tolist()
    assert (from_files.num_rows, from_files.num_val_rows) == (37, 5)
    if kind == "image":
        for mine, theirs in zip(from_files.colour_bounds("x"), data.colour_bounds("x"), strict=True):
            assert np.array_equal(mine, theirs)
    if kind == "table":
        assert np.array_equal(from_files.spread_rows("x"), data.spread_rows("x"))


@pytest.mark.parametrize("num_rows", [5, 37])
def test_rows_spread_over_many_groups_are_those_of_memory(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_SCALE_ROWS", 5)
    data = row_numbers(num_rows)
    assert np.array_equal(streamed(data).spread_rows("x"), data.spread_rows("x"))
    assert len(data.spread_rows("x")) <= 5


@pytest.mark.parametrize("kind", ["image", "tokens", "table"])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_batches_are_those_of_memory_in_the_same_order(
    kind: str, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that is varied; a row is told from others by what it is."""
    data = data_of(kind, rows=37, num_classes=4)
    from_files, numbers = streamed(data), streamed(row_numbers(37, 5))
    order = np.array(_order(numbers, _SEED, 2))
    monkeypatch.setattr(rows, "epoch_order", lambda *_: order)
    for augment in (spec_of(kind), spec_of(kind, balance="weights"), spec_of(kind, 0.0 if kind == "tokens" else 0.4)):
        for rank in range(world_size):
            shares = [Batches(d, augment, 8, _SEED).shares(2, rank, world_size) for d in (from_files, data)]
            for mine, theirs in zip(*shares, strict=True):
                assert (mine.is_idle, mine.batch_weight) == (theirs.is_idle, theirs.batch_weight)
                rows_of = [
                    sorted((x.tobytes(), t.tobytes()) for x, t in zip(s.x["x"], s.targets(4), strict=True))
                    for s in (mine, theirs)
                ]
                assert rows_of[0] == rows_of[1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_validation_goes_through_the_rows_as_in_memory(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_ray.train.batches._VALIDATION_ROWS", 4)
    data = row_numbers(3, 29)
    for rank in range(world_size):
        shares = zip(*(validation_shares(d, rank, world_size) for d in (streamed(data), data)), strict=True)
        for mine, theirs in shares:
            assert mine.is_idle == theirs.is_idle
            if not mine.is_idle:
                assert mine.y.tolist() == theirs.y.tolist()
                assert np.array_equal(mine.x["x"], theirs.x["x"])


def _data(num_rows: int = 33, num_val_rows: int = 7) -> TrainData:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(num_rows + num_val_rows, 3)).astype(np.float32)
    y = (x @ rng.normal(size=(3, NUM_CLASSES)) + rng.gumbel(size=(len(x), NUM_CLASSES))).argmax(1)
    return TrainData({"x": x[:num_rows]}, y[:num_rows], {"x": x[num_rows:]}, y[num_rows:])


def _spec(framework: Any = "torch", **changes: Any) -> TrainSpec:
    step = {"epochs": 3, "global_batch_size": 4, "lr": 0.05, "weight_decay": 0.01, "average_decay": 0.9}
    return TrainSpec.model_validate({"framework": framework, **step, **changes})


def _build(framework: Any, dropout: float = 0.4) -> Any:
    model = MlpModel(kind="mlp", hidden=(6,), dropout=dropout)
    return partial(build_model, model, inputs_of((3,)), NUM_CLASSES, framework)


def _weights(state: Any) -> dict[str, Any]:
    if hasattr(state.model, "state_dict"):
        return {name: value.numpy() for name, value in state.model.state_dict().items()}
    return {variable.path: variable.numpy() for variable in state.model.weights}


def _train(spec: TrainSpec, data: Source, build: Any) -> Any:
    loop = load_training(spec.framework).loop
    state = loop.start_state(build, spec, _SEED)
    for _ in loop.train_epochs(state, data, spec, _SEED):
        pass
    return state


def _assert_equal(got: Any, wanted: Any) -> None:
    assert got.history == wanted.history
    assert got.best_epoch == wanted.best_epoch
    mine, theirs = _weights(got), _weights(wanted)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert got.best_weights.keys() == wanted.best_weights.keys()
    assert all((got.best_weights[name] == wanted.best_weights[name]).all() for name in got.best_weights)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_training_takes_the_steps_that_memory_takes_in_the_same_order(
    framework: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a batch stand in another order: sums of float32 differ by some 1e-7 a step."""
    data, spec = _data(), _spec(framework, optimizer="sgd")
    got = _train(spec, streamed(data, leg_steps=2), _build(framework, dropout=0.0))
    numbers = streamed(row_numbers(33, 7), groups_per_window=3)
    orders = iter([np.array(_order(numbers, _SEED, epoch, size=4)) for epoch in range(3)])
    monkeypatch.setattr(rows, "epoch_order", lambda *_: next(orders))
    wanted = _train(spec, data, _build(framework, dropout=0.0))
    for name, value in _weights(wanted).items():
        np.testing.assert_allclose(_weights(got)[name], value, atol=1e-6)
    for mine, theirs in zip(got.history, wanted.history, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


@pytest.mark.slow_but("2-None-torch", "5-augment1-torch", "7-augment1-torch", "5-augment1-keras")
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("augment", [None, _AUGMENT])
@pytest.mark.parametrize("stop", [2, 5, 7, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 4, 12))])
def test_resumed_within_an_epoch_is_equal_to_the_bit(tmp_path: Path, framework: Any, augment: Any, stop: int) -> None:
    """9 steps in legs of 2: an epoch has 5 of them, and stops after each but the last leave it in the middle."""
    data, spec = streamed(_data(), leg_steps=2), _spec(framework, augment=augment)
    undisturbed = _train(spec, data, _build(framework))
    loop, checkpoint = load_training(framework)
    state = loop.start_state(_build(framework), spec, _SEED)
    legs = loop.train_epochs(state, data, spec, _SEED)
    for _ in range(stop):
        next(legs)
    legs.close()
    assert (state.epoch, state.step) == (stop // 5, stop % 5 * 2)
    checkpoint.save(state, tmp_path)
    torch.manual_seed(99)
    resumed = loop.start_state(_build(framework), spec, _SEED)
    checkpoint.restore(resumed, tmp_path)
    for _ in loop.train_epochs(resumed, data, spec, _SEED):
        pass
    _assert_equal(resumed, undisturbed)


@pytest.mark.parametrize("framework", _KERAS_SLOW)
@pytest.mark.parametrize("num_reads", [1, 3, 5, 6, 11])
def test_a_training_whose_storage_fails_goes_on_from_within_the_epoch(
    tmp_path: Path, framework: Any, num_reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch reads 3 windows for training and one for validation."""
    monkeypatch.setattr(in_process, "CHECKPOINT_EVERY_S", 0.0)
    data, spec = streamed(_data(), leg_steps=2), _spec(framework)
    undisturbed = in_process.fit(_build(framework), data, spec, _SEED, tmp_path / "whole", lambda text: None)
    left = [num_reads]

    def fail(read: Any, windows: Any) -> Any:
        def count(window: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("the storage is away")
            return read(window)

        return streamed_data.in_process.read_ahead(count, windows)

    failing = streamed(_data(), leg_steps=2, read_ahead=fail)
    with pytest.raises(OSError, match="away"):
        in_process.fit(_build(framework), failing, spec, _SEED, tmp_path / "work", lambda text: None)
    starts: list[int] = []

    def note(read: Any, windows: Any) -> Any:
        starts.append(windows[0].number)
        return streamed_data.in_process.read_ahead(read, windows)

    noting = streamed(_data(), leg_steps=2, read_ahead=note)
    resumed = in_process.fit(_build(framework), noting, spec, _SEED, tmp_path / "work", lambda text: None)
    _assert_equal(resumed, undisturbed)
    if num_reads == 11:
        assert starts == [2, 0], "the last window of the last epoch, and its validation"


@pytest.mark.parametrize(("world_size", "num_rows", "num_val_rows"), [(2, 34, 7), (3, 35, 2), (5, 37, 1)])
@pytest.mark.parametrize("augment", [None, _AUGMENT])
def test_many_workers_train_as_a_single_one_does(
    world_size: int, num_rows: int, num_val_rows: int, augment: Any
) -> None:
    """Whole batches or shares of them, the last with fewer rows than workers."""
    data = streamed(_data(num_rows, num_val_rows), leg_steps=3)
    spec = _spec(augment=augment, global_batch_size=6)
    build = _build("torch", dropout=0.0)
    single = _train(spec, data, build)
    states = Threads(world_size).train(spec, data, build)
    for name, value in _weights(single).items():
        for state in states:
            np.testing.assert_allclose(_weights(state)[name], value, atol=2e-5)
    for mine, theirs in zip(single.history, states[-1].history, strict=True):
        assert theirs == pytest.approx(mine, abs=2e-5)


@pytest.mark.parametrize("task", ["multi_label", "regression", "anomaly_detection"])
@pytest.mark.parametrize("framework", _KERAS_SLOW)
def test_other_tasks_train_on_a_stream(task: Any, framework: Any) -> None:
    whole = _data()
    rng = np.random.default_rng(2)
    labels = {
        "multi_label": lambda y: np.eye(3, dtype=np.float32)[y],
        "regression": lambda y: rng.normal(size=(len(y), 3)).astype(np.float32),
        "anomaly_detection": np.zeros_like,
    }[task]
    data = TrainData(whole.x_train, labels(whole.y_train), whole.x_val, labels(whole.y_val), task)
    model: Any = MlpModel(kind="mlp", hidden=(6,))
    if task == "anomaly_detection":
        model = AutoencoderModel(kind="autoencoder", hidden=(4,), code_width=2)
    num_outputs = 1 if task == "anomaly_detection" else 3
    build = partial(build_model, model, inputs_of((3,)), num_outputs, framework)
    state = _train(_spec(framework, epochs=8), streamed(data, leg_steps=2), build)
    assert state.history[-1]["train_loss"] < state.history[0]["train_loss"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_images_train_on_a_stream(framework: Any) -> None:
    data = data_of("image", rows=20, num_classes=3)
    model = CnnModel(kind="cnn", channels=(2,), hidden=4)
    augment = {"image": {"brightness": 0.3, "horizontal_flip_fraction": 0.5}}
    build = partial(build_model, model, inputs_of((3, 6, 6)), NUM_CLASSES, framework)
    state = _train(_spec(framework, augment=augment), streamed(data, leg_steps=2), build)
    assert np.isfinite(state.history[-1]["val_loss"])


@pytest.mark.parametrize("balance", ["oversample", "undersample"])
def test_rows_are_not_taken_twice_or_left_out(balance: Any) -> None:
    augment = AugmentSpec(balance=balance)
    with pytest.raises(
        SpecError, match=r"train.augment.balance must be 'weights' or left out for rows that are streamed"
    ):
        Batches(streamed(_data()), augment, 4, _SEED)
    with pytest.raises(ValueError, match=r"augment.balance must be 'weights' or left out with data 'stream'"):
        _spec(data="stream", augment={"balance": balance})


_MEASURE = """
import json, resource, sys
import numpy as np
import pyarrow.parquet as pq
from lepton_ray.train.batches import Batches, validation_shares
from lepton_ray.train.rows import TrainData
from lepton_ray.train.streamed.data import StreamedData
from lepton_ray.train.streamed.reading import StoredRows

path, groups, group_rows, window_bytes = sys.argv[1], *map(int, sys.argv[2:])


class File:
    def read(self, group):
        table = pq.ParquetFile(path).read_row_group(group, use_threads=False)
        x = np.stack([table.column(f"c{place}").to_numpy() for place in range(16)], 1)
        return {"x": x}, table.column("y").to_numpy()


stored = StoredRows(File(), (group_rows,) * groups)
x, y = File().read(0)
data = StreamedData(stored, stored, TrainData(x, y, x, y), window_bytes)
batches = Batches(data, None, 1000, 0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
for warm in batches.shares(0, 0, 1):
    if warm.y[0] >= 0:
        break
before, rows, total = peak(), 0, 0
for epoch in range(2):
    for share in batches.shares(epoch, 0, 1):
        rows += len(share.y)
        total += int(share.y.sum())
for share in validation_shares(data, 0, 1):
    rows += len(share.y)
    total += int(share.y.sum())
print(json.dumps({"rows": rows, "total": total, "growth": peak() - before}))
"""


@pytest.mark.slow
def test_memory_is_bounded_by_windows_whatever_the_rows(tmp_path: Path) -> None:
    """160 MiB of rows in windows of 8 MiB, three times: the most memory of a process of its own, as the system counts it."""
    groups, group_rows, window_bytes = 80, 29_000, 8 << 20
    num_rows = groups * group_rows
    assert num_rows * 72 > 19 * window_bytes
    schema = pa.schema([*((f"c{place}", pa.float32()) for place in range(16)), ("y", pa.int64())])
    values = np.random.default_rng(0).normal(size=group_rows).astype(np.float32)
    with pq.ParquetWriter(tmp_path / "rows.parquet", schema, compression="NONE", use_dictionary=False) as writer:
        for group in range(groups):
            y = np.arange(group * group_rows, (group + 1) * group_rows)
            writer.write_table(pa.table([*[pa.array(values)] * 16, pa.array(y)], schema=schema))
    arguments = [str(tmp_path / "rows.parquet"), str(groups), str(group_rows), str(window_bytes)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], cwd=_REPOSITORY, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 3 * num_rows
    assert found["total"] == 3 * num_rows * (num_rows - 1) // 2
    assert found["growth"] < 6 * window_bytes
