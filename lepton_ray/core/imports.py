"""Functions of the user's own, named in a spec by their import path."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

from lepton_ray.core.errors import SpecError
from lepton_ray.core.files import sha256_file

_loading = RLock()
_loaded: dict[str, str | None] = {}
"""Digests of the files of modules when they were loaded here, by name."""


def load_function(path: str, place: str) -> Callable[..., Any]:
    """Import ``package.module:function``; modules in the working directory are found too, and loaded again when their file changes.

    Args:
        path: The import path.
        place: Where the spec has it, for the message.

    Raises:
        SpecError: If it cannot be imported, or is nothing that can be called.
    """
    module_name, _, name = path.partition(":")
    _look_here()
    try:
        function = getattr(_import(module_name), name)
    except Exception as error:  # a user's module may raise anything when it is imported
        raise SpecError(
            [
                f"{place} must name a function that can be imported, got {path!r} ({type(error).__name__}: {error}). "
                "Check the module and the name"
            ]
        ) from error
    if not callable(function):
        raise SpecError([f"{place} must name a function, got {path!r}, a {type(function).__name__}. Name a function"])
    return function  # type: ignore[no-any-return]


def source_digest(path: str) -> str | None:
    """Return the SHA-256 of the file of the module in an import path, which is not imported; None if there is none.

    What the module imports does not count.
    """
    _look_here()
    return _digest(path.partition(":")[0])


def _import(module_name: str) -> ModuleType:
    """Import a module, or have it loaded again where its file is another one: what is done with it is kept under the file's digest."""
    with _loading:
        digest = _digest(module_name)
        module = importlib.import_module(module_name)
        if digest != _loaded.setdefault(module_name, digest):
            module = importlib.reload(module)
            _loaded[module_name] = digest
        return module


def _digest(module_name: str) -> str | None:
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None
    file = found and found.origin
    return sha256_file(Path(file)) if file and Path(file).is_file() else None


def _look_here() -> None:
    """Have modules found that lie beside the specs: the command's path does not have the working directory."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
