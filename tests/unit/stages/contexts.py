"""The context of a stage on this machine, for the tests of stages."""

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lepton_ray.stages.context import RunContext


def context_in(folder: Path, seed: int = 0, **changes: Any) -> RunContext:
    """Return the context of a stage whose artifact lies in a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "name": "n",
        "seed": seed,
        "storage": "s",
        "folder": folder,
        "location": str(folder),
        "filesystem": pafs.LocalFileSystem(),
        "work_path": f"{folder}/work",
        "is_local": True,
        "update": lambda text: None,
    }
    return RunContext(**{**given, **changes})
