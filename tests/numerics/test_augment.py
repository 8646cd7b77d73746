"""Augmentation: each function against plain Python, row by row, and what the section refuses.

Images, tokens and tables are compared to the bit where only copies are made; float32 arithmetic agrees with Python's
float64 to some 1e-6 of values around 1.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lepton_ray.spec.augment import AugmentSpec, check_augment
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train import augment

from .augment_case import ALL_IMAGE, images_of, tokens_of

_DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "augmentation.md"


# --- draws ------------------------------------------------------------------------------------------------------------


def _split_mix(seed: int, count: int) -> list[int]:
    """SplitMix64 as published, one output after the other."""
    mask, outputs = 2**64 - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def test_draws_are_split_mix_64() -> None:
    """The five outputs for seed 1234567 are those that the reference implementation in C prints."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert augment.draw_bits(1234567, np.arange(5), 1)[:, 0].tolist() == known
    for key in (0, 2**63, 2**64 - 1):
        assert augment.draw_bits(key, np.arange(4), 3).ravel().tolist() == _split_mix(key, 12)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**40), max_size=9), st.integers(0, 7))
def test_a_draw_depends_on_its_own_place_alone(key: int, places: list[int], width: int) -> None:
    for draw in (augment.draw_bits, augment.draw_uniform, augment.draw_normal):
        together = draw(key, np.array(places, np.int64), width)
        assert together.shape == (len(places), width)
        for place, row in zip(places, together, strict=True):
            assert np.array_equal(draw(key, np.array([place]), width)[0], row)


def test_uniform_draws_are_uniform() -> None:
    """100 bins of 2,000 on average: chi-square with 99 degrees of freedom is under 160 but for 1 in 10,000 seeds."""
    draws = augment.draw_uniform(7, np.arange(20_000), 10)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.bincount((draws.ravel() * 100).astype(int), minlength=100)
    assert ((counts - 2000) ** 2 / 2000).sum() < 160
    correlations = np.corrcoef(draws.T) - np.eye(10)
    assert np.abs(correlations).max() < 0.04  # five standard errors


def test_normal_draws_are_normal() -> None:
    """Shares below each of some thresholds against the error function: five standard errors of 400,000 draws."""
    draws = augment.draw_normal(7, np.arange(40_000), 10)
    assert draws.dtype == np.float32
    assert np.isfinite(draws).all()
    for threshold in (-3, -2, -1, -0.3, 0, 0.5, 1.5, 2.5, 3.5):
        share = 0.5 * (1 + math.erf(threshold / math.sqrt(2)))
        assert abs((draws < threshold).mean() - share) < 5 * math.sqrt(share * (1 - share) / draws.size)
    assert np.abs(np.corrcoef(draws.T) - np.eye(10)).max() < 0.03


def test_extreme_bits_give_finite_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0, 2**64 - 1, 2**40 - 1, (2**24 - 1) << 40):
        monkeypatch.setattr(augment, "draw_bits", lambda *_, bits=bits: np.array([[bits]], np.uint64))
        assert abs(augment.draw_normal(0, np.arange(1), 1).item()) < 6


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [2, 3])
def test_flip_mirrors_the_marked_images(axis: int) -> None:
    images, marked = images_of(), np.array([True, False, True, True, False, False, True])
    before = images.copy()
    flipped = augment.flip(images, marked, axis)
    for n, image in enumerate(images):
        mirror = image[:, ::-1] if axis == 2 else image[:, :, ::-1]
        assert np.array_equal(flipped[n], mirror if marked[n] else image)
    assert np.array_equal(augment.flip(flipped, marked, axis), images)
    assert np.array_equal(images, before)
    assert len(augment.flip(images[:0], marked[:0], axis)) == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32))
