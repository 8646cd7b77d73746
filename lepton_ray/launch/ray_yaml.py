"""A description -> the files of Ray's cluster launcher, one for each place."""

import shlex
from collections.abc import Callable
from typing import Any

import yaml

from lepton_ray.launch.description import (
    AwsCluster,
    AzureCluster,
    Description,
    GcpCluster,
    ImageSoftware,
    InstalledSoftware,
    LocalCluster,
    RedisStorage,
    RocksDbStorage,
    VenvSoftware,
)
from lepton_ray.launch.rendered import mark

Config = dict[str, Any]

COMMAND = "lepton-ray cluster render"
PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 8265, 8080
PROJECT = "~/lepton_ray"
"""Where the files of the project lie on each machine."""
_ENVIRONMENT = "~/.lepton_ray_env"
_VENV = "~/lepton-venv"
_TOKEN = "~/.ray/auth_token"  # noqa: S105  where Ray looks for it
_REDIS_PASSWORD = "~/.ray/redis_password"  # noqa: S105  where it is, not what
_GIB = 1 << 30
_SHM_PER_OBJECT_STORE = 1.1
"""Ray's object store lies in /dev/shm, and needs a little beyond the objects."""

# What Ray's autoscaler on the head needs to talk to the cloud; each is what Ray itself names for it.
_HEAD_PACKAGES = {
    "aws": ("boto3",),
    "gcp": ("google-api-python-client", "google-auth-httplib2"),
    "azure": ("azure-identity", "azure-mgmt-compute", "azure-mgmt-network", "azure-mgmt-resource", "azure-common", "msrestazure"),
}  # fmt: skip
_TPU_PACKAGES = ("jax[tpu]",)

_HEADERS = {
    "local": "Machines of your own, reached by SSH",
    "aws": "EC2: a head with CPUs, spot workers with GPUs",
    "gcp": "Google Cloud: a head with CPUs, TPU workers",
    "azure": "Azure: a head and workers",
}


def render(description: Description, origin: str) -> dict[str, str]:
    """Return the launcher files of all places, by name; ``origin`` is the description's name."""
    return {f"{name}.yaml": _text_of(name, config, origin) for name, config in build(description).items()}


def build(description: Description) -> dict[str, Config]:
    """Return what each place's launcher file says, by its name."""
    makers: dict[str, Callable[[Description, Any], Config]] = {
        "local": _local,
        "aws": _aws,
        "gcp": _gcp,
        "azure": _azure,
    }
    places = {name: getattr(description, name) for name in makers}
    return {name: makers[name](description, place) for name, place in places.items() if place is not None}


def _text_of(name: str, config: Config, origin: str) -> str:
    header = f"# {_HEADERS[name]}:  lepton-ray cluster up cluster/ray/{name}.yaml\n"
    made = f"{mark(COMMAND)}{origin}: change that, not this.\n"
    return header + made + yaml.safe_dump(config, sort_keys=False, width=10_000, allow_unicode=True)


def _local(description: Description, place: LocalCluster) -> Config:
    config = {
        "cluster_name": f"{description.name}-local",
        "provider": {"type": "local", "head_ip": place.head, "worker_ips": list(place.workers)},
        "auth": {"ssh_user": place.user, "ssh_private_key": place.private_key},
    }
    is_image = isinstance(place.software, ImageSoftware)
    # A machine has several addresses; this is the one by which the head has reached it.
    address = "" if is_image else "--node-ip-address=$(echo $SSH_CONNECTION | cut -d' ' -f3)"
    # Autoscaler v2 counts the head among the workers of this provider and starts one too few: Ray 2.60.
    head = _start_head(description, "RAY_enable_autoscaler_v2=0", f"--node-ip-address={place.head}")
    return {**config, **_common(description, place.software, "local", head, _start_worker(description, address))}


