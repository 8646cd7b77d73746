"""featurize: a snapshot -> fitted state, compiled graph, profile, and the model input of each split.

The training rows are gathered once: all that fit into memory, or else a uniform sample. Everything is fitted on that one
table, however many transforms there are, and the profile is taken from it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Dataset, FeatureSet, ModelInput, PartFile, Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.statistics import location_and_scale
from lepton_ray.artifacts.tags import encode_tags
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.core.files import sha256_file, write_json
from lepton_ray.data.block import decode
from lepton_ray.data.check import typed_schema
from lepton_ray.data.checks import Finding, check_sample, stop_on
from lepton_ray.data.hashing import hash_columns, to_keys
from lepton_ray.data.parts import Folder, part_name, read_parquet, read_parts
from lepton_ray.data.profile import profile
from lepton_ray.data.sample import SAMPLE_BYTES, in_sample, rows_within
from lepton_ray.data.snapshots import PROFILE
from lepton_ray.data.split import SPLITS
from lepton_ray.evaluate.data_report import write_data_report
from lepton_ray.features.fit import fit_features, needs_keys
from lepton_ray.features.graph import category_ids_of, compile_graph, ids_of, outputs_of
from lepton_ray.features.prepare import FOLD_KEY, Preparer, encode_labels, to_arrays
from lepton_ray.features.reference import reference_sketches
from lepton_ray.features.state import IDS, TOKENS, FeatureState
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features
from lepton_ray.spec.features_content import SubwordTokens, TextFeatures
from lepton_ray.stages.blocks import Mapper, folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.data_report import describe_data

VERSION = 14
WITHOUT_EFFECT = {"data": {"engine"}, "clean": set(CleanSpec.model_fields) - {"checks"}}
LABEL = "_label"
GROUP = "_group"
"""The column of ``data.ranking`` beside the model input."""
_FOLD_SEED = 0xF01D
_GROUP_BYTES = 16 << 20  # of model input: what training reads at once where it streams


def featurize(
    data: DataSpec, clean: CleanSpec, features: FeaturesSpec, dataset: Dataset, ctx: RunContext
) -> FeatureSet:
    """Fit on the training split and prepare all splits.

    Raises:
        DataError: If ``clean.checks`` find something and are to stop the run then.
    """
    ctx.work["rows"] = sum(dataset.split_rows.values())
    mapper = Mapper(data, sum(part.num_bytes for part in dataset.part_files()), ctx)
    state, target, fitted_rows, findings = _fit(data, clean, features, dataset, mapper)
    signature = Signature.of(data, target)
    graph = compile_graph(signature, state).SerializeToString()
    (ctx.folder / "prep.onnx").write_bytes(graph)
    (ctx.folder / "signature.json").write_text(signature.model_dump_json(indent=2), encoding="utf-8")
    (ctx.folder / "state.json").write_text(state.model_dump_json(indent=2), encoding="utf-8")
    fitted = Fitted(data, state.model_dump_json(), signature.model_dump_json(), dataset.classes)
    write = partial(write_prepared, fitted, folder_of(dataset, ctx), ctx.output)
    items = [(split, part) for split in SPLITS for part in dataset.splits[split]]
    facts = mapper.map_resumable("preparing", write, items)
    splits = {
        name: tuple(
            PartFile.model_validate(fact) for (split, _), fact in zip(items, facts, strict=True) if split == name
        )
        for name in SPLITS
    }
    return FeatureSet(
        splits=splits,
        target=target,
        inputs=inputs_of(state),
        fitted_rows=fitted_rows,
        findings=tuple(finding.message for finding in findings),
    )


def fingerprint(data: DataSpec, features: FeaturesSpec) -> dict[str, str] | None:
    """Return what the stage's result depends on outside of the spec: the content of tokenizer files, None without one.

    Raises:
        SpecError: If one cannot be used, or not any more.
    """
    sections = [features.of(name, column.kind) for name, column in data.features.items()]
    tokens = [section.tokens for section in sections if isinstance(section, TextFeatures)]
    files = sorted({choice.tokenizer_file for choice in tokens if isinstance(choice, SubwordTokens)})
    problems = [
        f"features.texts.tokens.tokenizer_file must be a file, got {file!r}, which is not there. Check the path"
        for file in files
        if not Path(file).is_file()
    ]
    if files and (problems := problems or check_features(features, data)):
        raise SpecError(problems)
    return {file: sha256_file(Path(file)) for file in files} or None


def _fit(
    data: DataSpec, clean: CleanSpec, features: FeaturesSpec, dataset: Dataset, mapper: Mapper
) -> tuple[FeatureState, Target | None, int, list[Finding]]:
    """Return what is fitted, on how many rows, and what the checks find; the rows are not held any longer than this."""
    ctx = mapper.ctx
    sample = gather_training_rows(data, dataset, mapper)
    ctx.update(f"{sample.num_rows} training rows gathered")
    findings = _look_at(sample, data, clean, dataset, ctx)
    if data.task is not None:  # for drift of the model that follows
        write_json(ctx.folder / "reference.json", reference_sketches(sample, data))
    if needs_keys(data, features):
        sample = sample.append_column(FOLD_KEY, pa.array(fold_keys(sample, data)))
    if data.anomalies is not None and data.label is not None:
        is_normal = pc.equal(decode(sample.column(data.label)), data.anomalies.normal_class)
        if not pc.any(is_normal).as_py():
            raise DataError(
                f"data.anomalies.normal_class must be a class of {data.label} ({', '.join(dataset.classes)}) with training rows, "
                f"got {data.anomalies.normal_class!r}. Name one"
            )
        sample = sample.filter(is_normal)
    state = fit_features(sample, data, features, dataset.classes, ctx.seed)
    return state, _target_of(sample, data, dataset), sample.num_rows, findings


def _target_of(sample: pa.Table, data: DataSpec, dataset: Dataset) -> Target | None:
    if data.task is None:
        return None
    if data.anomalies is not None:
        normal, quantile = data.anomalies.normal_class, data.anomalies.quantile
        return Target(task=data.task, classes=dataset.classes, normal_class=normal, quantile=quantile)
    if data.task != "regression":
        return Target(task=data.task, classes=dataset.classes)
    numbers = _to_labels(sample.column(data.label))
    num_values = numbers.shape[1] if numbers.ndim > 1 else None
    mean, std = location_and_scale(numbers.ravel(), "standard")
    return Target(task="regression", num_values=num_values, mean=mean, std=std)


def _to_labels(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return values (N,), or those of lists of one length (N, length)."""
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.to_numpy())
    return np.asarray(column.combine_chunks().flatten().to_numpy()).reshape(-1, column.type.list_size)


