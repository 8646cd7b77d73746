"""Files that a description renders to: written into a folder, or held against what lies there."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from lepton_ray.core.errors import LeptonError
from lepton_ray.core.files import write_atomic


def mark(command: str) -> str:
    """Return what the files that a command writes say of themselves, in a comment before anything else."""
    return f"# Made by `{command}` from "


def write_all(texts: Mapping[str, str], folder: Path, command: str) -> list[Path]:
    """Write files into a folder, by name, and remove those that ``command`` has written there before and would no more."""
    for path in _left_over(texts, folder, command):
        path.unlink()
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]


def check_fresh(texts: Mapping[str, str], folder: Path, command: str) -> None:
    """Check that a folder has what ``write_all`` would leave there.

    Raises:
        LeptonError: If a file is missing, differs, or would be removed; names all of them.
    """
    stale = [folder / name for name, text in texts.items() if _content(folder / name) != text.encode()]
    stale += _left_over(texts, folder, command)
    if stale:
        raise LeptonError(f"{', '.join(map(str, stale))} must be what the description says. Run {command}")


def _left_over(texts: Mapping[str, str], folder: Path, command: str) -> Iterator[Path]:
    made = mark(command).encode()
    others = [path for path in sorted(folder.glob("*.yaml")) if path.name not in texts]
    return (path for path in others if made in b"\n".join((_content(path) or b"").splitlines()[:2]))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
