"""The spec: what the user asks for, as frozen pydantic models. ``RunSpec`` is the root; ``load_spec`` reads YAML."""

from lepton_ray.spec.load import load_spec, parse_spec
from lepton_ray.spec.run import RunSpec

__all__ = ["RunSpec", "load_spec", "parse_spec"]
