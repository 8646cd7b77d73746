"""How long work tells people where it is: a small protocol that the command line draws."""

from typing import Protocol


class Progress(Protocol):
    """Receives what a run does. Called from one thread at a time; must not raise."""

    def started(self, stage: str) -> None:
        """A stage begins."""

    def update(self, message: str) -> None:
        """The stage that runs has come further; replaces the message before."""

    def finished(self, stage: str, account: list[str], seconds: float, skipped: bool) -> None:
        """A stage is done; ``account`` has its results, a line each."""


class Silent:
    """Shows nothing."""

    def started(self, stage: str) -> None:
        """Ignore."""

    def update(self, message: str) -> None:
        """Ignore."""

    def finished(self, stage: str, account: list[str], seconds: float, skipped: bool) -> None:
        """Ignore."""
