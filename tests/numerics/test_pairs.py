"""Pairs that ranking learns from: which are drawn, the step against its closed form, many workers equal one.

Tolerances: float32 sums in another order differ by some 1e-7 a step.
"""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import LinearModel, MlpModel, TrainSpec
from lepton_ray.train import keras_loop, torch_loop
from lepton_ray.train.batches import Batches
from lepton_ray.train.pairs import draw_pairs
from lepton_ray.train.rows import TrainData

from .training_case import Threads

_SEED = 5


pytestmark = pytest.mark.usefixtures("one_thread")


def _data(rows: int = 50, val_rows: int = 9, groups: int = 6) -> TrainData:
    """Grades in a few steps, some rows without a group; the number of a row is its first input."""
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows + val_rows, 3)).astype(np.float32)
    y = rng.integers(0, 4, rows + val_rows).astype(np.float32)
    group = rng.integers(-1, groups, rows + val_rows)
    group[-3:], y[-3:] = 0, [0, 1, 2]  # so that there is a pair to validate with
    return TrainData(
        {"x": x[:rows]},
        y[:rows],
        {"x": x[rows:]},
        y[rows:],
        "ranking",
        group_train=group[:rows],
        group_val=group[rows:],
    )


def _spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": 3, "global_batch_size": 12, "lr": 0.05, **changes})


def _build(framework: Any = "torch", model: Any = MlpModel(kind="mlp", hidden=(6,))) -> Any:  # noqa: B008  frozen
    return partial(build_model, model, [ModelInput(name="x", shape=(3,))], 1, framework)


def _partners(grade: NDArray[Any], group: NDArray[Any], row: int) -> set[int]:
    return {i for i in range(len(grade)) if group[i] == group[row] >= 0 and grade[i] != grade[row]}


@pytest.mark.parametrize("seed", range(5))
def test_each_row_that_can_be_compared_is_so_once_with_any_other_grade_of_its_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grade, group = rng.integers(0, 3, 40).astype(np.float32), rng.integers(-1, 9, 40)
    wanted = {row: others for row in range(40) if (others := _partners(grade, group, row))}
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(400):
        pairs = draw_pairs(grade, group, rng)
        assert sorted(pairs[:, 0].tolist()) == sorted(wanted)
        seen.update(map(tuple, pairs.tolist()))
    for row, others in wanted.items():
        assert {other for first, other in seen if first == row} == others
        for other in others:  # a binomial of 400 draws: five of its deviations
            share = 1 / len(others)
            assert abs(seen[row, other] - 400 * share) <= 5 * np.sqrt(400 * share * (1 - share))