def _look_at(sample: pa.Table, data: DataSpec, clean: CleanSpec, dataset: Dataset, ctx: RunContext) -> list[Finding]:
    """Write the profile of the training rows and the data report, and return what the checks find."""
    rows = dataset.split_rows["train"]
    findings = check_sample(sample, data, clean.checks, rows, dataset.left_out) if data.label is not None else []
    if data.profile:
        columns = {name: data.all_columns[name] for name in sample.column_names}
        described = profile(sample, columns, rows)
        (ctx.folder / PROFILE).write_text(described.model_dump_json(), encoding="utf-8")
        shown = describe_data(data, dataset, described, tuple(finding.message for finding in findings))
        (ctx.folder / "report.html").write_text(write_data_report(ctx.name, shown), encoding="utf-8")
    if clean.checks.action == "stop":
        stop_on(findings)
    return findings


def gather_training_rows(data: DataSpec, dataset: Dataset, mapper: Mapper) -> pa.Table:
    """Return the features, label and fold keys of the training rows, or of a uniform sample of them."""
    schema = typed_schema(data.all_columns)
    columns = [name for name in data.all_columns if name in data.features or name == data.label]
    wanted = pa.schema([schema.field(name) for name in columns])
    most = rows_within(wanted, SAMPLE_BYTES, dataset.splits["train"])
    rows = dataset.split_rows["train"]
    take = partial(_take, list(data.all_columns), columns, rows, most, folder_of(dataset, mapper.ctx))
    return mapper.gather(take, dataset.splits["train"], is_small=rows <= most)


def _take(all_columns: list[str], columns: list[str], rows: int, most: int, folder: Folder, part: PartFile) -> pa.Table:
    if rows <= most:
        return read_parquet(folder, part, columns)
    table = read_parquet(folder, part, all_columns)
    hashes = hash_columns([table.column(name) for name in all_columns], table.num_rows)
    return table.select(columns).filter(pa.array(in_sample(hashes, rows, most)))


def fold_keys(table: pa.Table, data: DataSpec) -> NDArray[np.uint64]:
    """Return the key that decides a row's fold: from its features, so that equal rows are in one fold."""
    return to_keys(hash_columns([table.column(name) for name in data.features], table.num_rows), _FOLD_SEED)


