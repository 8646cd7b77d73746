"""A package that a late stage needs is missed before the first one has begun."""

import importlib.util
from typing import Any

import pytest

from lepton_ray.core.errors import MissingExtraError
from lepton_ray.pipeline.plan import STAGES, preflight


@pytest.mark.parametrize(
    ("stage", "package"), [("evaluate", "sklearn"), ("evaluate", "matplotlib"), ("register", "mlflow")]
)
def test_a_missing_package_is_told_first(monkeypatch: pytest.MonkeyPatch, stage: str, package: str) -> None:
    spec: Any = None  # neither looks at it
    (chosen,) = [one for one in STAGES if one.name == stage]
    preflight(spec, [chosen])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more)
    )
    with pytest.raises(MissingExtraError, match=f"needs the package '{package}'.*pip install"):
        preflight(spec, [chosen])
