"""clean: typed rows -> a snapshot of the rows that stay, in three splits, and quarantine with a reason for each other row.

What needs one row is judged part by part; what needs all (keys, duplicates, the split) is decided from hashes and few
columns, swept over in bounded memory; bounds for outliers come from a sample of the training rows. Then each part is
written once. Neither the order of parts nor their size changes what stays.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lepton_ray.artifacts.kinds import Dataset, PartFile, RawDataset
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.errors import DataError
from lepton_ray.core.imports import source_digest
from lepton_ray.data import removal
from lepton_ray.data.block import LINE, REASON, SOURCE
from lepton_ray.data.check import CATEGORY_TYPE, typed_schema
from lepton_ray.data.outliers import FittedOutliers, fit_outliers, outlier_columns
from lepton_ray.data.parts import read_arrow
from lepton_ray.data.profile import profile
from lepton_ray.data.rules import load_rule_functions, stop_error
from lepton_ray.data.sample import SAMPLE_BYTES, rows_within
from lepton_ray.data.snapshots import PROFILE
from lepton_ray.data.split import SPLITS, TRAIN
from lepton_ray.data.verdicts import FIRST_REASON, Mask, Removal, Verdicts
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.row_rules import FunctionRule, UniqueRule
from lepton_ray.stages.blocks import Mapper, folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.near_duplicates import remove_near_duplicates
from lepton_ray.stages.references import check_references, fingerprint_references, load_references
from lepton_ray.stages.windows import add_windows, remove_looking_across

VERSION = 8
WITHOUT_EFFECT = {"data": {"engine"}}
_MIN_CLASSES = 2
_JUDGED = "judged"


def clean(data: DataSpec, clean: CleanSpec, raw: RawDataset, ctx: RunContext) -> Dataset:
    """Judge, deduplicate, split and write the rows.

    Raises:
        DataError: If more rows would be removed than ``clean`` allows, or too few are left; all removed rows are in
            quarantine then too.
    """
    ctx.work["rows"] = raw.ledger.rows_kept
    mapper = Mapper(data, sum(part.num_bytes for part in raw.rows), ctx)
    verdicts = Verdicts(folder_of(raw, ctx), raw.rows)
    if data.profile:
        _write_profile(verdicts, data, mapper)
    verdicts.remove_missing(len(data.read_features), clean.max_missing_fraction)
    judged = _judge_rules(verdicts, data, clean, mapper)
    _remove_repeats(verdicts, clean)
    alike = remove_near_duplicates(verdicts, clean.near_duplicates, mapper) if clean.near_duplicates else None
    windows, label_ends = add_windows(verdicts, data.windows, data.label, ctx) if data.windows else ([], None)
    class_rows, left_out = _split_rare(_count_classes(verdicts, data), data, clean)
    problem = _find_class_problem(class_rows, data, clean)
    outliers: tuple[FittedOutliers, ...] = ()
    if problem is None:
        verdicts.assign_splits(data.split, ctx.seed, data.class_label, list(class_rows))
        if data.label is not None and label_ends is not None and data.split.by is not None:
            remove_looking_across(verdicts, data.label, label_ends, data.split.by)
        outliers = _fit_outliers(verdicts, data, clean, mapper)
    folders = (verdicts.folder, ctx.scratch, ctx.output)
    write = removal.Writer(data, *folders, tuple(verdicts.removals), outliers)
    items = [
        removal.ToWrite(
            part, codes.copy(), fact, windows[index] if windows else None, () if alike is None else (alike[index],)
        )
        for index, ((part, codes), fact) in enumerate(zip(verdicts.of_parts(), judged, strict=True))
    ]
    dataset = _to_dataset(mapper.map_resumable("writing", write, items), data, list(class_rows), left_out, raw)
    if problem := problem or _find_loss(dataset.ledger, clean) or _find_empty(dataset, data):
        removed = f". See {ctx.location}/quarantine" if dataset.quarantine else ""
        raise DataError(f"{problem} {dataset.ledger}{removed}")
    return dataset


def preflight(data: DataSpec, clean: CleanSpec) -> None:
    """Find what is wrong with the section before anything is read.

    Raises:
        SpecError: If a rule's function cannot be imported, or what a foreign key refers to lacks its columns.
        DataError: If that is not there.
    """
    load_rule_functions(clean)
    check_references(clean, data)


def fingerprint(data: DataSpec, clean: CleanSpec) -> list[Any] | None:
    """Return what the stage's result depends on outside of the spec: the sources that foreign keys refer to, the code of functions."""
    functions = [source_digest(rule.function) for rule in clean.rules if isinstance(rule, FunctionRule)]
    return [*fingerprint_references(clean, data), *functions] or None


