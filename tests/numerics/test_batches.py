"""Batches: the same rows, varied alike, for any cut of an epoch into batches and shares; classes balanced."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from lepton_ray.core.errors import SpecError
from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.train.batches import Batches, Share, class_weights
from lepton_ray.train.rows import TrainData, epoch_order

from .augment_case import SEED, VARIED, data_of, spec_of

_UNEQUAL = np.repeat([0, 1, 3, 4], [13, 5, 1, 6])  # class 2 has no rows
np.random.default_rng(0).shuffle(_UNEQUAL)


def test_oversampling_takes_every_row_and_repeats_them_evenly() -> None:
    order = epoch_order(_UNEQUAL, "oversample", SEED, 0)
    assert Counter(_UNEQUAL[order].tolist()) == {0: 13, 1: 13, 3: 13, 4: 13}
    repeats = np.bincount(order, minlength=len(_UNEQUAL))
    for label, allowed in ((0, {1}), (1, {2, 3}), (3, {13}), (4, {2, 3})):
        assert set(repeats[label == _UNEQUAL].tolist()) == allowed


def test_undersampling_takes_other_rows_in_each_epoch() -> None:
    seen = set()
    for epoch in range(60):
        order = epoch_order(_UNEQUAL, "undersample", SEED, epoch)
        assert Counter(_UNEQUAL[order].tolist()) == {0: 1, 1: 1, 3: 1, 4: 1}
        seen |= set(order.tolist())
    assert len(seen) > 20  # of 25 rows


@pytest.mark.parametrize("balance", [None, "weights"])
def test_otherwise_an_epoch_is_a_permutation(balance: str | None) -> None:
    orders = [epoch_order(_UNEQUAL, balance, SEED, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(25)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == epoch_order(_UNEQUAL, balance, SEED, 1).tolist()
    assert orders[1] != epoch_order(_UNEQUAL, balance, SEED + 1, 1).tolist()


def test_class_weights_are_those_of_scikit_learn() -> None:
    present = [0, 1, 3, 4]
    weights = class_weights(np.bincount(_UNEQUAL))
    np.testing.assert_allclose(
        weights[present], compute_class_weight("balanced", classes=np.array(present), y=_UNEQUAL)
    )
    assert weights[_UNEQUAL].sum() == pytest.approx(len(_UNEQUAL))


def _rows_of(shares: list[Share], num_classes: int) -> list[tuple[bytes, bytes]]:
    """Input and labels of all rows that count, in an order that does not depend on shares."""
    return sorted(
        (x.tobytes(), target.tobytes())
        for share in shares
        if not share.is_idle
        for x, target in zip(share.x["x"], share.targets(num_classes), strict=True)
    )


@pytest.mark.parametrize(("kind", "alpha", "balance"), VARIED)
@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_shares_of_many_workers_are_the_batch_of_one(
    kind: str, alpha: float, balance: str | None, world_size: int
) -> None:
    """To the bit; 23 rows in batches of 8 end with 7, of 11 with 1: some workers are idle then."""
    data = data_of(kind, num_classes=4)
    for size in (8, 11):
        batches = Batches(data, spec_of(kind, alpha, balance), size, SEED)
        for epoch in range(2):
            alone = list(batches.shares(epoch, 0, 1))
            many = zip(*(batches.shares(epoch, rank, world_size) for rank in range(world_size)), strict=True)
            for batch, shares in zip(alone, many, strict=True):
                assert _rows_of(list(shares), 4) == _rows_of([batch], 4)
                assert {share.batch_weight for share in shares} == {batch.batch_weight}
                assert all(len(share.x["x"]) > 0 for share in shares)
                assert batch.batch_weight == pytest.approx(
                    batch.targets(4).sum() if batch.labels else len(batch.y), rel=1e-6
                )


@pytest.mark.parametrize("kind", ["image", "tokens", "table"])
def test_a_row_varies_alike_whatever_the_batches(kind: str) -> None:
    data, spec = data_of(kind), spec_of(kind)
    rows = [_rows_of(list(Batches(data, spec, size, SEED).shares(1, 0, 1)), 23) for size in (1, 4, 10, 23, 99)]
    assert all(other == rows[0] for other in rows)


@pytest.mark.parametrize(("kind", "alpha", "balance"), VARIED)
def test_epochs_differ_and_come_again(kind: str, alpha: float, balance: str | None) -> None:
    """What a resumed training sees: other batches were never made before."""
    data = data_of(kind, num_classes=4)
    before = data.x_train["x"].copy()
    fresh = lambda seed: Batches(data, spec_of(kind, alpha, balance), 8, seed)  # noqa: E731
    batches = fresh(SEED)
    epochs = [_rows_of(list(batches.shares(epoch, 0, 1)), 4) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert _rows_of(list(fresh(SEED).shares(2, 0, 1)), 4) == epochs[2]
    assert _rows_of(list(fresh(SEED + 1).shares(2, 0, 1)), 4) != epochs[2]
    assert np.array_equal(data.x_train["x"], before)


def test_a_place_varies_otherwise_in_each_epoch_and_run() -> None:
    """A single row is always at place 0."""
    spec, seen = AugmentSpec.model_validate({"image": {"brightness": 0.5}}), []
    for seed in range(4):
        batches = Batches(data_of("image", rows=1), spec, 8, seed)
        seen += [share.x["x"].tobytes() for epoch in range(4) for share in batches.shares(epoch, 0, 1)]
    assert len(set(seen)) == 16


@pytest.mark.parametrize("kind", ["image", "tokens", "table"])
@pytest.mark.parametrize("spec", [None, AugmentSpec()])
def test_rows_are_as_they_were_when_all_is_off(kind: str, spec: AugmentSpec | None) -> None:
    data = data_of(kind)
    for share in Batches(data, spec, 8, SEED).shares(0, 0, 1):
        assert share.targets(23) is share.y
        assert np.array_equal(share.x["x"], data.x_train["x"][share.y])
        assert share.x["x"].dtype == data.x_train["x"].dtype
        assert np.array_equal(share.y, np.sort(share.y))  # read in the order of the rows


def test_what_is_off_does_not_change_what_is_on() -> None:
    """Flips alone, and flips with a crop whose window happens to be in the middle."""
    data = data_of("image", rows=200)
    flips = AugmentSpec.model_validate({"image": {"horizontal_flip_fraction": 0.5}})
    both = AugmentSpec.model_validate({"image": {"horizontal_flip_fraction": 0.5, "crop_padding_pixels": 1}})
    (one,), (two,) = (list(Batches(data, spec, 200, SEED).shares(0, 0, 1)) for spec in (flips, both))
    num_equal = (one.x["x"] == two.x["x"]).all(axis=(1, 2, 3)).sum()
    assert 8 <= num_equal <= 40  # one window of nine


def test_shares_of_effects_are_what_the_spec_says() -> None:
    """5,000 rows: five standard errors of a share are 0.035 at most."""
    data = data_of("image", rows=5000)
    spec = AugmentSpec.model_validate({"image": {"horizontal_flip_fraction": 0.2}})
    (share,) = Batches(data, spec, 5000, SEED).shares(0, 0, 1)
    assert abs((share.x["x"] != data.x_train["x"][share.y]).any(axis=(1, 2, 3)).mean() - 0.2) < 0.03
    tokens = {"x": np.tile(np.arange(2, 102), (50, 1))}
    data = TrainData(tokens, np.arange(50), tokens, np.arange(50))
    (share,) = Batches(data, AugmentSpec.model_validate({"text": {"dropout_fraction": 0.2}}), 50, SEED).shares(0, 0, 1)
    assert abs((share.x["x"] == data.unknown_id).mean() - 0.2) < 0.03
    (share,) = Batches(data, AugmentSpec.model_validate({"text": {"swap_fraction": 0.2}}), 50, SEED).shares(0, 0, 1)
    assert abs((share.x["x"] != data.x_train["x"]).mean() - 0.2) < 0.05
    assert np.abs(share.x["x"] - data.x_train["x"]).max() == 1
    first = set((share.x["x"][:, :3] - data.x_train["x"][:, :3])[:, 1].tolist())
    assert first == {-1, 0, 1}  # the second token changes with the first, or with the third


def test_every_window_colour_and_middle_is_drawn() -> None:
    """A one in the middle of 5x5 zeros tells where the window was; a white image, where the square was."""
    x = np.zeros((2000, 1, 5, 5), np.float32)
    x[:, 0, 2, 2] = 1
    data = TrainData({"x": x}, np.arange(2000), {"x": x[:1]}, np.arange(1))
    (share,) = Batches(data, AugmentSpec.model_validate({"image": {"crop_padding_pixels": 2}}), 2000, 0).shares(0, 0, 1)
    counts = share.x["x"].sum(axis=(0, 1))
    assert counts.sum() == 2000
    assert counts.min() > 40  # of 80 on average
    data = TrainData({"x": np.ones_like(x)}, np.arange(2000), {"x": x[:1]}, np.arange(1))
    (share,) = Batches(data, AugmentSpec.model_validate({"image": {"cutout_pixels": 1}}), 2000, 0).shares(0, 0, 1)
    assert ((share.x["x"] == 0).sum(axis=(1, 2, 3)) == 1).all()
    assert (share.x["x"] == 0).sum(axis=(0, 1)).min() > 40
    x[:] = np.linspace(0, 1, 25).reshape(5, 5)
    data = TrainData({"x": x}, np.arange(2000), {"x": x[:1]}, np.arange(1))
    (share,) = Batches(data, AugmentSpec.model_validate({"image": {"brightness": 0.3}}), 2000, 0).shares(0, 0, 1)
    factors = share.x["x"][:, 0, 2, 2] / x[:, 0, 2, 2]
    assert 0.7 <= factors.min() < 0.705
    assert 1.295 < factors.max() <= 1.3001
    assert abs(factors.mean() - 1) < 0.02


def test_noise_is_in_units_of_the_column_and_leaves_codes_alone() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(3, [1, 100, 0.01], (4000, 3))
    codes = np.eye(3)[rng.integers(0, 3, 4000)]
    x = np.concatenate([numbers, codes, np.full((4000, 1), 7)], 1, dtype=np.float32)
    y = np.arange(4000)
    for columns, names, noisy in (
        (None, (), [0, 1, 2]),
        (None, ("a", "b", "c", None, None, None, "d"), [0, 1, 2]),  # d has no spread
        (("c", "a"), ("a", "b", "c", None, None, None, "d"), [0, 2]),
        (("b",), ("a", "b", "b", None, None, None, "d"), [1, 2]),  # a number may have several columns
    ):
        spec = AugmentSpec.model_validate({"table": {"noise_std": 0.2, "noise_fraction": 0.6, "columns": columns}})
        (share,) = Batches(TrainData({"x": x}, y, {"x": x}, y, number_columns=names), spec, 4000, SEED).shares(0, 0, 1)
        change = share.x["x"] - x[share.y]
        assert np.flatnonzero((change != 0).any(0)).tolist() == noisy
        for column in noisy:
            moved = change[:, column][change[:, column] != 0].astype(float)
            assert abs(len(moved) / 4000 - 0.6) < 0.05
            assert moved.std() == pytest.approx(0.2 * numbers[:, column].std(), rel=0.06)
            assert abs(moved.mean()) < 0.02 * numbers[:, column].std()


def test_mixup_pairs_each_row_with_another_of_its_batch() -> None:
    """Each row is the partner of one; shares are of Beta(0.4, 0.4): mean 1/2, variance 1 / (4 * 1.8)."""
    data, alpha = data_of("table", rows=3000), 0.4
    shares = list(Batches(data, AugmentSpec(mixup_alpha=alpha), 100, SEED).shares(0, 0, 1))
    own = np.concatenate([share.labels[0][1] for share in shares])
    for share in shares:
        (y, weight), (partner_y, partner_weight) = share.labels
        assert sorted(partner_y) == sorted(y) == sorted(share.y)
        np.testing.assert_allclose(weight + partner_weight, 1, atol=1e-6)
        wanted = weight[:, None] * data.x_train["x"][y] + partner_weight[:, None] * data.x_train["x"][partner_y]
        np.testing.assert_allclose(share.x["x"], wanted, atol=1e-6)
        assert share.batch_weight == pytest.approx(100)
    assert abs(own.mean() - 0.5) < 0.035
    assert abs(own.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 100.0])
def test_extreme_mixup_is_finite(alpha: float) -> None:
    for share in Batches(data_of("table"), AugmentSpec(mixup_alpha=alpha), 8, SEED).shares(0, 0, 1):
        assert np.isfinite(share.x["x"]).all()
        assert np.isfinite(share.targets(23)).all()


def test_a_batch_of_one_row_is_mixed_with_itself() -> None:
    data = data_of("table", rows=1)
    (share,) = Batches(data, AugmentSpec(mixup_alpha=0.5), 8, SEED).shares(0, 0, 1)
    np.testing.assert_allclose(share.x["x"], data.x_train["x"], atol=1e-6)
    np.testing.assert_allclose(share.targets(1), [[1]], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("table", {"image": {"cutout_pixels": 1}}, r"train.augment.image must be left out .* got cutout_pixels 1"),
        ("image", {"table": {"noise_std": 1.0}}, r"train.augment.table must be left out .* number columns"),
        ("image", {"text": {"swap_fraction": 1.0}}, r"train.augment.text must be left out .* token ids"),
        ("image", {"image": {"cutout_pixels": 6}}, r"cutout_pixels must be less than the image's shorter side \(6\)"),
        ("tokens", {"mixup_alpha": 0.1}, r"mixup_alpha must be 0 for data with token ids"),
        (
            "table",
            {"table": {"noise_std": 1.0, "columns": ["a"]}},
            r"columns must name number columns \(none\), got 'a'",
        ),
    ],
)
def test_batches_refuse_what_the_data_has_not(kind: str, spec: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Batches(data_of(kind), AugmentSpec.model_validate(spec), 8, SEED)


def _several(rows: int = 40) -> TrainData:
    kinds = {"features": "table", "tokens": "tokens", "pixels": "image"}
    x = {name: data_of(kind, rows).x_train["x"] for name, kind in kinds.items()}
    return TrainData(x, np.arange(rows), x, np.arange(rows))


@pytest.mark.parametrize(("name", "kind"), [("features", "table"), ("tokens", "tokens"), ("pixels", "image")])
def test_each_input_is_varied_as_it_is_alone(name: str, kind: str) -> None:
    """And the inputs of another kind are left as they are, in the order they had."""
    data, alone = _several(), data_of(kind, 40)
    shares = zip(
        Batches(data, spec_of(kind), 16, SEED).shares(1, 1, 2),
        Batches(alone, spec_of(kind), 16, SEED).shares(1, 1, 2),
        strict=True,
    )
    for share, expected in shares:
        assert list(share.x) == ["features", "tokens", "pixels"]
        assert np.array_equal(share.x[name], expected.x["x"])
        assert not np.array_equal(share.x[name], data.x_train[name][share.y])
        for other in share.x.keys() - {name}:
            assert np.array_equal(share.x[other], data.x_train[other][share.y])


def test_mixup_mixes_all_inputs_of_a_row_with_the_same_partner() -> None:
    whole = _several()
    x = {name: values for name, values in whole.x_train.items() if name != "tokens"}
    data = TrainData(x, whole.y_train, x, whole.y_train)
    for share in Batches(data, AugmentSpec(mixup_alpha=0.4), 16, SEED).shares(0, 0, 1):
        (y, weight), (partner_y, partner_weight) = share.labels
        for name, values in x.items():
            shape = (-1, *[1] * (values.ndim - 1))
            wanted = weight.reshape(shape) * values[y] + partner_weight.reshape(shape) * values[partner_y]
            np.testing.assert_allclose(share.x[name], wanted, atol=1e-6)


def test_padding_of_another_id_stays() -> None:
    tokens = {"x": np.array([[5, 6, 9, 9], [7, 0, 8, 9]] * 20)}
    data = TrainData(tokens, np.arange(40), tokens, np.arange(40), unknown_id=3, padding_id=9)
    spec = AugmentSpec.model_validate({"text": {"dropout_fraction": 0.9, "swap_fraction": 1.0}})
    for share in Batches(data, spec, 40, SEED).shares(0, 0, 1):
        assert np.array_equal(share.x["x"] == 9, tokens["x"][share.y] == 9)
        assert (share.x["x"] == 3).mean() > 0.4
