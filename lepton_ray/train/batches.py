"""The training batches of an epoch and each worker's share of them, for the loop of any framework.

All workers know the whole order of an epoch; a worker's share of a batch is every world_size-th of its rows. What a row
becomes depends on (seed, epoch, place in the epoch) alone, so the shares of many workers are the batch of one.

Rows come from a ``Source``: arrays in memory (``TrainData``), or files that are read as the epoch goes on (``streamed``).
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.core.errors import SpecError
from lepton_ray.spec.augment import AugmentSpec, ImageAugment, TableAugment, TextAugment, check_augment
from lepton_ray.spec.data import Task
from lepton_ray.train import augment
from lepton_ray.train.augment import Floats, Ints
from lepton_ray.train.rows import Cut, Input, Inputs, Labels, RowsOfBatch, Source, TrainData

_IMAGE_DIMENSIONS, _STEPS_DIMENSIONS, _TABLE_DIMENSIONS = 4, 3, 2
_VALIDATION_ROWS = 4096
_VALIDATION_BYTES = 8 << 20  # of input: what layers make of it is a multiple
_PAIR = 2  # the rows of an idle pass: ranking has no less
_IMAGE_DRAWS = 9  # a column each, whether it is used or not: what is off does not change what is on


@dataclass(frozen=True)
class Share:
    """A worker's rows of a global batch."""

    x: Inputs
    y: Labels
    batch_weight: float
    """Weight of the global batch, that the sum of its losses is divided by; its number of rows where none weighs more."""
    is_idle: bool = False
    """Whether the batch has no row for this worker: the one it has here must count nothing."""
    labels: tuple[tuple[Labels, Floats], ...] = ()
    """Each label of the rows and its weight, where they are mixed or weighted; empty: ``y`` alone, with weight 1."""
    most_rows: int = 0
    """Rows of the greatest share of the batch."""

    def passes(self, max_rows: int | None) -> Iterator["Share"]:
        """Yield the rows in pieces that go through the model one after another; as many on all workers: fsdp gathers in each."""
        if max_rows is None:
            yield self
            return
        for start in range(0, self.most_rows, max_rows):
            is_idle = self.is_idle or start >= len(self.y)
            rows = slice(min(_PAIR, max_rows)) if is_idle else slice(start, start + max_rows)
            x = {name: values[rows] for name, values in self.x.items()}
            labels = tuple((y[rows], weight[rows]) for y, weight in self.labels)
            yield replace(self, x=x, y=self.y[rows], labels=labels, is_idle=is_idle)

    def targets(self, num_classes: int) -> Labels:
        """Return ``y``, mixed if it is numbers, or the weight of each class (N, num_classes) of mixed or weighted classes."""
        if not self.labels:
            return self.y
        if self.y.dtype == np.float32:
            mixed: Floats = np.stack([(y.T * weight).T for y, weight in self.labels]).sum(axis=0)
            return mixed
        weights_NC = np.zeros((len(self.y), num_classes), np.float32)
        rows = np.arange(len(weights_NC))
        for y, weight in self.labels:
            weights_NC[rows, y] += weight
        return weights_NC


def validation_shares(data: Source, rank: int, world_size: int) -> Iterator[Share]:
    """Yield this worker's validation rows, as many as are evaluated at once; as often on all workers."""
    cut = Cut(validation_rows(data.head) * world_size, rank, world_size)
    for batch in data.validation_batches(cut):
        places = cut.places(batch.num_rows)
        yield Share(batch.take(places), batch.labels(places), batch.num_rows, cut.is_idle(batch.num_rows))