@dataclass(frozen=True)
class Fitted:
    """What preparing a part needs; plain data, pickled to where it is done."""

    data: DataSpec
    state: str
    """JSON."""
    signature: str
    """JSON."""
    classes: tuple[str, ...]
    """Of the label."""


def write_prepared(
    fitted: Fitted, source: Folder, target: Folder, index: int, item: tuple[str, PartFile]
) -> dict[str, Any]:
    """Write the model input of one part of a split; returns facts about the file."""
    split, part = item
    group = fitted.data.ranking.group_by if fitted.data.ranking else None
    kept = (fitted.data.label, group)
    wanted = [name for name in fitted.data.all_columns if name in fitted.data.features or name in kept]
    table = read_parquet(source, part, wanted)
    preparer = _open_preparer(fitted.state, fitted.signature)
    is_training = split == "train"
    if is_training and preparer.is_folded:
        table = table.append_column(FOLD_KEY, pa.array(fold_keys(table, fitted.data)))
    prepared = preparer(table, is_training)
    if fitted.data.label is not None:
        prepared = prepared.append_column(LABEL, _encode_label(table, fitted.data, fitted.data.label, fitted.classes))
    if group is not None:
        prepared = prepared.append_column(GROUP, table.column(group))
    name, row_bytes = f"{split}/{part_name(index, 'parquet')}", _row_bytes(fitted.state)
    return target.write_parquet(name, prepared, max(1, _GROUP_BYTES // row_bytes)).model_dump()


@lru_cache(maxsize=4)
def _row_bytes(state: str) -> int:
    return max(1, sum(given.row_bytes for given in inputs_of(FeatureState.model_validate_json(state))))


def _encode_label(table: pa.Table, data: DataSpec, label: str, classes: Sequence[str]) -> pa.Array | pa.ChunkedArray:
    if data.tags_label is not None:
        labels_NC = encode_tags(table.column(label), data.tags_label, classes)
        return pa.FixedSizeListArray.from_arrays(pa.array(labels_NC.ravel()), len(classes))
    return pa.array(encode_labels(table, label, classes)) if data.class_label is not None else table.column(label)


@lru_cache(maxsize=4)
def _open_preparer(state: str, signature: str) -> Preparer:
    """Return the preparer that all tasks in a process share: its sessions take longer to open than a small part to prepare."""
    return Preparer(FeatureState.model_validate_json(state), Signature.model_validate_json(signature))


def inputs_of(state: FeatureState) -> tuple[ModelInput, ...]:
    """Describe what the features give to a model."""
    of_ids: dict[str, dict[str, Any]] = {}
    for text in ids_of(state).values():
        of_ids[TOKENS] = {"num_ids": text.num_ids, "padding_id": text.pad_id, "unknown_id": text.unknown_id}
    if columns := category_ids_of(state):
        counts = [category.num_ids for category in columns.values()]
        of_ids[IDS] = {"num_ids": sum(counts), "columns": tuple(columns), "column_ids": tuple(counts)}
    return tuple(
        ModelInput(name=output.name, shape=output.shape, **of_ids.get(output.name, {})) for output in outputs_of(state)
    )


Split = tuple[dict[str, NDArray[Any]], NDArray[Any]]
"""The model inputs of a split by name, rows first, in the order of ``FeatureSet.inputs``, and of each row the class index (int64),
the number or the series (float64), or 0 and 1 for each class that is a tag (float32); zeros without a label."""


def load_split(feature_set: FeatureSet, split: str, ctx: RunContext) -> Split:
    """Read a split into memory."""
    return split_of(read_parts(folder_of(feature_set, ctx), feature_set.splits[split]), load_state(feature_set))


def split_of(table: pa.Table, state: FeatureState | None = None) -> Split:
    """Return prepared rows as a model takes them; without a state the labels alone."""
    y = _to_labels(table.column(LABEL)) if LABEL in table.column_names else np.zeros(table.num_rows, np.int64)
    return {} if state is None else to_arrays(table, state), y


def feature_names(feature_set: FeatureSet) -> tuple[str, ...]:
    """Return what stands at each place of the flat input; empty where there is none."""
    return next((output.columns for output in outputs_of(load_state(feature_set)) if output.columns), ())


def load_state(feature_set: FeatureSet) -> FeatureState:
    """Return the fitted state."""
    return FeatureState.model_validate_json((feature_set.folder / "state.json").read_bytes())