def _aws(description: Description, place: AwsCluster) -> Config:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": _disk_gib(description), "VolumeType": "gp3"}}
    shared = {"BlockDeviceMappings": [disk], **({"ImageId": place.machine_image} if place.machine_image else {})}
    workers = place.workers
    price = {"MaxPrice": f"{workers.max_price_usd_per_h:g}"} if workers.max_price_usd_per_h else {}
    market = {"MarketType": "spot", **({"SpotOptions": price} if price else {})}
    return {
        "cluster_name": f"{description.name}-aws",
        "provider": {"type": "aws", "region": place.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": place.user},
        **_pool(
            description,
            head={"resources": {}, "node_config": {"InstanceType": place.head.type, **shared}},
            workers={
                "resources": {},
                "min_workers": workers.min,
                "max_workers": workers.max,
                "node_config": {
                    "InstanceType": workers.type,
                    **shared,
                    **({"InstanceMarketOptions": market} if workers.spot else {}),
                },
            },
        ),
        **_common(description, place.software, "aws", _start_head(description), _start_worker(description)),
    }


def _gcp(description: Description, place: GcpCluster) -> Config:
    workers = place.workers
    disk = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {"diskSizeGb": _disk_gib(description), "sourceImage": place.machine_image},
    }
    tpu = {"acceleratorType": workers.accelerator_type, "runtimeVersion": workers.runtime_version}
    config = {
        "cluster_name": f"{description.name}-gcp",
        "provider": {
            "type": "gcp",
            "region": place.zone.rpartition("-")[0],
            "availability_zone": place.zone,
            "project_id": place.project,
            "cache_stopped_nodes": False,
        },
        "auth": {"ssh_user": place.user},
        **_pool(
            description,
            head={
                "resources": {"CPU": place.head_num_cpus},
                "node_config": {"machineType": place.head_type, "disks": [disk]},
            },
            workers={
                "resources": {"CPU": workers.num_cpus, "TPU": workers.num_chips},
                "min_workers": workers.min,
                "max_workers": workers.max,
                "node_config": {**tpu, **({"schedulingConfig": {"spot": True}} if workers.spot else {})},
            },
        ),
        **_common(description, place.software, "gcp", _start_head(description), _start_worker(description)),
    }
    if isinstance(place.software, ImageSoftware):
        config["docker"]["worker_run_options"] = ["--privileged"]  # the chips are devices of the machine
        config["worker_setup_commands"] = [_pip_in(place.software, _TPU_PACKAGES)]
    return config


def _azure(description: Description, place: AzureCluster) -> Config:
    image = place.machine_image
    shared = {
        "imagePublisher": image.publisher,
        "imageOffer": image.offer,
        "imageSku": image.sku,
        "imageVersion": image.version,
        "osDiskSize": _disk_gib(description),
    }
    workers = place.workers
    spot = {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}}
    accelerators = {"GPU": workers.num_gpus} if workers.num_gpus else {}
    subscription = {"subscription_id": place.subscription_id} if place.subscription_id else {}
    return {
        "cluster_name": f"{description.name}-azure",
        "provider": {
            "type": "azure",
            "location": place.location,
            "resource_group": place.resource_group,
            **subscription,
            "cache_stopped_nodes": False,
        },
        "auth": {
            "ssh_user": place.user,
            "ssh_private_key": place.private_key,
            "ssh_public_key": place.public_key,
        },
        **_pool(
            description,
            head={
                "resources": {"CPU": place.head_num_cpus},
                "node_config": {"azure_arm_parameters": {"vmSize": place.head_size, **shared}},
            },
            workers={
                "resources": {"CPU": workers.num_cpus, **accelerators},
                "min_workers": workers.min,
                "max_workers": workers.max,
                "node_config": {
                    "azure_arm_parameters": {"vmSize": workers.size, **shared, **(spot if workers.spot else {})}
                },
            },
        ),
        **_common(description, place.software, "azure", _start_head(description), _start_worker(description)),
    }


def _pool(description: Description, head: Config, workers: Config) -> Config:
    return {
        "max_workers": workers["max_workers"],
        "idle_timeout_minutes": description.idle_minutes,
        "available_node_types": {"head": head, "worker": workers},
        "head_node_type": "head",
    }


def _common(
    description: Description,
    software: VenvSoftware | ImageSoftware | InstalledSoftware,
    name: str,
    start_head: str,
    start_worker: str,
) -> Config:
    """What no place says for itself."""
    mounts = {_TOKEN: description.token_file}
    if isinstance(description.gcs_storage, RedisStorage):
        mounts[_REDIS_PASSWORD] = description.gcs_storage.password_file
    config: Config = {}
    if isinstance(software, ImageSoftware):
        config["docker"] = _docker(description, software)
        # the image's user is another than the one that Docker makes folders for
        config["initialization_commands"] = [_make_folder(folder, "&& chmod 777") for folder in _folders(description)]
    if not isinstance(software, InstalledSoftware):
        mounts[PROJECT] = "."
        config["rsync_exclude"] = list(description.exclude)
    head_packages = [] if isinstance(software, InstalledSoftware) else list(_HEAD_PACKAGES.get(name, ()))
    return {
        **config,
        "file_mounts": mounts,
        "setup_commands": [*_install(description, software), *_export(description, software)],
        **({"head_setup_commands": [_pip_in(software, head_packages)]} if head_packages else {}),
        "head_start_ray_commands": ["ray stop", start_head],
        "worker_start_ray_commands": _unless_it_runs(start_worker)
        if description.gcs_storage
        else ["ray stop", start_worker],
    }


def _unless_it_runs(start: str) -> list[str]:
    """A head that comes back knows none of its launcher's workers and starts each anew: those that serve on must stay."""
    return [f"cat /proc/[0-9]*/comm 2>/dev/null | grep -qx raylet || {{ {start}; }}"]


