"""What is looked at after cleaning, in a sample of the training rows: leaks of the label, rare classes, useless columns.

A check removes no row. It finds, and ``clean.checks.action`` says whether that is a warning or the end of the run.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts.tags import count_tags, encode_tags
from lepton_ray.core.errors import DataError
from lepton_ray.data.block import decode
from lepton_ray.data.hashing import hash_columns, to_keys
from lepton_ray.spec.clean import ChecksSpec, ImbalanceSpec, LeakageSpec
from lepton_ray.spec.data import CategoryColumn, DataSpec, FeatureColumn, NumberColumn, TimeColumn

MIN_ROWS = 50
"""Fewer rows show too little to speak of leaks and identifiers."""
MAX_ROWS = 100_000
"""Leaks are looked for in at most so many rows: those with the least hash, whatever their order."""
_ID_FRACTION = 0.95  # of the values are distinct
_MAX_TAGS = 20  # whose presence a column may give away

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    check: str
    """``leakage``, ``imbalance``, ``constant`` or ``identifier``."""
    place: str
    """Where the spec has the column or the label."""
    message: str
    """Place, rule, value and next action."""


def check_sample(
    table: pa.Table,
    data: DataSpec,
    checks: ChecksSpec,
    num_rows: int | None = None,
    left_out: Collection[str] = (),
) -> list[Finding]:
    """Return what the checks find.

    Args:
        table: A sample of the typed training rows, with all features and the label.
        data: Which columns are features, which is the label.
        checks: What to look at.
        num_rows: Number of all training rows; those of the sample by default.
        left_out: Tags that are no classes.
    """
    findings: list[Finding] = []
    if checks.constant_columns and table.num_rows > 1:
        findings += _find_constants(table, data)
    if table.num_rows >= MIN_ROWS:
        findings += _find_identifiers(table, data, num_rows or table.num_rows)
    if data.label is None or not table.num_rows:
        return findings
    if checks.leakage and data.windows and data.split.by is None:
        findings.append(_find_mixed_times(data))
    if checks.imbalance and data.task in ("classification", "multi_label"):
        labels = decode(table.column(data.label)).drop_null()
        counts = {name: count for name, count in _count_classes(labels, data).items() if name not in left_out}
        findings += _find_imbalance(counts, len(labels), data.label, checks.imbalance)
    is_series = pa.types.is_fixed_size_list(table.column(data.label).type)
    if checks.leakage and not is_series and data.task != "anomaly_detection" and table.num_rows >= MIN_ROWS:
        findings += _find_leaks(_take_some(table), data, data.label, checks.leakage)
    return findings


def _take_some(table: pa.Table) -> pa.Table:
    if table.num_rows <= MAX_ROWS:
        return table
    flat = [
        column
        for column in table.columns
        if not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type)
    ]
    keys = to_keys(hash_columns(flat), seed=0)
    return table.take(pa.array(np.sort(np.argpartition(keys, MAX_ROWS)[:MAX_ROWS])))


def stop_on(findings: list[Finding]) -> None:
    """End the run if there are findings: ``clean.checks.action: stop``.

    Raises:
        DataError: With all of them.
    """
    if findings:
        raise DataError(
            "clean.checks must find nothing (action: stop), got:\n"
            + "\n".join(f"  {found.message}" for found in findings)
        )


def _find_constants(table: pa.Table, data: DataSpec) -> Iterator[Finding]:
    label = [data.label] if data.label is not None and not data.has_classes else []  # of classes there must be two
    for name in [*data.features, *label]:
        column = table.column(name)
        if not (pa.types.is_nested(column.type) or pa.types.is_binary(column.type)) and _is_constant(decode(column)):
            value = "only missing values" if column.null_count else f"only {decode(column)[0].as_py()!r}"
            place = f"data.columns.{name}"
            way_out = "Name another label" if name in label else "Make it ignored"
            message = f"{place} must hold different values to be of use, got {value}. {way_out}."
            yield Finding("constant", place, message)


def _find_mixed_times(data: DataSpec) -> Finding:
    times = dict.fromkeys(window.time for window in data.windows.values())
    message = (
        "data.split.by must be given where rows hold windows of a series (data.windows), got a split at random: test rows share "
        f"values with training rows, and look better than the future will. Set it to {next(iter(times))}."
    )
    return Finding("leakage", "data.split.by", message)


def _is_constant(values: pa.ChunkedArray) -> bool:
    if values.null_count:
        return bool(values.null_count == len(values))
    is_same: bool = pc.all(pc.equal(values, values[0])).as_py()
    return is_same


def _find_identifiers(table: pa.Table, data: DataSpec, num_rows: int) -> Iterator[Finding]:
    for name, column in data.features.items():
        if isinstance(column, CategoryColumn):
            is_identifier = _is_category_identifier(decode(table.column(name)))
        elif isinstance(column, NumberColumn):
            is_identifier = _is_number_identifier(table.column(name), num_rows)
        else:
            continue
        if is_identifier:
            place = f"data.columns.{name}"
            message = (
                f"{place} must tell of more than one row to be of use, got a value of its own in nearly every row. "
                "Make it ignored if it only names the row."
            )
            yield Finding("identifier", place, message)


def _is_category_identifier(values: pa.ChunkedArray) -> bool:
    num_present: int = len(values) - values.null_count
    is_distinct: bool = pc.count_distinct(values, mode="only_valid").as_py() > _ID_FRACTION * num_present
    return num_present >= MIN_ROWS and is_distinct


def _is_number_identifier(values: pa.ChunkedArray, num_rows: int) -> bool:
    """Whether whole numbers, each in one row, fill a range not much wider than the rows: a count of the rows."""
    numbers = values.drop_null().to_numpy()
    if len(numbers) < MIN_ROWS or (numbers != np.floor(numbers)).any():
        return False
    low, high = numbers.min(), numbers.max()
    if not len(numbers) - 1 <= high - low <= 2 * num_rows:
        return False
    return bool(np.bincount((numbers - low).astype(np.int64)).max() == 1)


def _count_classes(labels: pa.ChunkedArray, data: DataSpec) -> dict[str, int]:
    if data.tags_label is not None:
        return count_tags(labels, data.tags_label)
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(labels).to_pylist()}


def _find_imbalance(counts: dict[str, int], total: int, label: str, limits: ImbalanceSpec) -> Iterator[Finding]:
    rare = {name: count / total for name, count in counts.items() if count < limits.min_class_fraction * total}
    if rare:
        shown = ", ".join(f"{name!r} {share:.2%}" for name, share in sorted(rare.items()))
        message = (
            f"each class of data.label ({label}) must have at least {limits.min_class_fraction:.2%} of the rows "
            f"(clean.checks.imbalance.min_class_fraction), got {shown}. Add rows, join classes or lower the limit."
        )
        yield Finding("imbalance", "data.label", message)
    ratio = max(counts.values()) / min(counts.values()) if counts else 1.0
    if limits.max_ratio is not None and ratio > limits.max_ratio:
        message = (
            f"the largest class of data.label ({label}) must have at most {limits.max_ratio:g} times the rows of the smallest "
            f"(clean.checks.imbalance.max_ratio), got {ratio:.3g} times. Add rows, join classes or raise the limit."
        )
        yield Finding("imbalance", "data.label", message)


def _find_leaks(table: pa.Table, data: DataSpec, label: str, limits: LeakageSpec) -> Iterator[Finding]:
    truths = _truths(decode(table.column(label)), data)
    for name, column in data.features.items():
        values = decode(table.column(name))
        associate = _association_of(column, values)
        if associate is None:
            continue
        is_missing = values.is_null().to_numpy().astype(np.int64)
        found = max((max(associate(truth), association_by_value(is_missing, truth)) for truth in truths), default=0.0)
        if found > limits.max_association:
            place = f"data.columns.{name}"
            message = (
                f"{place} must not give the label away (clean.checks.leakage.max_association {limits.max_association:g}), "
                f"got an association of {found:.4g}. Make it ignored if it is not known when predicting, or raise the limit."
            )
            yield Finding("leakage", place, message)


def _association_of(column: FeatureColumn, values: pa.ChunkedArray) -> Callable[[Codes], float] | None:
    """Return what tells how much a column's values tell of a class; None for kinds that are not looked at."""
    if isinstance(column, NumberColumn | TimeColumn):
        return partial(association_in_order, _to_ranks(values))
    return partial(association_by_value, _to_codes(values)) if isinstance(column, CategoryColumn) else None


