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
    """Empty local folder for the artifact's small files."""
    location: str
    """Folder in ``filesystem`` where the artifact stays: tasks write its parts there; ``folder`` may be a copy of it."""
    filesystem: FileSystem
    work_path: str
    """Folder in ``filesystem`` for what a killed stage resumes from; every machine of the cluster must reach it."""
    is_local: bool
    """Whether ``filesystem`` is this machine's."""
    update: Callable[[str], None]
    """Tells people how far the stage is."""

    @property
    def run_folder(self) -> str:
        """The run's folder in ``filesystem``, which holds ``STAGE/KEY``."""
        return self.location.rsplit("/", 2)[0]