def _docker(description: Description, software: ImageSoftware) -> Config:
    folder = description.spill.folder
    shm_bytes = int(description.object_store_gib * _SHM_PER_OBJECT_STORE * _GIB)
    options = ["--ulimit nofile=65536:65536", f"--shm-size={shm_bytes}", f"-v {folder}:{folder}"]
    config: Config = {
        "image": description.image + software.suffix,
        "container_name": "lepton_ray",
        "run_options": options,
    }
    if isinstance(description.gcs_storage, RocksDbStorage):
        state = description.gcs_storage.folder
        config["head_run_options"] = [f"-v {state}:{state}"]
    return config


def _install(description: Description, software: VenvSoftware | ImageSoftware | InstalledSoftware) -> list[str]:
    folders = [_make_folder(folder) for folder in _folders(description)]
    if isinstance(software, InstalledSoftware):
        return folders
    make = (
        [f"test -x {_VENV}/bin/python || {software.python} -m venv {_VENV}"]
        if isinstance(software, VenvSoftware)
        else []
    )
    project = f'-e "$HOME/{PROJECT[2:]}[{",".join(description.extras)}]"'
    return [*folders, *make, f"{_pip(software)} {project}"]


def _pip(software: VenvSoftware | ImageSoftware | InstalledSoftware) -> str:
    pip = f"{_VENV}/bin/pip" if isinstance(software, VenvSoftware) else "pip"
    return f"{pip} install -q -c {PROJECT}/constraints.txt"


def _pip_in(software: VenvSoftware | ImageSoftware | InstalledSoftware, packages: list[str] | tuple[str, ...]) -> str:
    return f"{_pip(software)} {shlex.join(packages)}"


def _folders(description: Description) -> list[str]:
    """Return what must be there before Ray starts; a worker does not use the head's."""
    storage = description.gcs_storage
    return [description.spill.folder, *([storage.folder] if isinstance(storage, RocksDbStorage) else [])]


def _make_folder(folder: str, then: str = "") -> str:
    quoted = shlex.quote(folder)
    return f"mkdir -p {quoted} {then} {quoted}" if then else f"mkdir -p {quoted}"


def _export(description: Description, software: VenvSoftware | ImageSoftware | InstalledSoftware) -> list[str]:
    """Set the environment of every shell, which ``ray start`` and ``ray stop`` run in too."""
    lines = ["export RAY_AUTH_MODE=token"]
    if not isinstance(software, ImageSoftware):
        folder = f"{_VENV}/bin" if isinstance(software, VenvSoftware) else software.bin
        home = f"$HOME/{shlex.quote(folder[2:])}" if folder.startswith("~/") else shlex.quote(folder)
        lines.append(f"export PATH={home}:$PATH")
    if description.gcs_storage is not None:
        lines.append(f"export RAY_gcs_rpc_server_reconnect_timeout_s={description.gcs_storage.head_away_s}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in description.environment.items()]
    written = " ".join(shlex.quote(line) for line in lines)
    first = f"{{ echo '. {_ENVIRONMENT}'; cat ~/.bashrc; }} > ~/.bashrc.new && mv ~/.bashrc.new ~/.bashrc"
    return [
        f"printf '%s\\n' {written} > {_ENVIRONMENT}",
        f"touch ~/.bashrc && grep -q lepton_ray_env ~/.bashrc || {{ {first}; }}",  # first: Debian's ends early
    ]


def _start_head(description: Description, variables: str = "", options: str = "") -> str:
    words = [
        *([variables] if variables else []),
        *_state_variables(description),
        "ray start --head",
        f"--port={PORT}",
        *([options] if options else []),
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={DASHBOARD_PORT}",
        *_sizes(description),
        *([] if description.head_takes_work else ["--num-cpus=0"]),
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
    ]
    if isinstance(description.gcs_storage, RedisStorage):
        words.append(f'--redis-password="$(cat {_REDIS_PASSWORD})"')
    return _with_limits(words)


def _state_variables(description: Description) -> list[str]:
    storage = description.gcs_storage
    if isinstance(storage, RocksDbStorage):
        return ["RAY_gcs_storage=rocksdb", f"RAY_gcs_storage_path={shlex.quote(storage.folder)}"]
    if isinstance(storage, RedisStorage):
        return [f"RAY_REDIS_ADDRESS={storage.address}", f"RAY_external_storage_namespace={description.name}"]
    return []


def _start_worker(description: Description, options: str = "") -> str:
    address = f"ray start --address=$RAY_HEAD_IP:{PORT}"
    return _with_limits([address, *([options] if options else []), *_sizes(description)])


def _sizes(description: Description) -> list[str]:
    return [
        f"--object-store-memory={int(description.object_store_gib * _GIB)}",
        f"--object-spilling-directory={shlex.quote(description.spill.folder)}",
        f"--metrics-export-port={METRICS_PORT}",
        "--disable-usage-stats",
    ]


def _with_limits(words: list[str]) -> str:
    return "ulimit -n 65536; " + " ".join(words)


def _disk_gib(description: Description) -> int:
    return description.disk_gib + int(description.spill.gib)
