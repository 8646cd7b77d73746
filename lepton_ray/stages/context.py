"""What a stage is given besides its sections and inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class RunContext:
    """Context of one stage in one run."""

    name: str
    """Name of the run."""
    seed: int
    storage: str
    """Where all runs lie, as the spec has it."""
    folder: Path
    """Empty local folder for the artifact's files."""
    location: str
    """Where these files stay, for messages; ``folder`` may be a copy that goes with the run."""
    filesystem: FileSystem
    work_path: str
    """Folder in ``filesystem`` for what a killed stage resumes from; every machine of the cluster must reach it."""
    is_local: bool
    """Whether ``work_path`` is a path of this machine."""
    update: Callable[[str], None]
    """Tells people how far the stage is."""
