"""Score a file with a package, and describe one: what the command line does without Ray and without a run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.package import DIGESTS, open_package
from lepton_ray.artifacts.predictor import Predictor, to_predictions
from lepton_ray.artifacts.signature import Feeds, Signature
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.core.errors import DataError, RecordError
from lepton_ray.core.files import read_json
from lepton_ray.core.text import show
from lepton_ray.data.block import DETAIL, LINE, SOURCE, RawBlock
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.connectors.base import Connector
from lepton_ray.data.connectors.filesystems import COMPRESSED
from lepton_ray.data.connectors.json_lines import JsonLinesConnector
from lepton_ray.spec.data import DataSpec

SUFFIXES = {
    "csv": (".csv", ".tsv", ".tab"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc", ".arrows"),
    "orc": (".orc",),
}
_COMPRESSIBLE = ("csv", "jsonl")
_TAB_SEPARATED = (".tsv", ".tab")


def source_of(path: str) -> dict[str, Any]:
    """Return the source section for a file, by its suffix, or for a folder of image folders.

    Raises:
        DataError: If the suffix is not known.
    """
    if Path(path).is_dir():
        return {"kind": "image_folder", "uri": path}
    name = path.lower()
    plain = next((name.removesuffix(packed) for packed in COMPRESSED if name.endswith(packed)), name)
    for kind, suffixes in SUFFIXES.items():
        if (plain if kind in _COMPRESSIBLE else name).endswith(suffixes):
            is_tab_separated = plain.endswith(_TAB_SEPARATED)
            return {"kind": kind, "uri": path, **({"delimiter": "\t"} if is_tab_separated else {})}
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    packed = f"{' and '.join(_COMPRESSIBLE)} may be packed: {', '.join(COMPRESSED)}"
    raise DataError(f"the file must end in {known} ({packed}), got {path!r}. Rename or convert it")


def score_file(
    package: str,
    path: str,
    write: Callable[[dict[str, Any]], object],
    tell_unknown: Callable[[list[str]], object] = lambda names: None,
) -> tuple[int, int]:
    """Write an answer for each record of a file and return how many were scored and how many refused.

    An answer has ``line`` of the record (and ``file`` of an image) and either a prediction or ``error``. First it is told which
    columns the model does not know, if there are any: they are left out.

    Raises:
        ArtifactError: If the package is damaged.
        DataError: If the file cannot be read, or is of another kind than the package takes.
    """
    opened = open_package(package)
    predictor = Predictor(opened)
    data = features_of(opened.lineage["spec"]["data"], source_of(path), path)
    connector = open_connector(data)
    if unknown := unknown_columns(connector, predictor.signature):
        tell_unknown(unknown)
    scored = refused = 0
    for part in connector.parts():
        for block in connector.read(part):
            for answer in _score_block(block, data, predictor):
                write(answer)
                scored, refused = (scored, refused + 1) if "error" in answer else (scored + 1, refused)
    if scored + refused == 0:
        raise DataError(f"the file must hold records, got none in {path!r}")
    return scored, refused


def unknown_columns(connector: Connector, signature: Signature) -> list[str]:
    """Return the columns that the training data did not have; of JSON lines those of the first records.

    Raises:
        DataError: If it had none of them.
    """
    records = connector.first_records() if isinstance(connector, JsonLinesConnector) else [connector.columns() or {}]
    known = {*signature.columns, *signature.unused}
    given = dict.fromkeys(name for record in records for name in record)
    unknown = [name for name in given if name not in known]
    if given and len(unknown) == len(given):
        rule = f"the records must have columns of the training data, such as {show(next(iter(signature.columns)))}"
        is_json = isinstance(connector, JsonLinesConnector)
        way_out = "A JSON file has an object in each line, and nothing around them" if is_json else "Check the file"
        raise DataError(f"{rule}, got only {show(unknown)}. {way_out}")
    return unknown


def features_of(trained: dict[str, Any], source: dict[str, Any], path: str) -> DataSpec:
    """The data section of the training, with the source to score and no label: records to score need not have one.

    Raises:
        DataError: If the package takes images and the source has none, or the other way round, or lacks the windows that it takes.
    """
    takes_images = trained["source"]["kind"] == "image_folder"
    if takes_images != (source["kind"] == "image_folder"):
        kind = "a folder of images" if takes_images else "a file of records"
        raise DataError(f"the package takes {kind}, got {path!r}. Give what it was trained on")
    if source["kind"] == trained["source"]["kind"] == "csv":
        written = {name: trained["source"][name] for name in ("delimiter", "encoding") if name in trained["source"]}
        source = {**written, **source}
    features = DataSpec.model_validate({**trained, "source": source})
    columns, windows = dict(features.features), features.windows
    data = features.model_copy(update={"columns": columns, "windows": {}, "label": None, "engine": "local"})
    given = open_connector(data).columns() if windows else None
    if given and (
        lacking := [f"{name} ({windows[name].length})" for name in windows if name in columns.keys() - given]
    ):
        raise DataError(
            f"the records must bring the values of {', '.join(lacking)}, a list in each, got no such column in {path!r}: "
            "windows are cut out of rows for training only. Give JSON lines with the lists"
        )
    return data


def _score_block(block: RawBlock, data: DataSpec, predictor: Predictor) -> Iterator[dict[str, Any]]:
    good, bad = check_block(block, data)
    outputs, is_scored, errors = run_each(predictor, to_feeds(good, predictor.signature))
    predictions = to_predictions(outputs, predictor.signature.classes)
    scored, spoilt = (_places(good.filter(pa.array(mask)), data) for mask in (is_scored, ~is_scored))
    lines = [{**place, **answer} for place, answer in zip(scored, predictions, strict=True)]
    lines += [{**place, "error": text} for place, text in zip(spoilt, errors, strict=True)]
    details = bad.column(DETAIL).to_pylist()
    lines += [{**place, "error": text} for place, text in zip(_places(bad, data), details, strict=True)]
    return iter(sorted(lines, key=lambda line: (line.get("file", ""), line["line"])))


def run_each(predictor: Predictor, feeds: Feeds) -> tuple[Feeds, NDArray[np.bool_], list[str]]:
    """Return the outputs of the rows that have some, which rows these are, and why each of the others has none.

    Rows are halved until those are found that overflow the model's arithmetic.
    """
    rows = len(next(iter(feeds.values())))
    try:
        return predictor.run(feeds), np.ones(rows, bool), []
    except RecordError as error:
        if rows == 1:
            nothing = predictor.run({name: values[:0] for name, values in feeds.items()})
            return nothing, np.zeros(1, bool), [str(error).removeprefix("records[0] ")]
    half = rows // 2
    parts = [{name: values[cut] for name, values in feeds.items()} for cut in (slice(half), slice(half, None))]
    (first, is_first, errors), (second, is_second, more) = (run_each(predictor, part) for part in parts)
    outputs = {name: np.concatenate([first[name], second[name]]) for name in first}
    return outputs, np.concatenate([is_first, is_second]), errors + more


def _places(block: pa.Table, data: DataSpec) -> list[dict[str, Any]]:
    """Where each record came from."""
    is_image = data.source.kind == "image_folder"
    files, lines = block.column(SOURCE).to_pylist(), block.column(LINE).to_pylist()
    return [
        {"file": file, "line": line} if is_image else {"line": line} for file, line in zip(files, lines, strict=True)
    ]


def describe(package: str) -> dict[str, Any]:
    """Return what a package takes, gives and came from."""
    opened = open_package(package)
    signature = opened.signature
    return {
        "name": opened.name,
        "version": opened.version,
        "digest": opened.digest,
        "path": str(opened.path),
        "inputs": [tensor.model_dump() for tensor in signature.inputs],
        "outputs": [tensor.model_dump() for tensor in signature.outputs],
        "classes": list(signature.classes),
        "columns": {name: column.model_dump() for name, column in signature.columns.items()},
        "metrics": read_json(opened.path / "metrics.json"),
        "lineage": opened.lineage,
        "files": read_json(opened.path / DIGESTS)["files"],
    }