def _judge_rules(
    verdicts: Verdicts, data: DataSpec, clean: CleanSpec, mapper: Mapper
) -> Sequence[dict[str, Any] | None]:
    """Remove the rows that break a rule of rows; returns facts about the files that say which, by part."""
    if all(isinstance(rule, UniqueRule) for rule in clean.rules):
        return [None] * len(verdicts.parts)
    references = load_references(clean, data, mapper.ctx)
    folder = mapper.ctx.scratch
    judge = partial(removal.judge_part, data, clean, references, verdicts.folder, folder)
    facts = mapper.map_resumable(_JUDGED, judge, verdicts.parts)
    masks: dict[str, np.ndarray] = {}
    start = 0
    for part, fact in zip(verdicts.parts, facts, strict=True):
        positions, table = removal.read_judged(folder, fact)
        for reason in pc.unique(table.column(REASON)).to_pylist():
            mask = masks.setdefault(reason, np.zeros(len(verdicts.codes), bool))
            mask[positions[pc.equal(table.column(REASON), reason).to_numpy()] + start] = True
        start += part.rows
    for reason, mask in masks.items():
        verdicts.remove(Removal(reason, None), mask)
    return facts


def _remove_repeats(verdicts: Verdicts, clean: CleanSpec) -> None:
    for index, rule in enumerate(clean.rules):
        if isinstance(rule, UniqueRule):
            found = verdicts.remove_repeats(Removal("not_unique", rule.sentence), rule.columns, rule, skip_missing=True)
            if found and rule.on_fail == "stop":
                raise stop_error(f"clean.rules.{index}", found, rule.sentence)
    if clean.duplicates is not None:
        key = ", ".join(clean.duplicates.columns) or "every column of data.columns"
        stays = {"first": "an earlier", "last": "a later"}.get(clean.duplicates.keep, "another")
        detail = f"the row is the same as {stays} one in {key}"
        verdicts.remove_repeats(Removal("duplicate", detail), clean.duplicates.columns, clean.duplicates, False)


def _count_classes(verdicts: Verdicts, data: DataSpec) -> dict[str, int]:
    """Return the kept rows of each class, in the order of the classes; empty without any."""
    if data.label is None or not data.has_classes:
        return {}
    counts: Counter[str] = Counter()
    for part, codes in verdicts.of_parts():
        labels = read_arrow(verdicts.folder, part, [data.label])
        counts.update(removal.count_classes(labels.filter(pa.array(codes < FIRST_REASON)), data))
    return dict(sorted(counts.items()))