def test_crop_takes_a_window_of_the_framed_image(
    padding: int, channels: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = images_of(4, (channels, height, width), seed)
    top, left = rng.integers(0, 2 * padding + 1, (2, 4))
    cropped = augment.crop(images, top, left, padding)
    assert cropped.shape == images.shape
    for n in range(4):
        for row in range(height):
            for column in range(width):
                y, x = row + int(top[n]) - padding, column + int(left[n]) - padding
                is_inside = 0 <= y < height and 0 <= x < width
                wanted = images[n, :, y, x] if is_inside else np.zeros(channels)
                assert np.array_equal(cropped[n, :, row, column], wanted)


def test_crop_in_the_middle_changes_nothing() -> None:
    images, middle = images_of(), np.full(7, 3)
    assert np.array_equal(augment.crop(images, middle, middle, 3), images)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(0, 5), st.integers(0, 4))
def test_cut_out_sets_a_square_to_zero(side: int, row: int, column: int) -> None:
    images = images_of(2) - 2  # no zeros of its own, and negative: 0 and not -0
    cut = augment.cut_out(images, np.array([row, 0]), np.array([column, 0]), side)
    for y in range(6):
        for x in range(5):
            is_cut = (
                row - side // 2 <= y < row - side // 2 + side and column - side // 2 <= x < column - side // 2 + side
            )
            assert np.array_equal(cut[0, :, y, x], np.zeros(3) if is_cut else images[0, :, y, x])
    assert not np.signbit(cut[cut == 0]).any()
    if side // 2 <= row <= 6 - side + side // 2 and side // 2 <= column <= 5 - side + side // 2:
        assert (cut[0] == 0).sum() == 3 * side * side
    assert (cut[1] == 0).any()


def _shift_one(
    image: augment.Floats, factors: Any, black: augment.Floats, white: augment.Floats
) -> "np.ndarray[Any, Any]":
    """Brightness, contrast, saturation of one image, one after the other, each pixel by itself, in float64."""
    brightness, contrast, saturation = map(float, factors)
    channels, height, width = image.shape
    luma = [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels
    pixels = [(r, c) for r in range(height) for c in range(width)]
    spread = [float(white[k] - black[k]) or 1.0 for k in range(channels)]
    unit = {p: [(float(image[k, *p]) - float(black[k])) / spread[k] for k in range(channels)] for p in pixels}
    unit = {p: [brightness * u for u in unit[p]] for p in pixels}
    grey = {p: sum(w * u for w, u in zip(luma, unit[p], strict=True)) for p in pixels}
    mean = sum(grey.values()) / len(pixels)
    unit = {p: [mean + contrast * (u - mean) for u in unit[p]] for p in pixels}
    grey = {p: sum(w * u for w, u in zip(luma, unit[p], strict=True)) for p in pixels}
    unit = {p: [grey[p] + saturation * (u - grey[p]) for u in unit[p]] for p in pixels}
    result = np.empty(image.shape)
    for p in pixels:
        for k in range(channels):
            value = float(black[k]) + spread[k] * unit[p][k]
            result[k, *p] = min(max(value, float(black[k])), float(white[k]))
    return result


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("scale", [(1.0, 0.0), (255.0, 0.0), (4.0, -1.8)])
def test_colours_shift_as_one_step_after_the_other(channels: int, scale: tuple[float, float]) -> None:
    """Ranges of pixels of 0 to 1, of 0 to 255 and of normalised ones, another in each channel."""
    images = (images_of(5, (channels, 4, 3)) * scale[0] + scale[1]) * np.arange(1, channels + 1)[None, :, None, None]
    images = images.astype(np.float32)
    black, white = images.min(axis=(0, 2, 3)), images.max(axis=(0, 2, 3))
    factors = np.array([[1.3, 0.7, 1.4], [0.6, 1.5, 0.2], [1, 1, 1], [2, 1, 1], [1, 0, 0]])
    shifted = augment.shift_colours(images, factors, black, white)
    assert shifted.dtype == np.float32
    for n in range(5):
        wanted = _shift_one(images[n], factors[n], black, white)
        np.testing.assert_allclose(shifted[n], wanted, atol=3e-6 * channels * (abs(scale[0]) + abs(scale[1])))
    assert (shifted >= black[:, None, None]).all()
    assert (shifted <= white[:, None, None]).all()


def test_colours_of_a_channel_without_spread_stay() -> None:
    images = np.full((2, 3, 4, 4), 0.25, np.float32)
    images[:, 1] = images_of(2, (4, 4))
    black, white = images.min(axis=(0, 2, 3)), images.max(axis=(0, 2, 3))
    shifted = augment.shift_colours(images, np.array([[1.3, 0.7, 1.4]] * 2), black, white)
    assert np.isfinite(shifted).all()
    assert (shifted[:, [0, 2]] == 0.25).all()


def test_without_saturation_all_channels_are_the_grey() -> None:
    images = images_of()
    grey = augment.shift_colours(images, np.array([[1, 1, 0]] * 7), np.zeros(3, np.float32), np.ones(3, np.float32))
    luma = np.tensordot(images.astype(float), [0.299, 0.587, 0.114], (1, 0))
    for channel in range(3):
        np.testing.assert_allclose(grey[:, channel], luma, atol=1e-6)


# --- tokens -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), st.integers(0, 2**32))
def test_dropped_tokens_become_the_unknown_one(length: int, seed: int) -> None:
    tokens = tokens_of(5, length, seed)
    marked = np.random.default_rng(seed).random((5, length)) < 0.5
    dropped = augment.drop_tokens(tokens, marked, 1, padding_id=0)
    assert dropped.dtype == np.int64
    for n in range(5):
        for position in range(length):
            token = tokens[n, position]
            assert dropped[n, position] == (1 if marked[n, position] and token != 0 else token)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), st.booleans(), st.integers(0, 2**32))
