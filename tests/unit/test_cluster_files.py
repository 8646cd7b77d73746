"""The files that clusters read: the launcher's against Ray's own schema and validation, serve_configs against ours."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from lepton_ray.stages.deploy import AppArgs

REPOSITORY = Path(__file__).parent.parent.parent
LAUNCHER = REPOSITORY / "cluster/ray/local.yaml"
SERVE_CONFIGS = sorted((REPOSITORY / "serve_configs").glob("*.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_launcher_file_is_what_ray_takes() -> None:
    config = load(LAUNCHER)
    validate_config(prepare_config(config))


def test_a_typo_in_the_launcher_file_would_be_found() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**load(LAUNCHER), "head_start_ray_comands": []}))


def test_launcher_distributes_the_token_and_starts_all_workers() -> None:
    config = load(LAUNCHER)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "RAY_enable_autoscaler_v2=0" in starts[0]


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=lambda path: path.stem)
def test_serve_configs_are_what_serve_and_the_application_take(path: Path) -> None:
    schema = ServeDeploySchema.model_validate(load(path))
    (application,) = schema.applications
    assert application.import_path == "lepton_ray.stages.deploy:build_app"
    arguments = AppArgs.model_validate(application.args)
    assert arguments.model == f"models:/{path.stem}@champion"
    assert json.loads(arguments.model_dump_json())["serve"]["autoscaling"]["max_replicas"] == 4


def test_every_spec_has_a_serve_config() -> None:
    specs = sorted(path.stem for path in (REPOSITORY / "jobs/specs").glob("*.yaml"))
    assert specs == [path.stem for path in SERVE_CONFIGS]