def _truths(labels: pa.ChunkedArray, data: DataSpec) -> list[Codes]:
    """Return each row's class; of tags, for each of the most frequent ones, whether the row has it."""
    if data.tags_label is None:
        return [_to_codes(labels) if data.class_label is not None else _to_deciles(labels)]
    counts = count_tags(labels, data.tags_label)
    tags = sorted(counts, key=lambda tag: (-counts[tag], tag))[:_MAX_TAGS]
    is_given_NC = encode_tags(labels, data.tags_label, tags) == 1
    return [is_given.astype(np.int64) for is_given in is_given_NC.T]


def _to_codes(values: pa.ChunkedArray) -> Codes:
    """Number the distinct values; a missing one is a value too."""
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    codes: Codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _to_ranks(values: pa.ChunkedArray) -> Codes:
    """Number the distinct numbers or times in their order; missing ones come last."""
    numbers = values.cast(pa.int64()).to_numpy() if pa.types.is_timestamp(values.type) else values.to_numpy()
    _, ranks = np.unique(numbers, return_inverse=True)
    return ranks.astype(np.int64)


def _to_deciles(values: pa.ChunkedArray) -> Codes:
    """Number tenths of the rows in the order of their numbers; equal numbers stay together."""
    ranks = _to_ranks(values)
    num_less = np.append(0, np.cumsum(np.bincount(ranks))[:-1])
    return num_less[ranks] * 10 // max(len(ranks), 1)


