"""export: weights and features -> the sealed model package, held against the training code."""

import math
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lepton_ray import __version__
from lepton_ray.artifacts.kinds import Checkpoint, Dataset, FeatureSet, PackageRef, Target
from lepton_ray.artifacts.package import open_package, seal
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.reference import REFERENCE
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import to_feeds, to_records
from lepton_ray.core.errors import EngineError, QualityGateError
from lepton_ray.core.extras import require
from lepton_ray.core.files import list_files, read_json, write_json
from lepton_ray.core.settings import references
from lepton_ray.core.status import HTTP_OK
from lepton_ray.core.text import without_credentials
from lepton_ray.export.golden import PARITY, check_parity, choose_rows, outputs_to_json, read_answer, spread
from lepton_ray.export.join import with_threshold
from lepton_ray.export.model_card import write_card
from lepton_ray.features.reference import output_sketches
from lepton_ray.models.catalog import build_model
from lepton_ray.serve.endpoint import Endpoint, Limits, NoMeter
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import Framework, Model, library_of
from lepton_ray.spec.release import CompressionKind, ExportSpec, ServeSpec
from lepton_ray.stages import held_out
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.train_data import target_of, without_normal
from lepton_ray.train.frameworks import load_library

VERSION = 12
_SECRET = re.compile("auth|token|secret|password|passwd|cookie|api.?key|access.?key", re.IGNORECASE)
WITHOUT_EFFECT = {"serve": set(ServeSpec.model_fields) - {"max_request_bytes", "max_rows_per_request"}}
_ROWS_AT_ONCE = 4096
_MAX_REFERENCE_ROWS = 20_000
_ROUNDINGS = 8 * float(np.finfo(np.float32).eps)
_EXPORTERS = {"torch": "lepton_ray.export.to_onnx", "keras": "lepton_ray.export.keras_to_onnx"}
_PACKAGES = {"torch": ("torch", "onnx", "onnxruntime"), "keras": ("tensorflow", "keras", "onnx", "onnxruntime")}


def export(
    data: DataSpec,
    export: ExportSpec,
    serve: ServeSpec | None,
    dataset: Dataset,
    feature_set: FeatureSet,
    checkpoint: Checkpoint,
    ctx: RunContext,
) -> PackageRef:
    """Export, seal and check.

    Raises:
        QualityGateError: If the package does not answer as the training code does, or compressed too differently.
        EngineError: If nothing in it can be compressed.
    """
    framework: Framework = read_json(checkpoint.folder / "train.json")["framework"]
    exporter = require(_EXPORTERS[library_of(framework)], "exporting")
    package = ctx.folder / "package"
    package.mkdir()
    signature = Signature.model_validate_json((feature_set.folder / "signature.json").read_bytes())
    target = target_of(feature_set)
    model = _load_model(checkpoint, feature_set, target, framework)
    if target.task == "anomaly_detection":
        target = target.model_copy(update={"threshold": _find_threshold(exporter, model, target, feature_set, ctx)})
    test, places = held_out.sample(dataset, "test", ctx)
    rows = choose_rows(test, signature, export.golden_rows)
    inputs = list(held_out.take_prepared(feature_set, "test", places[rows].tolist(), ctx)[0].values())
    expected = exporter.predict(model, target, inputs)  # of what was trained, before anything is merged for the graph
    graph = exporter.export_model(model, feature_set.inputs, onnx.load(feature_set.folder / "prep.onnx"), target)
    ctx.update("graph exported")
    (package / "model.onnx").write_bytes(graph.SerializeToString())
    golden = test.take(pa.array(rows))
    outputs = outputs_to_json(expected, target)
    write_json(package / "golden_records.json", {"records": to_records(golden, signature)}, indent=None)
    write_json(package / "golden_outputs.json", outputs)
    parity: dict[str, float] = {}
    for kind in export.also:
        got = outputs_to_json(exporter.write_extra(kind, model, target, package)(*inputs), target)
        parity[kind] = check_parity(f"the package's {kind}", got, outputs, export.parity_tolerance)
    if export.also:
        shutil.copyfile(feature_set.folder / "prep.onnx", package / "prepare.onnx")
    _write_facts(package, data, dataset, feature_set, checkpoint, ctx)
    seal(package)
    parity["package"] = _hold("the package", package, golden, outputs, export.parity_tolerance)[1]
    if export.compress is not None:
        _compress(package, feature_set, dataset, export.compress.kind, ctx)
        if target.task == "anomaly_detection":
            _move_threshold(package, target, feature_set, dataset, ctx)
        bound = export.compress.max_difference
        outputs, parity["compressed"] = _hold(
            "the compressed package", package, golden, outputs, bound, "export.compress.max_difference"
        )
        write_json(package / "golden_outputs.json", outputs)
        seal(package)
    _add_answers(package, [held_out.sample(dataset, "val", ctx)[0], test])
    digest = seal(package)
    if serve is not None:
        body = (package / "golden_records.json").read_bytes()
        asked = _ask(Predictor(open_package(package)), serve, body)
        parity["http"] = check_parity("the application", asked, outputs, export.parity_tolerance)
    size = sum((package / name).stat().st_size for name in list_files(package))
    return PackageRef(package_digest=digest, parity=parity, num_bytes=size)