def validation_rows(data: TrainData) -> int:
    """Return how many rows a worker evaluates at once."""
    row_bytes = sum(_row_bytes(x, name in data.category_ids) for name, x in data.x_val.items())
    return max(1, min(_VALIDATION_ROWS, _VALIDATION_BYTES // row_bytes))


def _row_bytes(x: Input, is_category_ids: bool) -> int:
    """Bytes of a row; of token ids and steps those of a pair of each two, as attention has them."""
    has_pairs = not is_category_ids and (x.dtype == np.int64 or x.ndim == _STEPS_DIMENSIONS)
    return x[:1].nbytes * (x.shape[1] if has_pairs else 1)


class _Purpose(IntEnum):
    """What draws are for; those of one purpose say nothing on those of another. Never renumber: results would change."""

    IMAGE = 1
    TOKEN_DROPOUT = 2
    TOKEN_SWAP_START = 3
    TOKEN_SWAP = 4
    NOISE = 5
    NOISE_CHOICE = 6
    MIXUP = 7


Keys = Callable[[_Purpose], int]
Vary = Callable[[Any, Ints, Keys], Any]
"""From rows and their places in the epoch to what they become."""


class Batches:
    """Batches of a training, varied as the spec says; the same on all workers.

    Raises:
        SpecError: If the spec asks for what the data has not.
    """

    def __init__(self, data: Source, spec: AugmentSpec | None, global_batch_size: int, seed: int) -> None:
        self._data, self._seed, self._size = data, seed, global_batch_size
        self._spec = spec or AugmentSpec()
        _check(self._spec, data.head)
        self._vary = _variations(self._spec, data)
        self._class_weights = class_weights(data.class_counts()) if self._spec.balance == "weights" else None
        self.num_steps = -(-data.num_epoch_rows(self._spec.balance) // global_batch_size)
        """Batches of an epoch."""
        self.leg_steps = data.leg_steps or self.num_steps
        """Steps after which training may stop and go on from there."""

    @property
    def task(self) -> Task:
        """What the model is for."""
        return self._data.head.task

    def shares(self, epoch: int, rank: int, world_size: int, first_step: int = 0) -> Iterator[Share]:
        """Yield this worker's share of each batch of an epoch, counted from 0, from a step on."""
        is_whole = bool(self._spec.mixup_alpha) or self._class_weights is not None
        cut = Cut(self._size, rank, world_size, first_step, is_whole)
        keys = functools.cache(functools.partial(_key, self._seed, epoch))
        for batch in self._data.training_batches(self._spec.balance, self._seed, epoch, cut):
            places = cut.places(batch.num_rows)
            share = self._share(batch, batch.near(places), keys)
            most_rows = -(-batch.num_rows // world_size) * len(share.y) // len(places)  # of a pair two
            yield replace(share, is_idle=cut.is_idle(batch.num_rows), most_rows=most_rows)

    def _share(self, batch: RowsOfBatch, places: Ints, keys: Keys) -> Share:
        if self._spec.mixup_alpha:
            return self._mixed_share(batch, places, keys)
        x, y = self._rows(batch, places, keys), batch.labels(places)
        if self._class_weights is None:
            return Share(x, y, batch.num_rows)
        weight_B = self._class_weights[batch.labels(np.arange(batch.num_rows))]
        labels = (y, weight_B[places].astype(np.float32))
        return Share(x, y, float(weight_B.sum()), labels=(labels,))

    def _mixed_share(self, batch: RowsOfBatch, places: Ints, keys: Keys) -> Share:
        """Mix each row with its partner, both varied as they are wherever they stand."""
        alpha, y_B = self._spec.mixup_alpha, batch.labels(np.arange(batch.num_rows))
        rng = np.random.default_rng([keys(_Purpose.MIXUP), batch.start])
        partner_B = rng.permutation(batch.num_rows)
        own_share_B = rng.beta(alpha, alpha, batch.num_rows)
        read, where = np.unique(np.concatenate([places, partner_B[places]]), return_inverse=True)
        x = self._rows(batch, read, keys)
        mine, theirs = where[: len(places)], where[len(places) :]
        x = {name: augment.mix(rows[mine], rows[theirs], own_share_B[places]) for name, rows in x.items()}
        weight_B = np.ones(batch.num_rows) if self._class_weights is None else self._class_weights[y_B]
        own_B, other_B = own_share_B * weight_B, (1 - own_share_B) * weight_B[partner_B]
        labels = (
            (y_B[places], own_B[places].astype(np.float32)),
            (y_B[partner_B[places]], other_B[places].astype(np.float32)),
        )
        return Share(x, y_B[places], float((own_B + other_B).sum()), labels=labels)

    def _rows(self, batch: RowsOfBatch, places: Ints, keys: Keys) -> dict[str, Any]:
        x = batch.take(places)
        for name, vary in self._vary:
            x[name] = vary(x[name], batch.start + places, keys)
        return x


def class_weights(counts: Ints) -> NDArray[np.float64]:
    """Return the weight of each class: rows / (classes * rows of the class), so that the rows' weights sum to the rows."""
    weights: NDArray[np.float64] = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return weights


def _key(seed: int, epoch: int, purpose: _Purpose) -> int:
    return int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)[0])


def _kind_of(name: str, data: TrainData) -> str:
    if name in data.category_ids:
        return "ids"
    x = data.x_train[name]
    if x.dtype == np.int64:
        return "tokens"
    return {_IMAGE_DIMENSIONS: "image", _TABLE_DIMENSIONS: "table"}.get(x.ndim, "steps")


def _name_by_kind(data: TrainData) -> dict[str, str]:
    """Return the input of each kind; features make one of a kind at most."""
    return {_kind_of(name, data): name for name in data.x_train}


def _check(spec: AugmentSpec, data: TrainData) -> None:
    names = _name_by_kind(data)
    image_shape = data.x_train[names["image"]].shape[1:] if "image" in names else None
    is_unknown = not data.number_columns and spec.table.columns is None
    problems = check_augment(
        spec,
        names,
        has_classes=data.task == "classification",
        image_shape=(image_shape[0], image_shape[1], image_shape[2]) if image_shape else None,
        number_columns=None if is_unknown else [name for name in data.number_columns if name is not None],
    )
    if problems:
        raise SpecError(problems)


def _variations(spec: AugmentSpec, data: Source) -> list[tuple[str, Vary]]:
    """Return what is done to which input."""
    head = data.head
    names = _name_by_kind(head)
    variations: list[tuple[str, Vary]] = []
    if spec.image != ImageAugment():
        name = names["image"]
        variations.append((name, _ImageVariation(spec.image, functools.partial(data.colour_bounds, name))))
    if spec.text != TextAugment():
        variations.append((names["tokens"], _TextVariation(spec.text, head.unknown_id, head.padding_id)))
    if spec.table != TableAugment():
        name = names["table"]
        variations.append((name, _TableVariation(spec.table, data.spread_rows(name), head.number_columns)))
    return variations


class _ImageVariation:
    """Flips, crop, colours, cut-out, in this order."""

    def __init__(self, spec: ImageAugment, bounds: Callable[[], tuple[Floats, Floats]]) -> None:
        self._spec = spec
        self._has_colours = bool(spec.brightness or spec.contrast or spec.saturation)
        if self._has_colours:
            self._black_K, self._white_K = bounds()

    def __call__(self, x_NKHW: Floats, places: Ints, keys: Keys) -> Floats:
        spec = self._spec
        draws = augment.draw_uniform(keys(_Purpose.IMAGE), places, _IMAGE_DRAWS)
        if spec.horizontal_flip_fraction:
            x_NKHW = augment.flip(x_NKHW, draws[:, 0] < spec.horizontal_flip_fraction, axis=3)
        if spec.vertical_flip_fraction:
            x_NKHW = augment.flip(x_NKHW, draws[:, 1] < spec.vertical_flip_fraction, axis=2)
        if padding := spec.crop_padding_pixels:
            corners = (draws[:, 2:4] * (2 * padding + 1)).astype(np.int64)
            x_NKHW = augment.crop(x_NKHW, corners[:, 0], corners[:, 1], padding)
        if self._has_colours:
            factors = 1 + (2 * draws[:, 4:7] - 1) * [spec.brightness, spec.contrast, spec.saturation]
            x_NKHW = augment.shift_colours(x_NKHW, factors, self._black_K, self._white_K)
        if spec.cutout_pixels:
            middles = (draws[:, 7:9] * x_NKHW.shape[2:]).astype(np.int64)
            x_NKHW = augment.cut_out(x_NKHW, middles[:, 0], middles[:, 1], spec.cutout_pixels)
        return x_NKHW


class _TextVariation:
    """Swaps, then dropout."""

    def __init__(self, spec: TextAugment, unknown_id: int, padding_id: int) -> None:
        self._spec, self._unknown_id, self._padding_id = spec, unknown_id, padding_id

    def __call__(self, x_NL: Ints, places: Ints, keys: Keys) -> Ints:
        spec, length = self._spec, x_NL.shape[1]
        if spec.swap_fraction:
            starts_odd = augment.draw_uniform(keys(_Purpose.TOKEN_SWAP_START), places, 1)[:, 0] < 1 / 2
            draws = augment.draw_uniform(keys(_Purpose.TOKEN_SWAP), places, length // 2)
            x_NL = augment.swap_tokens(x_NL, starts_odd, draws < spec.swap_fraction, self._padding_id)
        if spec.dropout_fraction:
            draws = augment.draw_uniform(keys(_Purpose.TOKEN_DROPOUT), places, length)
            x_NL = augment.drop_tokens(x_NL, draws < spec.dropout_fraction, self._unknown_id, self._padding_id)
        return x_NL


class _TableVariation:
    """Noise on the columns that are numbers."""

    def __init__(self, spec: TableAugment, sample: Any, number_columns: tuple[str | None, ...]) -> None:
        self._spec = spec
        self._columns = _noisy_columns(spec, number_columns, sample)
        self._std_C = (spec.noise_std * sample[:, self._columns].std(0, dtype=np.float64)).astype(np.float32)

    def __call__(self, x_ND: Floats, places: Ints, keys: Keys) -> Floats:
        noise = augment.draw_normal(keys(_Purpose.NOISE), places, len(self._columns)) * self._std_C
        if self._spec.noise_fraction < 1:
            draws = augment.draw_uniform(keys(_Purpose.NOISE_CHOICE), places, len(self._columns))
            noise *= draws < self._spec.noise_fraction
        return augment.add_noise(x_ND, self._columns, noise)


def _noisy_columns(spec: TableAugment, number_columns: tuple[str | None, ...], sample: Any) -> list[int]:
    """Return the positions of the columns that noise is added to."""
    if not number_columns:
        return np.flatnonzero(((sample != 0) & (sample != 1)).any(0)).tolist()
    wanted = set(number_columns) - {None} if spec.columns is None else set(spec.columns)
    return [position for position, name in enumerate(number_columns) if name in wanted]
