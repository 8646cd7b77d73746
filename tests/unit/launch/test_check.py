"""Mistakes planted into launcher files, each of a kind that Ray, the cloud or nobody would tell of."""

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from lepton_ray.core.errors import SpecError
from lepton_ray.launch import allowed
from lepton_ray.launch.allowed.__main__ import make, text_of
from lepton_ray.launch.check import PROVIDER_KEYS, check_file, find_problems
from lepton_ray.launch.on_ray import what_ray_refuses

FOLDER = Path(__file__).parent.parent.parent.parent / "cluster/ray"
Change = Callable[[Any], None]


def load(place: str) -> Any:
    return yaml.safe_load((FOLDER / f"{place}.yaml").read_text())


def at(path: str, value: Any = ...) -> Change:
    """Set what lies at a path, or remove it."""
    *parents, last = path.split("/")

    def change(config: Any) -> None:
        for key in parents:
            config = config[int(key) if key.isdecimal() else key]
        if value is ...:
            del config[last]
        else:
            config[last] = value

    return change


HEAD, WORKER = "available_node_types/head/node_config", "available_node_types/worker/node_config"
ARM = f"{WORKER}/azure_arm_parameters"
SILENT = [
    ("aws", at(f"{WORKER}/InstanceTyp", "g5.xlarge"), "InstanceTyp must be a known key. Did you mean 'InstanceType'?"),
    ("aws", at(f"{WORKER}/SubnetId", "subnet-1"), "SubnetId must not be given: Ray ignores it. Use SubnetIds, a list"),
    ("aws", at(f"{WORKER}/MaxCount", 3), "MaxCount must not be given: Ray sets it. Use max_workers of the node type"),
    ("aws", at(f"{WORKER}/InstanceType", "g5.xlrge"), "InstanceType must be like"),
    ("aws", at(f"{WORKER}/InstanceType"), "must have InstanceType or LaunchTemplate, got neither"),
    ("aws", at(f"{WORKER}/SubnetIds", "subnet-1"), "SubnetIds must be a list, got 'subnet-1'"),
    ("aws", at(f"{WORKER}/InstanceMarketOptions", {"MarketType": "sport"}), "on-demand, got 'sport'. Did you mean 'spot'?"),
    ("aws", at(f"{WORKER}/InstanceMarketOptions/SpotOptons", {}), "SpotOptons must be a known key. Did you mean 'SpotOptions'?"),
    ("aws", at(f"{HEAD}/BlockDeviceMappings/0/Ebs/VolumSize", 5), "0.Ebs.VolumSize must be a known key. Did you mean 'VolumeSize'?"),
    ("aws", at("provider/availability_zones", "us-west-2a"), "provider.availability_zones must be a known key. Did you mean 'availability_zone'?"),
    ("aws", at("provider/region"), "provider.region must be given"),
    ("gcp", at(f"{WORKER}/runtime_version", "v2"), "runtime_version must be a known key. Did you mean 'runtimeVersion'?"),
    ("gcp", at(f"{WORKER}/runtimeVersion"), "runtimeVersion must be given"),
    ("gcp", at(f"{HEAD}/scheduling", [{"preemptible": True}]), "node_config.scheduling must be a mapping"),
    ("gcp", at(f"{HEAD}/disks/0/initializeParams/diskSizeGB", 9), "diskSizeGB must be a known key. Did you mean 'diskSizeGb'?"),
    ("gcp", at("provider/project_id", None), "provider.project_id must be given"),
    ("azure", at(f"{ARM}/vmSiz", "Standard_D2s_v3"), "vmSiz must be a known key. Did you mean 'vmSize'?"),
    ("azure", at(f"{ARM}/priority", "spot"), "priority must be one of Low, Regular, Spot, SpotPlus, got 'spot'. Did you mean 'Spot'?"),
    ("azure", at(f"{ARM}/osDiskSize", "100"), "osDiskSize must be a whole number, got '100'"),
    ("azure", at(f"{ARM}/publicKey", "ssh-rsa"), "publicKey must not be given: Ray sets it. Use auth.ssh_public_key"),
    ("azure", at(f"{WORKER}/azure_arm_parameter", {}), "azure_arm_parameter must be a known key"),
    ("azure", at("provider/resource_grup", "x"), "provider.resource_grup must be a known key. Did you mean 'resource_group'?"),
    ("local", at("provider/worker_ip", []), "provider.worker_ip must be a known key. Did you mean 'worker_ips'?"),
    ("local", at("head_start_ray_commands", ["ray stop", "ray start --head --autoscaling-config=~/ray_bootstrap_config.yaml"]), "must set RAY_enable_autoscaler_v2=0"),
    ("local", at("head_start_ray_commands"), "head_start_ray_commands must set RAY_enable_autoscaler_v2=0 with provider local"),
    ("local", at("head_start_ray_commands", ["ray stop", "RAY_enable_autoscaler_v2=0 ray start --head"]), "must give ray start --autoscaling-config"),
]  # fmt: skip
REFUSED = [
    ("aws", at("head_start_ray_comands", []), "head_start_ray_comands must be a known key. Did you mean 'head_start_ray_commands'?"),
    ("aws", at("max_workers", "4"), "max_workers must be a whole number, got '4'"),
    ("aws", at("cluster_name"), "cluster_name must be given"),
    ("aws", at("head_node_type", "heed"), "`head_node_type` must be one of `available_node_types`"),
    ("aws", at("available_node_types/worker/min_workers", 9), "min_workers must be at most max_workers (4), got 9"),
    ("aws", at("max_workers", -1), "max_workers must be valid: -1 is less than the minimum of 0"),
    ("aws", at("docker", {"container_name": "a", "run_options": []}), "the file must be what ray up takes, got: "),
    ("aws", at("provider/type", "asw"), "provider.type must be one of local, aws, gcp, azure, got 'asw'. Did you mean 'aws'?"),
    ("gcp", at(f"{WORKER}/acceleratorType", "v9-7x"), "acceleratorType must be a generation and a size, such as v4-8, got 'v9-7x'"),
    ("gcp", at(f"{WORKER}/acceleratorConfig", {"type": "V4", "topology": "2x2x1"}), "must have acceleratorType or acceleratorConfig, got both"),
    ("gcp", at(f"{HEAD}/machineType"), "must have machineType, or acceleratorType for a TPU, got disks"),
    ("local", at("provider/head_ip"), "provider.head_ip must be given"),
    ("local", at("provider/worker_ips"), "provider.worker_ips must be given"),
    ("local", at("provider/type", ["local"]), "provider.type must be text, got ['local']"),
    ("aws", at("available_node_types", {1: {"node_config": {}}}), "available_node_types must have keys that are text, got 1. Quote it"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "change", "message"), [*SILENT, *REFUSED])
