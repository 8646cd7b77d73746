"""The sealed model package: the only thing that leaves training. No pickle; a digest for each file.

model.onnx            raw records in; out what `kinds.Target` has for the task
signature.json        columns, rules, tensors
golden_records.json   records of the test split, the body of a POST /predict
golden_outputs.json   what the training code gave for them, or the compressed model
reference.json        sketches of the training data, and of the answers for held-out rows, for drift
metrics.json          validation metrics
lineage.json          spec, digests and versions that it came from
MODEL_CARD.md         the same for people
prepare.onnx          with ``export.also`` only: raw records in, the input of the files below out
saved_model/, model.tflite  what ``export.also`` asked for
digests.json          SHA-256 of each file, and of this list
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.files import list_files, read_json, sha256_file, sha256_json, write_json

DIGESTS = "digests.json"


@dataclass(frozen=True)
class ModelPackage:
    """An opened package whose files are what was sealed."""

    path: Path
    digest: str
    signature: Signature
    lineage: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the run that made it."""
        return str(self.lineage["name"])

    @property
    def version(self) -> str:
        """First 12 hexadecimal digits of the digest."""
        return self.digest[:12]


def seal(folder: Path) -> str:
    """Write the digests of a package's files and return the package's digest."""
    files = {name: sha256_file(folder / name) for name in list_files(folder) if name != DIGESTS}
    digest = sha256_json(files)
    write_json(folder / DIGESTS, {"package": digest, "files": files})
    return digest


def open_package(path: str | Path) -> ModelPackage:
    """Open a package after checking every file.

    Raises:
        ArtifactError: If the folder is no package, or a file was changed, added or removed; names the file.
    """
    folder = Path(path)
    if not (folder / DIGESTS).is_file():
        what = f"it has no {DIGESTS}" if folder.exists() else "nothing is there"
        raise ArtifactError(
            f"{folder} must be a model package, but {what}. Give the folder that the export stage wrote"
        )
    digest = _verify(folder)
    try:
        signature = Signature.model_validate_json((folder / "signature.json").read_bytes())
        lineage = dict(read_json(folder / "lineage.json"))
        lineage["name"]
    except (ValidationError, ValueError, TypeError, KeyError, OSError) as error:
        raise ArtifactError(
            f"{folder} must be a model package of this version ({type(error).__name__}). Export it again"
        ) from error
    return ModelPackage(folder, digest, signature, lineage)


def _verify(folder: Path) -> str:
    try:
        digests = read_json(folder / DIGESTS)
        files: dict[str, str] = dict(digests["files"])
        digest = str(digests["package"])
    except (ValueError, KeyError, TypeError) as error:
        raise _changed(folder, DIGESTS) from error
    if sha256_json(files) != digest:
        raise _changed(folder, DIGESTS)
    present = set(list_files(folder)) - {DIGESTS}
    for name in sorted(files.keys() | present):
        if name not in present:
            raise ArtifactError(f"{folder / name} is missing from the package. Fetch or export it again")
        if name not in files:
            raise ArtifactError(f"{folder / name} does not belong to the package. Remove it")
        if sha256_file(folder / name) != files[name]:
            raise _changed(folder, name)
    return digest


def _changed(folder: Path, name: str) -> ArtifactError:
    return ArtifactError(f"{folder / name} has changed since the package was sealed. Fetch or export it again")
