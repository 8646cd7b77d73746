"""ONNX Runtime sends no usage reports and leaves nothing in the user's home, unless the user wants it to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = (
    "import importlib, os, sys; importlib.import_module(sys.argv[1]); print(os.environ.get('ORT_DISABLE_TELEMETRY'))"
)


def _import(module: str, home: Path, **environment: str) -> str:
    # not CI, which silences it
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-c", _CODE, module]
    done = subprocess.run(command, env={**kept, "HOME": str(home), **environment}, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("module", ["lepton_ray.artifacts.predictor", "lepton_ray.features.texts"])
def test_nothing_is_reported_and_nothing_left_at_home(module: str, tmp_path: Path) -> None:
    said = _import(module, tmp_path)
    assert list(tmp_path.rglob("*deviceid*")) == []
    assert said == "1"


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    assert _import("lepton_ray.core.settings", tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