def _split_rare(class_rows: dict[str, int], data: DataSpec, clean: CleanSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Return the rows of the classes, and of the tags that are too rare to be one and may be left out."""
    if data.tags_label is None or data.tags_label.rare == "stop":
        return class_rows, {}
    left_out = {name: count for name, count in class_rows.items() if count < clean.min_rows_per_class}
    return {name: count for name, count in class_rows.items() if name not in left_out}, left_out


def _find_class_problem(class_rows: dict[str, int], data: DataSpec, clean: CleanSpec) -> str | None:
    if not data.has_classes:
        return None
    if len(class_rows) < _MIN_CLASSES:
        return f"data.label ({data.label}) must have at least 2 classes in the kept rows, got {list(class_rows)}. Add rows of others, or name another column."
    rare = [f"{name!r} {count}" for name, count in class_rows.items() if count < clean.min_rows_per_class]
    if not rare:
        return None
    column = f"data.columns.{data.label}"
    way_out = (
        f"set {column}.rare to leave_out"
        if data.tags_label is not None
        else f"name the others in {column}.allowed, or join classes with {column}.replace"
    )
    return (
        f"each class of data.label ({data.label}) must have at least {clean.min_rows_per_class} rows, "
        f"got {', '.join(rare)}. Add rows, lower clean.min_rows_per_class, or {way_out}."
    )


def _fit_outliers(verdicts: Verdicts, data: DataSpec, clean: CleanSpec, mapper: Mapper) -> tuple[FittedOutliers, ...]:
    wanted = [(rule, name) for rule in clean.outlier_rules for name in outlier_columns(rule, data)]
    if not wanted:
        return ()
    columns = dict.fromkeys(name for rule, column in wanted for name in (column, rule.per) if name)
    sample = _gather(verdicts, verdicts.codes == TRAIN, list(columns), data, mapper)
    return tuple(
        fit_outliers(name, rule, sample.column(name), sample.column(rule.per) if rule.per else None)
        for rule, name in wanted
    )


def _gather(verdicts: Verdicts, mask: Mask, columns: list[str], data: DataSpec, mapper: Mapper) -> pa.Table:
    """Return some columns of the rows of a mask, or of a uniform sample of them."""
    schema = pa.schema([typed_schema(data.columns).field(name) for name in columns])
    most = rows_within(schema, SAMPLE_BYTES, verdicts.parts)
    rows = int(mask.sum())
    take = partial(removal.take_sample, verdicts.folder, columns, rows, most)
    ends = np.cumsum([part.rows for part in verdicts.parts])
    items = list(zip(verdicts.parts, np.split(mask, ends[:-1]), strict=True))
    return mapper.gather(take, items, is_small=rows <= most)


def _write_profile(verdicts: Verdicts, data: DataSpec, mapper: Mapper) -> None:
    """Describe the rows as they came, before anything is removed."""
    sample = _gather(verdicts, np.ones(len(verdicts.codes), bool), list(data.columns), data, mapper)
    described = profile(sample, data.columns, len(verdicts.codes))
    (mapper.ctx.folder / PROFILE).write_text(described.model_dump_json(), encoding="utf-8")


def _to_dataset(
    facts: list[dict[str, Any]], data: DataSpec, classes: list[str], left_out: dict[str, int], raw: RawDataset
) -> Dataset:
    removed = sum((Counter(fact["removed"]) for fact in facts), Counter())
    counts = {split: sum((Counter(fact["classes"].get(split, {})) for fact in facts), Counter()) for split in SPLITS}
    class_rows = {split: {name: counts[split][name] for name in classes} for split in SPLITS}
    schema = {field.name: str(field.type) for field in typed_schema(data.all_columns)}
    return Dataset(
        splits={split: _part_files(facts, split) for split in SPLITS},
        quarantine=_part_files(facts, "quarantine"),
        ledger=raw.ledger.then(Ledger.of(raw.ledger.rows_kept, removed)),
        columns={**schema, SOURCE: str(CATEGORY_TYPE), LINE: "int64"},
        classes=tuple(classes),
        class_rows=class_rows if classes else {},
        left_out=left_out,
    )


def _part_files(facts: list[dict[str, Any]], name: str) -> tuple[PartFile, ...]:
    return tuple(PartFile.model_validate(fact[name]) for fact in facts if name in fact)


def _find_loss(ledger: Ledger, clean: CleanSpec) -> str | None:
    removed = ledger.rows_in - ledger.rows_kept
    if removed / ledger.rows_in > clean.max_removed_fraction:
        return (
            f"clean must remove at most {clean.max_removed_fraction:.0%} of the rows (clean.max_removed_fraction). "
            "Repair the source, or allow more."
        )
    for reason, fraction in clean.max_removed.items():
        if ledger.removed.get(reason, 0) / ledger.rows_in > fraction:
            return (
                f"clean must remove at most {fraction:.4g} of the rows for {reason} (clean.max_removed), got "
                f"{ledger.removed[reason]} of {ledger.rows_in}. Repair the source, or allow more."
            )
    return None


def _find_empty(dataset: Dataset, data: DataSpec) -> str | None:
    """What is wrong when nothing is left, or a split or a class of the training split is empty."""
    if not dataset.ledger.rows_kept:
        return "clean must keep rows, got none. Repair the source, or the rules that removed them."
    lost = [name for name, count in dataset.class_rows.get("train", {}).items() if not count]
    shares = {"train": data.split.train, "val": data.split.val, "test": data.split.test}
    empty = [name for name, count in dataset.split_rows.items() if not count and shares[name]]
    if empty and "label_in_later_split" in dataset.ledger.removed:
        return (
            f"each split must hold rows, got none for {', '.join(empty)}: the label ({data.label}) of its rows ends where a later "
            "split has begun (label_in_later_split). Add rows, shorten the label's window, or raise the split's share."
        )
    if empty and empty != ["train"] and data.split.by is not None:
        return (
            f"each split must hold rows, got none for {', '.join(empty)}: rows with an equal {data.split.by} stay together "
            "(data.split.by), and there are too few different ones. Name a finer column, or add rows."
        )
    if empty and empty != ["train"]:
        return (
            f"each split must hold rows, got none for {', '.join(empty)}: rows with equal features stay together, and there "
            "are too few different ones. Add features or rows."
        )
    if lost:
        way_out = "Raise clean.outliers.threshold" if "outlier" in dataset.ledger.removed else "Change data.split"
        return (
            f"each class of data.label ({data.label}) must have a training row, got none of "
            f"{', '.join(map(repr, lost))}. {way_out}."
        )
    return None
