"""What a stage is given besides its sections and inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow.fs import FileSystem

from lepton_ray.core.errors import BudgetError
from lepton_ray.core.spent import Spent, within_budget
from lepton_ray.data.parts import Folder


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
    over_budget: Callable[[], str] = within_budget
    """Says why the run must stop; empty while it need not. Long work asks where it could go on from."""
    spent: Callable[[], Mapping[str, Spent]] = dict
    """What the run has taken so far, by stage."""
    work: dict[str, float] = field(default_factory=dict)
    """How much there was to do, as the stage notes it (``rows``, ``epochs``): later plans judge their time by it."""

    def check_budget(self) -> None:
        """Stop where the budget is spent.

        Raises:
            BudgetError: If it is.
        """
        if over := self.over_budget():
            raise BudgetError(over)

    @property
    def output(self) -> Folder:
        """Where the artifact's parts stay."""
        return Folder(self.filesystem, self.location)

    @property
    def scratch(self) -> Folder:
        """Where what a killed stage resumes from lies."""
        return Folder(self.filesystem, self.work_path)

    @property
    def run_folder(self) -> str:
        """The run's folder in ``filesystem``, which holds ``STAGE/KEY``."""
        return self.location.rsplit("/", 2)[0]
