"""The spec: what the user asks for, as frozen pydantic models. ``RunSpec`` is the root; ``load_spec`` reads YAML.

They are imported when they are asked for: a replica needs columns alone, and all models together take a fifth of a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lepton_ray.spec.load import load_spec, parse_spec
    from lepton_ray.spec.run import RunSpec

__all__ = ["RunSpec", "load_spec", "parse_spec"]

_MODULES = {"RunSpec": "run", "load_spec": "load", "parse_spec": "load"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