def test_swaps_are_of_neighbours_that_are_no_padding(length: int, is_scattered: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 4, (5, length)) if is_scattered else tokens_of(5, length, seed)
    starts_odd, marked = rng.random(5) < 0.5, rng.random((5, length // 2)) < 0.7
    swapped = augment.swap_tokens(tokens, starts_odd, marked, padding_id=0)
    for n in range(5):
        wanted = tokens[n].tolist()
        for pair in range(length // 2):
            first = 2 * pair + int(starts_odd[n])
            if first + 1 < length and marked[n, pair] and wanted[first] and wanted[first + 1]:
                wanted[first], wanted[first + 1] = wanted[first + 1], wanted[first]
        assert swapped[n].tolist() == wanted
        assert sorted(wanted) == sorted(tokens[n])
    assert np.array_equal(swapped == 0, tokens == 0)
    assert np.array_equal(augment.swap_tokens(swapped, starts_odd, marked, padding_id=0), tokens)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_noise_is_added_to_its_columns() -> None:
    table, noise = images_of(4, (5,)), images_of(4, (2,), seed=1)
    noisy = augment.add_noise(table, [3, 1], noise)
    for n in range(4):
        for column in range(5):
            added = {3: noise[n, 0], 1: noise[n, 1]}.get(column, np.float32(0))
            assert noisy[n, column] == table[n, column] + added
    assert np.array_equal(table, images_of(4, (5,)))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32))
def test_mixed_rows_lie_between_their_parents(dimensions: int, seed: int) -> None:
    x, partners = (images_of(4, (2, 3, 2)[:dimensions], s) for s in (seed, seed + 1))
    share = np.random.default_rng(seed).beta(0.3, 0.3, 4)
    mixed = augment.mix(x, partners, share)
    assert mixed.dtype == np.float32
    for n in range(4):
        wanted = share[n] * x[n].astype(float) + (1 - share[n]) * partners[n].astype(float)
        np.testing.assert_allclose(mixed[n], wanted, atol=2e-7)
        assert (mixed[n] <= np.maximum(x[n], partners[n]) + 2e-7).all()
        assert (mixed[n] >= np.minimum(x[n], partners[n]) - 2e-7).all()
    assert np.array_equal(augment.mix(x, partners, np.ones(4)), x)
    assert np.array_equal(augment.mix(x, partners, np.zeros(4)), partners)


# --- the section ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"horizontal_flip_fraction": 1.5}}, "less than or equal to 1"),
        ({"image": {"cutout_pixels": -1}}, "greater than or equal to 0"),
        ({"image": {"mixup": 0.2}}, "Extra inputs"),
        ({"text": {"dropout_fraction": 1.0}}, "less than 1"),
        ({"table": {"columns": ["a"]}}, r"columns must come with a noise_std above 0, got noise_std 0.0"),
        ({"table": {"noise_fraction": 0.5}}, r"noise_fraction must come with a noise_std above 0"),
        ({"table": {"noise_std": 0.5, "noise_fraction": 0.0}}, r"noise_fraction must be above 0"),
        ({"table": {"noise_std": 0.5, "columns": ["a", "b", "a"]}}, r"each column once, got 'a' twice"),
        ({"table": {"noise_std": 0.5, "columns": []}}, "at least 1 item"),
        ({"table": {"noise_std": math.inf}}, "finite"),
        ({"mixup_alpha": -0.1}, "greater than or equal to 0"),
        ({"mixup_alpha": math.nan}, "less than or equal to 100"),
        ({"balance": "smote"}, "'oversample', 'undersample' or 'weights'"),
    ],
)
def test_nonsense_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentSpec.model_validate(values)


