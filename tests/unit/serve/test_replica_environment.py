"""What replicas' processes get of the job that deploys them."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as HOOK

from lepton_ray.artifacts.package import open_package
from lepton_ray.serve.endpoint import Limits
from lepton_ray.serve.on_ray import build_application
from lepton_ray.serve.replica.on_ray import Served
from lepton_ray.serve.rollout.holding import Serving
from lepton_ray.spec.release import ServeSpec
from lepton_ray.spec.rollout import ModelRef, TrafficPlan


def _environment(monkeypatch: pytest.MonkeyPatch, of_job: dict[str, Any]) -> dict[str, Any]:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=of_job))
    spec = ServeSpec()
    serving = Serving(open_package, "name", num_threads=1, limits=Limits.of(spec), max_waiting=1)
    served = Served(serving=serving, access_log=False)
    application = build_application(served, TrafficPlan(model=ModelRef(uri="package")), spec)
    found: dict[str, Any] = application._bound_deployment.ray_actor_options["runtime_env"]
    return found


def test_the_job_s_environment_is_that_of_its_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve gives it to deployments without one of their own, and takes the working folder alone for others."""
    of_job = {"working_dir": "gcs://code.zip", "env_vars": {"PYTHONPATH": "/code"}, "pip": ["humanize"]}
    found = _environment(monkeypatch, of_job)
    assert found.pop("env_vars").pop("PYTHONPATH") == "/code"
    assert found == {"working_dir": "gcs://code.zip", "pip": ["humanize"]}


def test_a_hook_of_the_job_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one."""
    of_job = {"worker_process_setup_hook": "code.hook", "env_vars": {HOOK: "code.hook"}}
    assert _environment(monkeypatch, of_job) == of_job


def test_the_hook_is_one_that_ray_can_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own function, in a process that has imported nothing: afterwards there is no pandas."""
    hook = _environment(monkeypatch, {})["env_vars"][HOOK]
    code = f"""
from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook
import importlib.util, sys
assert importlib.util.find_spec("pandas") is not None, "here it is"
assert "ray.serve" not in sys.modules
assert load_and_execute_setup_hook({hook!r}) is None
assert "ray.serve" not in sys.modules
try:
    import pandas
except ImportError:
    import ray.serve, pyarrow
    print(pyarrow.array([1, None]).null_count)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