def _hold(
    place: str, package: Path, golden: pa.Table, outputs: dict[str, Any], tolerance: float, setting: str = PARITY
) -> tuple[dict[str, Any], float]:
    """Hold a sealed package against outputs for the golden rows, asked for together and each alone; returns its own, and how far they are apart."""
    predictor = Predictor(open_package(package))
    feeds = to_feeds(golden, predictor.signature)
    answer = predictor.run(feeds)
    difference = check_parity(place, answer, outputs, tolerance, setting)
    alone = [
        predictor.run({name: values[row : row + 1] for name, values in feeds.items()}) for row in range(len(golden))
    ]
    together = {name: np.concatenate([one[name] for one in alone]) for name in answer}
    if not (apart := check_parity(place, together, outputs, math.inf)) <= tolerance:
        raise QualityGateError(
            f"{place} must answer a row alone as it does beside others within {tolerance:g}, but differs by {apart:.3g}. Nothing was "
            "promoted. What a module of your own (model.module) makes of a row may depend on that row alone"
        )
    return {**outputs, **{name: values.tolist() for name, values in answer.items() if name in outputs}}, difference


def _compress(package: Path, feature_set: FeatureSet, dataset: Dataset, kind: CompressionKind, ctx: RunContext) -> None:
    """Put a smaller graph into a package, and seal it again."""
    compressing = require("lepton_ray.export.compress", "compressing")
    path = package / "model.onnx"
    before = path.stat().st_size
    places = spread(np.arange(dataset.split_rows["val"]), compressing.CALIBRATION_ROWS)
    feeds = to_feeds(held_out.take(dataset, "val", places.tolist(), ctx), open_package(package).signature)
    graph = compressing.compress(onnx.load(path), onnx.load(feature_set.folder / "prep.onnx"), kind, feeds)
    content = graph.SerializeToString()
    after = len(content)
    if after >= before:
        raise EngineError(
            f"export.compress.kind {kind!r} must make a smaller graph, but {before:,} bytes become {after:,}: what it adds to each layer is more "
            "than such small ones save. Take float16, or leave export.compress out: the training is kept"
        )
    path.write_bytes(content)
    lineage = read_json(package / "lineage.json")
    compression = {"kind": kind, "bytes_before": before, "bytes": after}
    write_json(package / "lineage.json", {**lineage, "compression": compression})
    _write_card(package)
    ctx.update(f"graph compressed: {before / 1024:.0f} KiB before, {after / 1024:.0f} after")
    seal(package)