@pytest.mark.parametrize(
    ("grade", "group"), [([], []), ([1.0, 2.0], [-1, -1]), ([3.0, 3.0], [0, 0]), ([1.0, 2.0, 3.0], [0, 1, 2])]
)
def test_rows_that_cannot_be_compared_make_no_pair(grade: list[float], group: list[int]) -> None:
    pairs = draw_pairs(np.array(grade, np.float32), np.array(group, np.int64), np.random.default_rng(0))
    assert pairs.shape == (0, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_workers_share_the_pairs_of_a_batch_and_tear_none_apart(world_size: int) -> None:
    data = _data()
    batches = Batches(data, None, 12, _SEED)
    by_worker = [list(batches.shares(1, rank, world_size)) for rank in range(world_size)]
    (alone,) = [list(batches.shares(1, 0, 1))]
    rows = {tuple(row): number for number, row in enumerate(data.x_train["x"].tolist())}
    for step, whole in enumerate(alone):
        shares = [worker[step] for worker in by_worker if not worker[step].is_idle]
        pairs = [
            tuple(sorted((rows[tuple(a)], rows[tuple(b)])))
            for share in shares
            for a, b in share.x["x"].reshape(-1, 2, 3).tolist()
        ]
        wanted = [tuple(sorted((rows[tuple(a)], rows[tuple(b)]))) for a, b in whole.x["x"].reshape(-1, 2, 3).tolist()]
        assert sorted(pairs) == sorted(wanted)
        assert {share.batch_weight for share in shares} == {len(wanted)}
        for a, b in pairs:
            assert b in _partners(data.y_train, data.group_train, a)
    assert len(alone) == batches.num_steps == -(-sum(share.batch_weight for share in alone) // 12)


def _lambdas(data: TrainData, weight_D: NDArray[Any], step: Any) -> NDArray[np.float64]:
    """The gradient by the formula (Burges et al. 2005, 2010): each pair pulls its rows apart by 1 / (1 + exp(lead))."""
    x = step.x["x"].astype(np.float64).reshape(-1, 2, 3)
    y = step.y.reshape(-1, 2)
    gradient = np.zeros(3)
    for (a, b), (high, low) in zip(x, y, strict=True):
        better, worse = (a, b) if high > low else (b, a)
        gradient -= (better - worse) / (1 + np.exp((better - worse) @ weight_D))
    return gradient / len(y)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_step_is_that_of_the_closed_form(framework: Any) -> None:
    data, spec = _data(), _spec(epochs=1, global_batch_size=100, optimizer="sgd", lr=1.0)
    loop: Any = torch_loop if framework == "torch" else keras_loop
    state = loop.start_state(_build(framework, LinearModel(kind="linear")), spec, _SEED)

    def weight() -> NDArray[Any]:
        first = (
            next(iter(state.model.parameters())).detach().numpy()
            if framework == "torch"
            else state.model.get_weights()[0]
        )
        return np.array(first, np.float64).ravel()

    before = weight()
    (step,) = Batches(data, None, 100, _SEED).shares(0, 0, 1)
    for _ in loop.train_epochs(state, data, spec, _SEED):
        pass
    np.testing.assert_allclose(before - weight(), _lambdas(data, before, step), atol=1e-6)


@pytest.mark.slow_but("options0-2-50", "options1-3-50", "options2-5-21")
@pytest.mark.parametrize(("world_size", "rows"), [(2, 50), (3, 50), (5, 21), (13, 30)])
@pytest.mark.parametrize("options", [{}, {"max_rows_per_pass": 4, "clip_norm": 0.5}, {"average_decay": 0.8}])
def test_many_workers_train_as_a_single_one_does(world_size: int, rows: int, options: Any) -> None:
    """Passes are as many in all workers, or there are none: those without a pair in a batch hold one that counts nothing.

    Not with Adam: the last bias moves no score apart from another, and Adam makes steps of the rounding of its gradient.
    """
    if "max_rows_per_pass" in options and world_size not in (2, 3):
        options = {**options, "max_rows_per_pass": 100}
    data, spec = _data(rows), _spec(optimizer="sgd", **options)
    single = torch_loop.start_state(_build(), spec, _SEED)
    for _ in torch_loop.train_epochs(single, data, spec, _SEED):
        pass
    states = Threads(world_size).train(spec, data, _build())
    for mine, theirs in zip(single.evaluated.parameters(), states[-1].evaluated.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)
    for one, other in zip(single.history, states[-1].history, strict=True):
        assert other == pytest.approx(one, abs=2e-5)


@pytest.mark.slow_but("40")
@pytest.mark.parametrize("rows", [9, 40])
def test_the_steps_of_keras_workers_add_up_to_that_of_one(rows: int) -> None:
    """One step of each of 4 workers, without a sum over them: some have no pair."""
    data, spec = _data(rows), _spec(epochs=1, global_batch_size=100, optimizer="sgd", lr=1.0)
    start = keras_loop.start_state(_build("keras"), spec, _SEED).model.get_weights()

    def step(group: keras_loop.Group) -> list[NDArray[Any]]:
        state = keras_loop.start_state(_build("keras"), spec, _SEED)
        next(keras_loop.train_epochs(state, data, spec, _SEED, group))
        return [a - b for a, b in zip(start, state.model.get_weights(), strict=True)]

    alone = step(keras_loop.Group())
    parts = [step(keras_loop.Group(rank, 4)) for rank in range(4)]
    for wanted, *shares in zip(alone, *parts, strict=True):
        np.testing.assert_allclose(sum(shares), wanted, atol=1e-6)
    assert max(np.abs(part).max() for part in alone) > 1e-3


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_order_of_lists_is_learned_where_no_number_tells_it(framework: Any) -> None:
    """Grades count from another height in each list: what is fitted to the numbers themselves sees noise, pairs do not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3)).astype(np.float32)
    group = np.arange(600) % 40
    y = (x @ [2.0, -1.0, 0.5] + 30 * rng.normal(size=40)[group]).astype(np.float32)
    data = TrainData(
        {"x": x[:400]}, y[:400], {"x": x[400:]}, y[400:], "ranking", group_train=group[:400], group_val=group[400:]
    )
    loop: Any = torch_loop if framework == "torch" else keras_loop
    spec = _spec(epochs=20, global_batch_size=20, lr=0.1)
    state = loop.start_state(_build(framework, LinearModel(kind="linear")), spec, _SEED)
    for _ in loop.train_epochs(state, data, spec, _SEED):
        pass
    assert state.best_metrics["val_accuracy"] > 0.97
    slopes, *_ = np.linalg.lstsq(np.column_stack([x[:400], np.ones(400)]), y[:400], rcond=None)
    a, b = data.val_order.T
    assert (((x[400:] @ slopes[:3])[a] > (x[400:] @ slopes[:3])[b]) == (y[400:][a] > y[400:][b])).mean() < 0.9
