"""Score a dataset of any size into a folder: each record once, however often the command is killed and given again.

plan.json                    written first: which package and input it is for, and the parts of the input
predictions/PART.parquet     ``file`` and ``line`` of each record, and its outputs
refused/PART.parquet         the records that cannot be scored, each with its reason
work/                        which parts are done; gone when all are
manifest.json                written last: all files with their rows and digests, and the counts

Threads of this process do it, or tasks of Ray Data, with the same function. A part's files have a name that follows from part
and package, and hold the same whoever writes them: a part that is done twice, after a kill, is there once.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.artifacts.predictor import Predictor, to_predictions
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.store import MANIFEST, WORK, Store, open_filesystem
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.commands.score import SUFFIXES, features_of, run_each, source_of, unknown_columns
from lepton_ray.core.errors import ArtifactError, DataError
from lepton_ray.core.files import sha256_json
from lepton_ray.core.text import without_credentials
from lepton_ray.data.block import DETAIL, LINE, REASON, SOURCE, TEXT, RawBlock
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.connectors.base import Connector, Part
from lepton_ray.data.connectors.filesystems import COMPRESSED, list_files, open_location
from lepton_ray.data.parts import Folder
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.blocks import Mapper, in_groups
from lepton_ray.stages.context import RunContext

VERSION = 2
_PLAN = "plan.json"
_FOLDERS = ("predictions", "refused")
_LOCKS = ("lock", "lease.json")
_REFUSED = pa.schema(
    {"file": pa.string(), "line": pa.int64(), "reason": pa.string(), "error": pa.string(), "text": pa.large_string()}
)
_NOT_FINITE = "not_finite"

OpenModel = Callable[[], ModelPackage]


def score_dataset(
    open_model: OpenModel,
    path: str,
    output: str,
    use_ray: bool,
    update: Callable[[str], None],
    tell_unknown: Callable[[list[str]], object] = lambda names: None,
) -> tuple[int, int]:
    """Score all records of a file, a folder or a URI; returns how many were scored and how many refused.

    Given again after a kill it does the parts that are missing; given again when all is done it does nothing.

    Args:
        open_model: Opens the package; also called on the cluster's other machines.
        path: What ``data.source.uri`` takes; a folder must hold files of one kind.
        output: Folder or URI, new or that of the same command before; every machine of the cluster must reach it.
        use_ray: Whether Ray Data does it whatever the size.
        update: Told how far it is.
        tell_unknown: As of ``score_file``.

    Raises:
        ArtifactError: If the package is damaged, or the folder is in use or for another package or input.
        DataError: If the input cannot be read, has no records, or changes meanwhile.
    """
    package = open_model()
    filesystem, root = open_filesystem(output)
    root = root.rstrip("/")
    _make_folder(filesystem, root, path, output)
    data = _data_spec(package, path).model_copy(update={"engine": "ray" if use_ray else "auto"})
    connector = open_connector(data)
    if unknown := unknown_columns(connector, package.signature):
        tell_unknown(unknown)
    job = _describe_job(package, data, connector)
    folder = Folder(filesystem, root)
    with Store(filesystem, root).lock():
        plan = _plan(folder, job, connector)
        if not folder.has(MANIFEST):
            _keep(package)
            ctx = _context(folder, package.name, output, update)
            score = partial(_score_part, open_model, package.digest, data, connector, folder)
            facts = Mapper(data, connector.size_bytes(), ctx).map_resumable(
                "scoring", score, [Part(where) for where in plan["parts"]], _count
            )
            if job != _describe_job(package, data, open_connector(data)):
                raise DataError(f"{path} must stay as it is while it is scored. Score it again, into another folder")
            manifest = _manifest(job, facts, path)
            _check_files(folder, manifest)
            folder.write_json(MANIFEST, manifest)
        manifest = folder.read_json(MANIFEST)
        _check_files(folder, manifest)
        _clear(folder)
        counts = manifest["counts"]
    return counts["scored"], counts["refused"]


def _data_spec(package: ModelPackage, path: str) -> DataSpec:
    """The features of the training with ``path`` as their source."""
    trained = package.lineage["spec"]["data"]
    if trained["source"]["kind"] == "image_folder":
        return features_of(trained, {"kind": "image_folder", "uri": path}, path)
    suffixes = [suffix for known in SUFFIXES.values() for suffix in known]
    names = [file.path for file in list_files(*open_location(path), (*suffixes, *_packed(suffixes)))]
    if not names:
        raise DataError(f"the input must hold files that end in {', '.join(suffixes)}, got none at {path!r}. Check it")
    first, *others = ({**source_of(name), "uri": path} for name in names)
    if other := next((other for other in others if other != first), None):
        raise DataError(
            f"the input must hold files of one kind, got {first['kind']} and {other['kind']} below {path!r}, "
            "or columns divided in two ways. Score them one after the other"
        )
    return features_of(trained, first, path)


def _packed(suffixes: Sequence[str]) -> Iterator[str]:
    return (suffix + packed for suffix in suffixes for packed in COMPRESSED)


def _make_folder(filesystem: pafs.FileSystem, root: str, path: str, output: str) -> None:
    """Make the output folder; not in the input, which it would change."""
    source = open_location(path)[1].rstrip("/")
    if f"{root}/".startswith(f"{source}/"):
        raise ArtifactError(f"--output must not lie in the input {path!r}, got {output!r}. Choose another folder")
    try:
        filesystem.create_dir(root, recursive=True)
    except OSError as error:
        raise ArtifactError(
            f"--output must be a folder that can be written, got {output!r} ({error}). Choose another"
        ) from error


def _describe_job(package: ModelPackage, data: DataSpec, connector: Connector) -> dict[str, Any]:
    """What tells one job from another; no secret."""
    source = data.source.model_dump(mode="json", exclude={"uri"})
    digest = sha256_json([source, connector.fingerprint()])
    return {"version": VERSION, "package": package.digest, "input": digest}


def _plan(folder: Folder, job: dict[str, Any], connector: Connector) -> dict[str, Any]:
    """Return the plan of the folder, written now if it is new.

    Raises:
        ArtifactError: If the folder is for another job, or holds other files.
    """
    if folder.has(_PLAN):
        plan: dict[str, Any] = folder.read_json(_PLAN)
        if wrong := [name for name, value in plan["job"].items() if job[name] != value]:
            raise ArtifactError(
                f"{folder.path} must be for one package and one input, and another {' and '.join(wrong)} has been scored "
                f"into it ({plan['job'][wrong[0]]}, got {job[wrong[0]]}). Choose another folder"
            )
        return plan
    infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path))
    names = sorted(info.base_name for info in infos)
    if others := [name for name in names if name not in _LOCKS and not name.startswith(".")]:
        raise ArtifactError(
            f"{folder.path} must be a new folder, or one that this command has begun, got one with {others[0]!r}. "
            "Choose another"
        )
    plan = {"job": job, "parts": [part.where for part in connector.parts()]}
    folder.write_json(_PLAN, plan)
    return plan


def _context(folder: Folder, name: str, output: str, update: Callable[[str], None]) -> RunContext:
    return RunContext(
        name=name,
        seed=0,
        storage=output,
        folder=Path(folder.path),
        location=folder.path,
        filesystem=folder.filesystem,
        work_path=f"{folder.path}/{WORK}",
        is_local=folder.is_local,
        update=update,
    )


_loaded: dict[str, Predictor] = {}
"""The package that this process scores with, by its digest: a process of Ray scores many parts, and jobs."""
_loading = threading.Lock()


def _keep(package: ModelPackage) -> Predictor:
    _loaded.clear()
    return _loaded.setdefault(package.digest, Predictor(package))


def _predictor(open_model: OpenModel, digest: str) -> Predictor:
    with _loading:
        if (found := _loaded.get(digest)) is not None:
            return found
        package = open_model()
        if package.digest != digest:
            raise ArtifactError(
                f"{package.path} must be the package that the job has begun with ({digest[:12]}), got {package.version}. "
                "Put it back"
            )
        return _keep(package)


def _score_part(
    open_model: OpenModel, digest: str, data: DataSpec, connector: Connector, folder: Folder, index: int, part: Part
) -> dict[str, Any]:
    """Score and write one part; returns facts about its files, of which a part that cannot be cut has several."""
    predictor = _predictor(open_model, digest)
    name = f"{index:05d}-{sha256_json([part.where, digest])[:12]}"
    files: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _FOLDERS}
    reasons: Counter[str] = Counter()
    answered = (_score_block(block, data, predictor) for block in connector.read(part))
    for number, tables in enumerate(in_groups(answered)):
        reasons.update(tables[1].column("reason").to_pylist())
        for kind, table in zip(_FOLDERS, tables, strict=True):
            if table.num_rows:
                path = f"{kind}/{name}{f'-{number:05d}' if number else ''}.parquet"
                files[kind].append(folder.write_parquet(path, table).model_dump())
    return {"reasons": reasons, **files}


def _score_block(block: RawBlock, data: DataSpec, predictor: Predictor) -> tuple[pa.Table, pa.Table]:
    """Return the predictions and the refused records of a block, each in the order of the source."""
    good, bad = check_block(block, data)
    outputs, is_scored, errors = run_each(predictor, to_feeds(good, predictor.signature))
    places = {
        "file": good.column(SOURCE).cast(pa.string()),
        "line": good.column(LINE),
    }
    table = pa.table(places)
    mask = pa.array(is_scored)
    scored = table.filter(mask)
    for name, column in _to_columns(outputs, predictor.signature).items():
        scored = scored.append_column(name, column)
    removed = pa.table([bad.column(name) for name in (SOURCE, LINE, REASON, DETAIL, TEXT)], names=_REFUSED.names).cast(
        _REFUSED
    )
    if not errors:
        return scored, removed
    spoilt = table.filter(pc.invert(mask))
    facts = {
        **{name: spoilt.column(name) for name in ("file", "line")},
        "reason": pa.array([_NOT_FINITE] * len(errors)),
        "error": pa.array(errors),
        "text": pa.nulls(len(errors), pa.large_string()),
    }
    return scored, pa.concat_tables([removed, pa.table(facts).cast(_REFUSED)]).sort_by("line")


def _to_columns(outputs: Mapping[str, NDArray[Any]], signature: Signature) -> dict[str, pa.Array]:
    """Return what ``/predict`` answers, as columns: ``probabilities`` has a field for each class."""
    columns: dict[str, pa.Array] = {}
    if "probabilities" in outputs and "label" not in outputs:
        answers = to_predictions(outputs, signature.classes)
        columns["labels"] = pa.array([answer["labels"] for answer in answers], pa.list_(pa.string()))
    for name, values in outputs.items():
        if name == "probabilities":
            fields = [pa.array(values[:, position]) for position in range(len(signature.classes))]
            columns[name] = pa.StructArray.from_arrays(fields, names=list(signature.classes))
        elif values.ndim > 1:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        else:
            columns[name] = pa.array(values, pa.string() if values.dtype == object else None)
    return columns


def _count(facts: Mapping[str, Any]) -> int:
    return sum(int(file["rows"]) for kind in _FOLDERS for file in facts[kind])


def _manifest(job: dict[str, Any], facts: list[dict[str, Any]], path: str) -> dict[str, Any]:
    """Return what the finished folder says of itself; the same for the same job."""
    files = {kind: [file for fact in facts for file in fact[kind]] for kind in _FOLDERS}
    scored, refused = (sum(file["rows"] for file in files[kind]) for kind in _FOLDERS)
    reasons = sum((Counter(fact["reasons"]) for fact in facts), Counter[str]())
    if scored + refused == 0:
        raise DataError(f"the input must hold records, got none in {path!r}")
    counts = {
        "records": scored + refused,
        "scored": scored,
        "refused": refused,
        "reasons": dict(sorted(reasons.items())),
    }
    return {"job": job, "source": without_credentials(path), "counts": counts, **files}


def _check_files(folder: Folder, manifest: dict[str, Any]) -> None:
    """See that the folder has the manifest's files.

    Raises:
        ArtifactError: If one is gone or has another size.
    """
    files = [PartFile.model_validate(file) for kind in _FOLDERS for file in manifest[kind]]
    infos = folder.filesystem.get_file_info([f"{folder.path}/{file.name}" for file in files])
    for file, info in zip(files, infos, strict=True):
        if info.type != pafs.FileType.File or info.size != file.num_bytes:
            raise ArtifactError(f"{info.path} must be as it was written, but has changed. Score into another folder")


def _clear(folder: Folder) -> None:
    """Remove what only a job under way needs, and what killed processes have left."""
    filesystem = folder.filesystem
    for place in (folder.path, *(f"{folder.path}/{kind}" for kind in _FOLDERS)):
        for info in filesystem.get_file_info(pafs.FileSelector(place, allow_not_found=True)):
            if info.base_name.startswith(".") and info.base_name.endswith(".tmp"):
                filesystem.delete_file(info.path)
    if filesystem.get_file_info(f"{folder.path}/{WORK}").type != pafs.FileType.NotFound:
        filesystem.delete_dir(f"{folder.path}/{WORK}")
