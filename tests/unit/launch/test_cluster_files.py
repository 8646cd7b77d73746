"""The files that clusters read: the launcher's, rendered from one description, and serve_configs."""

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from lepton_ray.core.errors import LeptonError, SpecError
from lepton_ray.launch import machines
from lepton_ray.launch.check import find_problems
from lepton_ray.launch.description import Description, load_description
from lepton_ray.launch.ray_yaml import COMMAND, build, render
from lepton_ray.launch.rendered import check_fresh, write_all
from lepton_ray.spec.load import parse_model
from lepton_ray.stages.deploy import AppArgs

REPOSITORY = Path(__file__).parent.parent.parent.parent
DESCRIPTION = REPOSITORY / "cluster/clusters.yaml"
FOLDER = REPOSITORY / "cluster/ray"
PLACES = ("local", "aws", "gcp", "azure")
SERVE_CONFIGS = sorted((REPOSITORY / "serve_configs").glob("*.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def description() -> Description:
    return load_description(DESCRIPTION)


def changed(**changes: Any) -> Description:
    return Description.model_validate({**load(DESCRIPTION), **changes})


def test_launcher_files_are_what_the_description_renders_to(description: Description) -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(PLACES)
    check_fresh(render(description, DESCRIPTION.name), FOLDER, COMMAND)


def test_a_stale_or_missing_file_is_named(description: Description, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "ray")
    with (tmp_path / "ray/aws.yaml").open("a") as file:
        file.write("max_workers: 9\n")
    (tmp_path / "ray/gcp.yaml").unlink()
    with pytest.raises(LeptonError, match=r"aws\.yaml, \S+gcp\.yaml must be what the description says"):
        check_fresh(render(description, DESCRIPTION.name), tmp_path / "ray", COMMAND)


def test_the_file_of_a_place_that_is_gone_is_stale_until_it_is_removed(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "ray")
    (tmp_path / "ray/mine.yaml").write_text("cluster_name: mine\n")
    texts = render(changed(azure=None), DESCRIPTION.name)
    with pytest.raises(LeptonError, match=r"^\S+azure\.yaml must be what the description says"):
        check_fresh(texts, tmp_path / "ray", COMMAND)
    (tmp_path / "ray/aws.yaml").write_bytes(b"\xff")
    write_all(texts, tmp_path / "ray", COMMAND)
    check_fresh(texts, tmp_path / "ray", COMMAND)
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == [
        "aws.yaml",
        "gcp.yaml",
        "local.yaml",
        "mine.yaml",
    ]


def test_folders_of_the_state_may_be_written_by_the_user_of_an_image() -> None:
    config = build(changed(gcs_storage={"kind": "rocksdb", "folder": "/var/lib/state"}))
    assert "mkdir -p /var/lib/state && chmod 777 /var/lib/state" in config["aws"]["initialization_commands"]
    assert "mkdir -p /var/lib/state" in config["local"]["setup_commands"]


def test_a_region_without_an_image_of_rays_wants_one() -> None:
    place = {**load(DESCRIPTION)["aws"], "region": "eu-north-1"}
    problems = find_problems(build(changed(aws=place))["aws"])
    assert [problem.partition(" must")[0] for problem in problems] == [
        f"available_node_types.{name}.node_config.ImageId" for name in ("head", "worker")
    ]
    assert not find_problems(build(changed(aws={**place, "machine_image": "ami-0123456789abcdef0"}))["aws"])


@pytest.mark.parametrize("place", PLACES)
def test_launcher_files_have_no_problem(place: str) -> None:
    assert find_problems(load(FOLDER / f"{place}.yaml")) == []


def test_every_place_has_the_same_software_token_and_sizes() -> None:
    configs = [load(FOLDER / f"{place}.yaml") for place in PLACES]
    for config in configs:
        assert config["file_mounts"] == configs[0]["file_mounts"]
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        (install,) = [command for command in config["setup_commands"] if "install" in command]
        assert 'install -q -c ~/lepton_ray/constraints.txt -e "$HOME/lepton_ray[all]"' in install
        assert any("export RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
        for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
            assert "--object-store-memory=4294967296 --object-spilling-directory=/tmp/lepton_ray_spill" in start
    images = {config["docker"]["image"].rpartition("-")[0] for config in configs[1:]}
    assert images == {f"rayproject/ray:{version('ray')}-py311"}
    disks = [
        configs[1]["available_node_types"]["worker"]["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"],
        configs[2]["available_node_types"]["head"]["node_config"]["disks"][0]["initializeParams"]["diskSizeGb"],
        configs[3]["available_node_types"]["worker"]["node_config"]["azure_arm_parameters"]["osDiskSize"],
    ]
    assert disks == [150, 150, 150]


def test_what_is_not_copied_to_the_machines_is_none_of_the_projects_files(
    description: Description, tmp_path: Path
) -> None:
    if shutil.which("rsync") is None or shutil.which("git") is None:
        pytest.skip("rsync or git is not installed")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone")
    excludes = [word for pattern in description.exclude for word in ("--exclude", pattern)]
    subprocess.run(["rsync", "-a", *excludes, f"{REPOSITORY}/", str(tmp_path)], check=True, timeout=60)
    here = [name for name in listed.stdout.split("\n") if name and (REPOSITORY / name).is_file()]
    assert [name for name in here if not (tmp_path / name).is_file()] == []
    assert not (tmp_path / ".git").exists()


def test_secrets_that_lie_about_are_copied_to_no_machine(description: Description, tmp_path: Path) -> None:
    """Those that the documentation asks for among them; a job's folder leaves out all names that begin with a dot."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    named = re.findall(r"--from-env-file=(\S+)", (REPOSITORY / "docs/kubernetes.md").read_text())
    named += re.findall(r"credentials_file: (\w[\w.]+|\.[\w.]+)", (REPOSITORY / "docs/monitoring.md").read_text())
    named += [load(REPOSITORY / "cluster/observability/prometheus.yml")["scrape_configs"][0]["http_sd_configs"][0]["authorization"]["credentials_file"]]  # fmt: skip
    assert len(named) == 3
    assert all(name.startswith(".") for name in named)
    for name in (".env", "app/.env", *named, "kept.py"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("secret")
    excludes = [word for pattern in description.exclude for word in ("--exclude", pattern)]
    subprocess.run(["rsync", "-a", *excludes, f"{tmp_path}/here/", f"{tmp_path}/there"], check=True, timeout=60)
    assert [path.name for path in (tmp_path / "there").rglob("*") if path.is_file()] == ["kept.py"]


def test_environment_and_secrets_reach_the_commands_quoted() -> None:
    storage = {"kind": "redis", "address": "10.0.0.9:6390", "password_file": "~/redis"}
    config = build(changed(environment={"A": "it's; $HOME"}, gcs_storage=storage))["local"]
    exported = next(command for command in config["setup_commands"] if command.startswith("printf"))
    lines = subprocess.run(
        ["bash", "-c", exported.rpartition(">")[0]], capture_output=True, text=True, check=True
    ).stdout
    shown = subprocess.run(["bash", "-c", lines + 'printf %s "$A"'], capture_output=True, text=True, check=True).stdout
    assert shown == "it's; $HOME"
    assert "export RAY_gcs_rpc_server_reconnect_timeout_s=600\n" in lines
    assert "RAY_REDIS_ADDRESS=10.0.0.9:6390" in config["head_start_ray_commands"][-1]
    assert '--redis-password="$(cat ~/.ray/redis_password)"' in config["head_start_ray_commands"][-1]
    assert config["file_mounts"]["~/.ray/redis_password"] == "~/redis"
    (start,) = config["worker_start_ray_commands"]  # no `ray stop`: the head may come back while the worker serves
    assert start.startswith("cat /proc/[0-9]*/comm 2>/dev/null | grep -qx raylet || { ulimit -n 65536; ray start ")
    assert "RAY_REDIS" not in start


def test_shells_find_the_environment_whatever_their_file_says(tmp_path: Path) -> None:
    software = {"kind": "installed", "bin": "/opt/lepton ray/bin"}
    config = build(changed(local={**load(DESCRIPTION)["local"], "software": software}))["local"]
    (tmp_path / ".bashrc").write_text("return\n")  # as Debian's, for shells that nobody types into
    for _ in range(2):  # again: a cluster brought up to date
        for command in config["setup_commands"]:
            subprocess.run(["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    script = '. ~/.bashrc; echo "$RAY_AUTH_MODE $PATH"'
    done = subprocess.run(["bash", "-c", script], env={"HOME": str(tmp_path), "PATH": "/usr/bin"}, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "token /opt/lepton ray/bin:/usr/bin\n"
    assert (tmp_path / ".bashrc").read_text() == ". ~/.lepton_ray_env\nreturn\n"


def test_pip_is_given_paths_that_are_there(tmp_path: Path) -> None:
    """With a stand-in for it: an extra behind a path in quotes is what a shell does not expand."""
    folder = tmp_path / "lepton-venv/bin"
    folder.mkdir(parents=True)
    for name in ("python", "pip"):
        (folder / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/{name}.txt\n')
        (folder / name).chmod(0o755)
    for command in load(FOLDER / "local.yaml")["setup_commands"][1:]:
        subprocess.run(["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    words = (tmp_path / "pip.txt").read_text().split("\n")
    assert words[words.index("-c") + 1] == f"{tmp_path}/lepton_ray/constraints.txt"
    assert words[words.index("-e") + 1] == f"{tmp_path}/lepton_ray[all]"
    assert not (tmp_path / "python.txt").exists()


def test_all_problems_of_a_description_are_told_at_once() -> None:
    text = DESCRIPTION.read_text().replace("region:", "regoin:").replace("zone: us-west4-a", "zone: us-west4")
    with pytest.raises(SpecError) as caught:
        parse_model(Description, text)
    assert [problem.partition(": ")[2].partition(",")[0] for problem in caught.value.problems] == [
        "aws.region must be given. Add it",
        "aws.regoin must be a known key. Did you mean 'region'?",
        r"gcp.zone must match pattern '^[a-z]+-[a-z]+\d+-[a-z]$'",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local": {"head": "host-1"}}, "head and workers must be IP addresses, got 'host-1'"),
        ({"local": {"workers": ["192.168.1.10"]}}, "head and workers must differ"),
        ({"aws": {"workers": {"type": "g5.xlarge", "min": 3, "max": 2}}}, r"min must be at most max \(2\), got 3"),
        ({"aws": {"workers": {"type": "g5.xlarge", "max": 2, "max_price_usd_per_h": 0.5}}}, "max_price_usd_per_h must be left out without spot"),
        ({"gcp": {"workers": {"accelerator_type": "v4-16", "runtime_version": "v2", "num_cpus": 8, "max": 1}}}, "1 to 4 chips"),
        ({"spill": {"gib": 90}}, "at most 60 with TPU machines"),
        ({"spill": {"gib": 1}}, r"at least object_store_gib \(4\), got 1"),
        ({"environment": {"RAY_AUTH_MODE": "disabled"}}, "variables other than RAY_AUTH_MODE and PATH"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_work_is_refused(change: dict[str, Any], message: str) -> None:
    whole = load(DESCRIPTION)
    merged = {key: {**whole.get(key, {}), **value} if isinstance(value, dict) else value for key, value in change.items()}  # fmt: skip
    with pytest.raises(SpecError, match=message):
        parse_model(Description, yaml.safe_dump({**whole, **merged}))


def test_a_tpu_has_the_chips_that_ray_counts() -> None:
    from ray._private.accelerators import tpu

    for kind in ("v2-8", "v3-8", "v4-8", "v5p-8", "v5litepod-1", "v5litepod-4", "v5litepod-8", "v6e-8"):
        workers = {"accelerator_type": kind, "runtime_version": "v2", "num_cpus": 8, "max": 1}
        config = build(changed(gcp={**load(DESCRIPTION)["gcp"], "workers": workers}))["gcp"]
        chips = config["available_node_types"]["worker"]["resources"]["TPU"]
        assert chips == int(kind.partition("-")[2]) // tpu.get_tpu_cores_per_chip(kind)
        assert chips == tpu.get_num_tpu_visible_chips_per_host(kind)


def test_a_machine_alone_is_a_cluster() -> None:
    config = build(changed(local={**load(DESCRIPTION)["local"], "workers": []}))["local"]
    assert find_problems(config) == []
    assert machines.num_asked(config) == 1


def test_rendering_is_the_same_each_time(description: Description) -> None:
    assert render(description, "d") == render(load_description(DESCRIPTION), "d")


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