def _find_threshold(exporter: Any, model: Any, target: Target, feature_set: FeatureSet, ctx: RunContext) -> float:
    """Return the score, a float32, that the wanted share of normal validation rows does not exceed, whatever stands beside them.

    It lies some roundings above theirs: equal rows have scores that differ in the last digit, by their places in a batch.
    """

    def score(x: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        values, starts = list(x.values()), range(0, len(next(iter(x.values()))), _ROWS_AT_ONCE)
        parts = [exporter.predict(model, target, [some[i : i + _ROWS_AT_ONCE] for some in values]) for i in starts]
        return {target.output: np.concatenate(parts)}

    is_normal = target.is_normal(held_out.labels(feature_set, "val", ctx))
    if not is_normal.any():
        raise without_normal(target)
    return _threshold(held_out.answer_prepared(score, feature_set, "val", ctx)[target.output][is_normal], target)


def _move_threshold(package: Path, target: Target, feature_set: FeatureSet, dataset: Dataset, ctx: RunContext) -> None:
    """Find the threshold again, of the scores that a compressed package gives, and seal it again."""
    rows, places = held_out.sample(dataset, "val", ctx)
    predictor = Predictor(open_package(package))
    feeds = (to_feeds(rows.slice(i, _ROWS_AT_ONCE), predictor.signature) for i in range(0, len(rows), _ROWS_AT_ONCE))
    scores = np.concatenate([predictor.run(some)[target.output] for some in feeds])
    is_normal = target.is_normal(held_out.labels(feature_set, "val", ctx)[places])
    path = package / "model.onnx"
    path.write_bytes(with_threshold(onnx.load(path), _threshold(scores[is_normal], target)).SerializeToString())
    seal(package)


def _threshold(scores: NDArray[Any], target: Target) -> float:
    score_there = np.quantile(scores, target.quantile)
    return float(np.float32(score_there + abs(score_there) * _ROUNDINGS))


def _ask(predictor: Predictor, serve: ServeSpec, body: bytes) -> dict[str, Any]:
    """Ask the endpoint in this process, under the limits it will have: what serves is touched only after that."""
    response = Endpoint(predictor, predictor.package.name, Limits.of(serve), NoMeter()).ask("POST", "/predict", body)
    if response.code != HTTP_OK:
        raise QualityGateError(
            f"the application must answer the golden rows, got status {response.code}: {response.body.decode()[:300]}"
        )
    return read_answer(response.body, predictor.signature.classes)


def _add_answers(package: Path, tables: list[pa.Table]) -> None:
    """Add to the reference what a sealed package answers for held-out rows, evenly chosen of them."""
    predictor = Predictor(open_package(package))
    parts = []
    share = min(1.0, _MAX_REFERENCE_ROWS / max(sum(table.num_rows for table in tables), 1))
    for table in tables:
        rows = np.linspace(0, table.num_rows - 1, int(share * table.num_rows)).astype(np.int64)
        chosen = table.take(pa.array(rows))
        for start in range(0, chosen.num_rows, _ROWS_AT_ONCE):
            parts.append(predictor.run(to_feeds(chosen.slice(start, _ROWS_AT_ONCE), predictor.signature)))
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    reference = read_json(package / REFERENCE)
    write_json(package / REFERENCE, {**reference, "outputs": output_sketches(outputs)})


def _load_model(checkpoint: Checkpoint, feature_set: FeatureSet, target: Target, framework: Framework) -> Any:
    spec: Any = TypeAdapter(Model).validate_json((checkpoint.folder / "model.json").read_bytes())
    model = build_model(spec, feature_set.inputs, target.num_outputs, framework)
    load_library(framework).checkpoint.load_weights(model, checkpoint.folder / "model.safetensors")
    return model


def _write_facts(
    package: Path,
    data: DataSpec,
    dataset: Dataset,
    feature_set: FeatureSet,
    checkpoint: Checkpoint,
    ctx: RunContext,
) -> None:
    train = read_json(checkpoint.folder / "train.json")
    lineage = {
        "name": ctx.name,
        "seed": ctx.seed,
        "spec": {
            "data": _without_passwords(data.model_dump(mode="json")),
            "model": read_json(checkpoint.folder / "model.json"),
            "train": train,
        },
        "digests": {"dataset": dataset.digest, "feature_set": feature_set.digest, "checkpoint": checkpoint.digest},
        "ledger": dataset.ledger.model_dump(),
        "split_rows": dataset.split_rows,
        "epochs": len(checkpoint.history),
        "best_epoch": checkpoint.best_epoch,
        "versions": {
            "lepton_ray": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax",) if train["framework"] == name},
            **{name: require(name, "exporting").__version__ for name in _PACKAGES[library_of(train["framework"])]},
        },
    }
    shutil.copyfile(feature_set.folder / "signature.json", package / "signature.json")
    shutil.copyfile(feature_set.folder / REFERENCE, package / REFERENCE)
    write_json(package / "metrics.json", checkpoint.metrics)
    write_json(package / "lineage.json", lineage)
    _write_card(package)


def _without_passwords(data: dict[str, Any]) -> dict[str, Any]:
    """Return a data section as a package may carry it: with the names of variables, but no user and password in an address.

    Nor what stands in a header or an option that is called as secrets are.
    """

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            secret = {name for name, item in value.items() if _SECRET.search(name) and not references(str(item))}
            return {name: without(item) for name, item in value.items() if name not in secret}
        if isinstance(value, list):
            return [without(item) for item in value]
        return without_credentials(value) if isinstance(value, str) else value

    return {**data, "source": without(data["source"])}


def _write_card(package: Path) -> None:
    """Say for people what the other files of a package say."""
    signature = Signature.model_validate_json((package / "signature.json").read_bytes())
    card = write_card(signature, read_json(package / "lineage.json"), read_json(package / "metrics.json"))
    (package / "MODEL_CARD.md").write_text(card, encoding="utf-8")