def test_a_planted_mistake_is_found(place: str, change: Change, message: str) -> None:
    config = load(place)
    change(config)
    before = copy.deepcopy(config)
    problems = find_problems(config)
    assert any(message in problem for problem in problems), problems
    assert config == before


def test_ray_alone_lets_most_of_them_pass() -> None:
    """The reason for the lists: with a Ray that finds these, they can go."""
    passed = 0
    for place, change, _ in SILENT:
        config = load(place)
        change(config)
        passed += what_ray_refuses(config) is None
    assert passed == len(SILENT)


def test_all_problems_are_told_at_once_with_their_paths(tmp_path: Path) -> None:
    config = load("aws")
    for path in (f"{WORKER}/InstanceTyp", f"{HEAD}/SubnetId", "provider/regio", "cluster_nam"):
        at(path, "x")(config)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SpecError) as caught:
        check_file(tmp_path / "a.yaml")
    assert [problem.partition(" must")[0] for problem in caught.value.problems] == [
        "cluster_nam",
        "provider.regio",
        "available_node_types.head.node_config.SubnetId",
        "available_node_types.worker.node_config.InstanceTyp",
    ]


def test_what_stands_twice_is_told(tmp_path: Path) -> None:
    """YAML takes the last of two values, and Ray each machine as often as it is named."""
    text = yaml.safe_dump(load("local") | {"max_workers": 1})
    (tmp_path / "a.yaml").write_text(text + "max_workers: 2\n")
    with pytest.raises(SpecError, match=r"line \d+: max_workers must stand once"):
        check_file(tmp_path / "a.yaml")
    config = load("local")
    config["provider"]["worker_ips"] *= 2
    assert [problem for problem in find_problems(config) if "must name each machine once, got " in problem]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "readable YAML"),
        ("a: 2025-13-45", "readable YAML"),
        ("a: " + "[" * 3000 + "]" * 3000, "readable YAML"),
        ("a: &a [*a]", "within itself"),
        ("- 1", "a mapping"),
        ("", "a mapping"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        check_file(tmp_path / "a.yaml")
    with pytest.raises(SpecError, match="No such file"):
        check_file(tmp_path / "b.yaml")


@pytest.mark.parametrize("provider", PROVIDER_KEYS)
def test_rays_own_defaults_are_taken(provider: str) -> None:
    """Its examples, but for what is wrong in them: GCP's scheduling is a list there, which Google's API has not."""
    config = yaml.safe_load((Path(ray.__file__).parent / "autoscaler" / provider / "defaults.yaml").read_text())
    if provider == "local":
        config["provider"] = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    problems = [problem for problem in find_problems(config) if "RAY_enable_autoscaler_v2" not in problem]
    expected = {"gcp": ["project_id", "scheduling"]}.get(provider, [])
    assert len(problems) == len(expected), problems
    assert all(word in problem for word, problem in zip(expected, problems, strict=True))


def test_every_provider_key_that_ray_reads_is_known() -> None:
    """Read off Ray's sources, so that a new version's keys show."""
    sources = Path(ray.__file__).parent / "autoscaler" / "_private"
    pattern = re.compile(r"""(?:provider_config|\["provider"\])(?:\.get\(|\[)"([a-z]+[a-z_]*)\"""")
    for provider, folder in {"aws": "aws", "gcp": "gcp", "azure": "_azure", "local": "local"}.items():
        text = "".join(path.read_text() for path in (sources / folder).glob("*.py"))
        known = {*PROVIDER_KEYS[provider], "type", "use_internal_ips", "use_external_head_ip", "cache_stopped_nodes"}
        assert {*pattern.findall(text)} - {"list_of_node_ips"} <= known  # which Ray adds itself


@pytest.mark.parametrize("provider", allowed.PROVIDERS)
def test_allow_lists_are_what_the_installed_libraries_say(provider: str) -> None:
    library = {"aws": "botocore", "azure": "azure.mgmt.compute"}.get(provider, "googleapiclient")
    package = {"aws": "botocore", "azure": "azure-mgmt-compute"}.get(provider, "google-api-python-client")
    root = library.partition(".")[0]
    if importlib.util.find_spec(root) is None or importlib.util.find_spec(library) is None:
        pytest.skip(f"{package} is not installed")
    made_from = allowed.schema_of(provider)["$comment"]
    if f"{package} {version(package)}" not in made_from:
        pytest.skip(f"the list is {made_from}, installed is {version(package)}")
    assert json.loads(text_of(make(provider))) == allowed.schema_of(provider)
