"""Functions of the user's own, named in a spec by their import path."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lepton_ray.core.errors import SpecError


def load_function(path: str, place: str) -> Callable[..., Any]:
    """Import ``package.module:function``; modules in the working directory are found too.

    Args:
        path: The import path.
        place: Where the spec has it, for the message.

    Raises:
        SpecError: If it cannot be imported, or is nothing that can be called.
    """
    module_name, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a user's module lies beside the specs, and the command's path does not have it
    try:
        function = getattr(importlib.import_module(module_name), name)
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
