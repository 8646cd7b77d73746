"""Where the files of a pretrained backbone are: in a folder, or on Hugging Face, from where they are downloaded once."""

import re
from pathlib import Path

from lepton_ray.core.errors import SpecError
from lepton_ray.core.extras import require
from lepton_ray.core.files import sha256_file
from lepton_ray.spec.backbone import CONFIG, FILES, KERAS_WEIGHTS, WEIGHTS
from lepton_ray.spec.model import PretrainedModel

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_backbone(place: str, model: PretrainedModel) -> Path:
    """Return the folder with the files; one from Hugging Face lies in its cache.

    Args:
        place: Of the model in the spec.
        model: The section.

    Raises:
        SpecError: If there is no such folder, and it cannot be downloaded.
        MissingExtraError: If it must be downloaded, and what does it is not installed.
    """
    folder = Path(model.backbone).expanduser()
    if folder.is_dir():
        return folder
    if not _NAME.fullmatch(model.backbone):
        raise SpecError(
            [
                f"{place}.backbone must be a folder, or OWNER/NAME on Hugging Face, got {model.backbone!r}. Check the path"
            ]
        )
    hub = require("huggingface_hub", f"{place}.backbone {model.backbone!r}, which is no folder here,")
    try:
        return Path(hub.snapshot_download(model.backbone, revision=model.revision, allow_patterns=list(FILES)))
    except Exception as error:  # of the library, of HTTP, of the connection or the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SpecError(
            [
                f"{place}.backbone must be a folder that is there, or a model that Hugging Face gives, got {model.backbone!r}, revision "
                f"{model.revision or 'main'} ({type(error).__name__}: {reason}). Check the name and the connection, or download the "
                "model and name its folder"
            ]
        ) from error


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that a backbone is built from."""
    return {name: sha256_file(folder / name) for name in (CONFIG, WEIGHTS, KERAS_WEIGHTS) if (folder / name).is_file()}
