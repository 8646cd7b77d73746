"""The AWS file against moto: its instances get the addresses of machines made here, so that they are reached and run Ray."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .machines import BIN, CLIENT, REPOSITORY, Machines, end, machines, wait_for

pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[ec2,iam,server]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PORT = 5555
_MAKE_NETWORK = """
import json, sys, boto3
ec2 = boto3.client("ec2")
vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.0.0/24")["Subnet"]["SubnetId"]
ec2.import_key_pair(KeyName="test", PublicKeyMaterial=open(sys.argv[1], "rb").read())
print(subnet)
"""
_LIST_INSTANCES = """
import json, boto3
found = [i for r in boto3.client("ec2").describe_instances()["Reservations"] for i in r["Instances"]]
keep = ("InstanceType", "InstanceLifecycle", "PrivateIpAddress")
print(json.dumps([{"State": i["State"]["Name"], **{k: i.get(k) for k in keep}} for i in found]))
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two machines and moto, which all of them take for AWS."""
    folder = tmp_path_factory.mktemp("aws")
    with machines(folder, ("head", "w1")) as made:
        made.environment |= _aws(made)
        made.environment["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
        log = (folder / "moto.log").open("wb")
        moto = made.popen(sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(PORT), stdout=log, stderr=log)
        try:
            url = f"http://{made.addresses[CLIENT]}:{PORT}/moto-api/"
            wait_for(lambda: made.run("curl", "-sfo", "/dev/null", url).returncode == 0, "moto", 90, moto)
            yield made
        finally:
            end(moto)
            log.close()


def _aws(made: Machines) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://{made.addresses[CLIENT]}:{PORT}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _python(made: Machines, code: str, *arguments: str) -> str:
    done = made.run(sys.executable, "-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _file(made: Machines) -> Path:
    """The file as it is rendered, with the addresses of the two machines and the network in moto."""
    description = yaml.safe_load((REPOSITORY / "cluster/clusters.yaml").read_text())
    description["environment"] = {"PYTHONPATH": str(REPOSITORY), **_aws(made)}
    description |= {"object_store_gib": 0.25, "spill": {"folder": str(made.folder / "spill"), "gib": 1.0}}
    description["aws"] |= {"software": {"kind": "installed", "bin": str(BIN)}, "user": "root"}
    description["aws"]["workers"] |= {"min": 1, "max": 1, "max_price_usd_per_h": 0.6}
    (made.folder / "clusters.yaml").write_text(yaml.safe_dump(description))
    done = made.cluster("render", made.folder / "clusters.yaml", "--output", made.folder)
    assert done.returncode == 0, done.stderr
    path = made.folder / "aws.yaml"
    config: Any = yaml.safe_load(path.read_text())
    subnet = _python(made, _MAKE_NETWORK, str(made.folder / "key.pub"))
    config["provider"]["use_internal_ips"] = True
    config["auth"]["ssh_private_key"] = str(made.folder / "key")
    for kind, name in {"head": "head", "worker": "w1"}.items():
        node = {"PrivateIpAddress": made.addresses[name], "SubnetIds": [subnet], "KeyName": "test"}
        config["available_node_types"][kind]["node_config"] |= node
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_aws_file_comes_up_with_a_spot_worker_and_goes_down_to_terminated_instances(cloud: Machines) -> None:
    file = _file(cloud)
    done = cloud.cluster("up", file, "--timeout-s", 240)
    assert done.returncode == 0, done.stdout + done.stderr
    done = cloud.cluster("status", file, "--json")
    assert done.returncode == 0, done.stderr
    head, worker = json.loads(done.stdout)["nodes"]
    assert (head["ip"], worker["ip"]) == (cloud.addresses["head"], cloud.addresses["w1"])
    assert (worker["resources"]["CPU"], worker["resources"]["GPU"]) == (4, 1)  # a g5.xlarge, as Ray asked EC2
    running = {one["InstanceType"]: one for one in json.loads(_python(cloud, _LIST_INSTANCES))}
    assert {kind: one["State"] for kind, one in running.items()} == {"m5.2xlarge": "running", "g5.xlarge": "running"}
    assert running["g5.xlarge"]["InstanceLifecycle"] == "spot"
    assert running["m5.2xlarge"]["InstanceLifecycle"] != "spot"
    done = cloud.cluster("down", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {one["State"] for one in json.loads(_python(cloud, _LIST_INSTANCES))} == {"terminated"}


def test_a_typo_is_found_before_anything_is_asked_of_the_cloud(cloud: Machines) -> None:
    path = cloud.folder / "typo.yaml"
    config = yaml.safe_load((REPOSITORY / "cluster/ray/aws.yaml").read_text())
    config["available_node_types"]["worker"]["node_config"]["SubnetId"] = "subnet-1"
    path.write_text(yaml.safe_dump(config))
    before = _python(cloud, _LIST_INSTANCES)
    done = cloud.cluster("up", path)
    assert done.returncode == 2
    assert "node_config.SubnetId must not be given: Ray ignores it. Use SubnetIds, a list" in done.stderr
    assert _python(cloud, _LIST_INSTANCES) == before