def association_by_value(values: Codes, classes: Codes) -> float:
    """Return how much knowing a value tells of the class, from 0 (nothing) to 1 (all).

    The share by which the chance falls that two rows differ in their class, when they are taken from the rows with one value
    rather than from all. A value in one row only tells nothing. Negative chance results count as 0.

    Source:
        Goodman and Kruskal 1954, tau, with pairs drawn without replacement, so that many rare values do not look like knowledge.
    """
    overall = _chance_to_differ(_Counts.of(np.zeros_like(values), classes)).sum()
    if not overall:
        return 0.0
    counts = _Counts.of(values, classes)
    within_V = np.where(counts.sizes_V > 1, _chance_to_differ(counts), overall)
    return max(0.0, float(1 - (counts.sizes_V * within_V).sum() / len(values) / overall))


def association_in_order(ranks: Codes, classes: Codes) -> float:
    """Return how much the order of a number's values tells of the class, from 0 (nothing) to 1 (all).

    The share by which neighbours in that order differ less in their class than rows taken at random, one change between
    classes each not counted. Rows with equal values stand in random order: the expectation is taken.

    Source:
        Wald and Wolfowitz 1940 (runs of classes in an order); Chatterjee 2021 uses neighbours in the same way for numbers.
    """
    overall = _Counts.of(np.zeros_like(ranks), classes)
    expected = (len(ranks) - 1) * _chance_to_differ(overall).sum()
    if not expected:
        return 0.0
    counts = _Counts.of(ranks, classes)
    within = ((counts.sizes_V - 1) * _chance_to_differ(counts)).sum()
    between = len(counts.sizes_V) - 1 - counts.chance_of_equal_neighbours()
    unavoidable = len(overall.counts) - 1
    return float(np.clip(1 - max(0.0, within + between - unavoidable) / expected, 0, 1))


@dataclass(frozen=True)
class _Counts:
    """Numbers of rows by value and class, for the pairs that occur."""

    pairs: Codes
    """value * number of classes + class, in order; values are numbered without gaps."""
    counts: Codes
    """Rows of each pair."""
    num_classes: int
    sizes_V: Codes  # noqa: N815
    """Rows of each value."""

    @classmethod
    def of(cls, values: Codes, classes: Codes) -> "_Counts":
        """Count rows."""
        num_classes = int(classes.max(initial=0)) + 1
        _, values = np.unique(values, return_inverse=True)
        pairs, counts = np.unique(values * num_classes + classes, return_counts=True)
        return cls(pairs, counts, num_classes, np.bincount(values))

    def chance_of_equal_neighbours(self) -> float:
        """Sum over values of the chance that a row has the class of one with the next value."""
        shares = self.counts / self.sizes_V[self.pairs // self.num_classes]
        wanted = self.pairs + self.num_classes
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return float((shares * shares[at])[self.pairs[at] == wanted].sum())


def _chance_to_differ(counts: _Counts) -> NDArray[np.float64]:
    """For each value the chance that two of its rows, taken without replacement, differ in class; 0 for a single row."""
    same = np.bincount(counts.pairs // counts.num_classes, counts.counts * (counts.counts - 1.0))
    all_pairs = counts.sizes_V * (counts.sizes_V - 1.0)
    chance: NDArray[np.float64] = 1 - np.divide(same, all_pairs, out=np.ones(len(same)), where=all_pairs > 0)
    return chance