def test_all_problems_with_the_data_are_told_at_once() -> None:
    spec = AugmentSpec.model_validate(
        {
            "image": {"saturation": 0.5, "cutout_pixels": 8, "crop_padding_pixels": 9},
            "text": {"swap_fraction": 0.1},
            "table": {"noise_std": 0.1, "columns": ["age", "city"]},
            "mixup_alpha": 0.2,
        }
    )
    assert len(check_augment(spec, [])) == 3
    problems = check_augment(
        spec, ["image", "tokens", "table"], image_shape=(1, 8, 9), number_columns=["age", "height"]
    )
    assert [problem.split(" ")[0] for problem in problems] == [
        "train.augment.mixup_alpha",
        "train.augment.image.crop_padding_pixels",
        "train.augment.image.cutout_pixels",
        "train.augment.image.saturation",
        "train.augment.table.columns",
    ]
    assert problems[-1] == (
        "train.augment.table.columns must name number columns (age, height), got 'city'. Correct or remove it"
    )
    assert check_augment(spec, ["image", "table"], image_shape=(3, 32, 32), number_columns=["age", "city"]) == [
        "train.augment.text must be left out for data without token ids, got swap_fraction 0.1. Remove it"
    ]
    noise = AugmentSpec.model_validate({"table": {"noise_std": 0.1}})
    assert "data without number columns" in check_augment(noise, ["table"], number_columns=[])[0]
    assert check_augment(AugmentSpec(mixup_alpha=0.2, balance="weights"), ["image"]) == []


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["image", "text", "table", "mixup_alpha", "balance"]))
def test_a_section_alone_leaves_the_rest_off(name: str) -> None:
    on = {"image": ALL_IMAGE, "text": {"swap_fraction": 0.1}, "table": {"noise_std": 0.1}, "mixup_alpha": 0.1}
    spec = AugmentSpec.model_validate({name: on.get(name, "oversample")})
    assert spec.model_dump(exclude_defaults=True).keys() == {name}
    assert AugmentSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_documents_example_is_a_section() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", _DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        TrainSpec.model_validate(yaml.safe_load(block)["train"])
    fields = [*AugmentSpec.model_fields]
    for section in ("image", "text", "table"):
        fields += type(getattr(AugmentSpec(), section)).model_fields
    assert [name for name in fields if f"`{name}`" not in _DOCUMENT.read_text(encoding="utf-8")] == []
