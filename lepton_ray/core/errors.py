"""Every error a user can meet, each with the exit status that the command line gives for it.

A message names the place, the rule, the value and the next action:
``train.global_batch_size must be a multiple of train.num_workers (3), got 10. Use 9 or 12.``
All of them survive pickling, because Ray carries them between processes.
"""

from collections.abc import Sequence
from typing import Any


class LeptonError(Exception):
    """Base of all errors raised on purpose; ``exit_status`` is what the command line exits with."""

    exit_status = 1


class SpecError(LeptonError, ValueError):
    """The spec is wrong; holds every problem found, not only the first."""

    exit_status = 2

    def __init__(self, problems: Sequence[str], source: str = "spec") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{source} has {count}:\n" + "\n".join(f"  {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type["SpecError"], tuple[tuple[str, ...], str], dict[str, Any]]:
        """Rebuild from the problems: the joined message is not an argument of ``__init__``."""
        return type(self), (self.problems, self.source), vars(self)


class MissingExtraError(LeptonError, ImportError):
    """An optional library is not installed."""


class DataError(LeptonError, ValueError):
    """The data cannot be used as the spec says; what was read lies in quarantine with its reasons."""


class RecordError(LeptonError, ValueError):
    """A record sent for prediction breaks the package's signature."""


class ArtifactError(LeptonError):
    """A stored artifact is missing, changed, or in use by another run."""


class InUseError(ArtifactError):
    """Another run holds the run directory."""


class EngineError(LeptonError, RuntimeError):
    """Ray could not do what was asked; ``retryable`` says whether trying again can help."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        self.retryable = retryable
        super().__init__(message)

    def __reduce__(self) -> tuple[type["EngineError"], tuple[str, bool], dict[str, Any]]:
        """Keep ``retryable`` across processes."""
        return type(self), (str(self), self.retryable), vars(self)


class GrafanaError(LeptonError):
    """Grafana cannot be reached, or refused what was asked."""


class BudgetError(LeptonError):
    """What the spec allows to be spent is spent: the run stopped where a later one, allowed more, goes on."""

    exit_status = 4


class QualityGateError(LeptonError):
    """A gate (parity, quality) was not met: nothing is promoted and what is serving stays."""

    exit_status = 3
