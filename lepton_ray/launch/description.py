"""The typed description that every launcher file comes from: what all clusters share, then where each one runs.

``Description`` holds what must agree between places (software, token, sizes, Ray's environment); ``LocalCluster``, ``AwsCluster``,
``GcpCluster`` and ``AzureCluster`` add the machines.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from lepton_ray.core.frozen import Texts
from lepton_ray.spec.base import Name, PositiveFloat, PositiveInt, Section
from lepton_ray.spec.load import parse_model, read_text

_COUNTED_IN_CHIPS = ("v5litepod", "v6e")
_TPU_BOOT_DISK_GIB = 100
_TPU_SYSTEM_GIB = 40
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("RAY_AUTH_MODE", "PATH")

Count = Annotated[int, Field(ge=0)]
FilePath = Annotated[str, Field(pattern=r"^[~/]")]
"""Path on a machine: absolute, or below the user's home as ``~/...``."""

AbsolutePath = Annotated[str, Field(pattern=r"^/[^\s:]*$")]
"""Path that is the same inside a container and outside it."""


class VenvSoftware(Section):
    """A virtual environment, made on each machine from the package's tested versions."""

    kind: Literal["venv"]
    python: str = "python3.11"
    """Command that is Python 3.11 on every machine; its module ``venv`` must be there."""


class ImageSoftware(Section):
    """The description's container image; the package is installed into it."""

    kind: Literal["image"]
    suffix: str = Field(default="", pattern=r"^[\w.-]*$")
    """Ends the image's tag, such as ``-gpu``."""


class InstalledSoftware(Section):
    """Nothing is installed: every machine has the package already."""

    kind: Literal["installed"]
    bin: FilePath
    """Folder with ``ray`` and ``lepton-ray``."""


CloudSoftware = Annotated[ImageSoftware | InstalledSoftware, Field(discriminator="kind")]
"""A machine image of your own may have the package already."""


class SpillSpec(Section):
    """Where objects go that do not fit into the object store."""

    folder: AbsolutePath = "/tmp/lepton_ray_spill"  # noqa: S108  a place on the cluster's machines, which Ray makes
    gib: PositiveFloat = 100.0
    """Room that the disk of each machine in a cloud has for them, GiB."""


class GcsStorage(Section):
    """Where the head keeps the cluster's state."""

    head_away_s: PositiveInt = 600
    """How long workers go on without a head before they end, s; Ray's own 60 is less than most machines take to come back."""


class RocksDbStorage(GcsStorage):
    """The head's own disk; alpha in Ray 2.60."""

    kind: Literal["rocksdb"]
    folder: AbsolutePath


class RedisStorage(GcsStorage):
    """A Redis server; outlives the head's disk."""

    kind: Literal["redis"]
    address: str = Field(pattern=r"^[^\s:]+:[0-9]+$")
    password_file: FilePath
    """File on the launching machine; it is copied to every machine."""


class LocalCluster(Section):
    """Machines of your own, reached by SSH."""

    software: VenvSoftware | ImageSoftware | InstalledSoftware = Field(discriminator="kind")
    head: str
    """IP address; so are ``workers``."""
    workers: Texts
    user: str
    private_key: FilePath = "~/.ssh/id_ed25519"

    @model_validator(mode="after")
    def _check_addresses(self) -> Self:
        addresses = (self.head, *self.workers)
        for address in addresses:
            if not _is_address(address):
                raise ValueError(
                    f"head and workers must be IP addresses, got {address!r}. Ray compares them with its own"
                )
        if len({*addresses}) < len(addresses):
            raise ValueError(f"head and workers must differ, got {', '.join(addresses)}. Name each machine once")
        return self


class AwsMachine(Section):
    """An EC2 instance."""

    type: str
    """Instance type, such as ``m5.2xlarge``."""


class CloudWorkers(Section):
    """How many workers a cluster has; Ray adds and removes them by what jobs ask for."""

    min: Count = 0
    max: PositiveInt
    spot: bool = False
    """Whether the cloud may take the machines back, at a lower price."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min must be at most max ({self.max}), got {self.min}. Lower it, or raise max")
        return self


class AwsWorkers(CloudWorkers):
    """EC2 instances with GPUs."""

    type: str
    max_price_usd_per_h: PositiveFloat | None = None
    """The most to pay for a spot instance; None pays up to the price on demand."""

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        if self.max_price_usd_per_h is not None and not self.spot:
            raise ValueError(
                f"max_price_usd_per_h must be left out without spot, got {self.max_price_usd_per_h:g}. Add spot: true: "
                "machines on demand have no bound"
            )
        return self


class AwsCluster(Section):
    """EC2 instances: a head with CPUs, workers with GPUs."""

    software: CloudSoftware
    region: str
    machine_image: str | None = None
    """AMI with Docker and, for GPUs, NVIDIA's container toolkit; None takes Ray's Deep Learning AMI of the region."""
    user: str = "ubuntu"
    head: AwsMachine
    workers: AwsWorkers


class TpuWorkers(CloudWorkers):
    """TPU virtual machines, one host each: Ray starts machines of several hosts, but cannot scale them."""

    accelerator_type: str = Field(pattern=r"^v\d+[a-z]*-\d+$")
    """Such as ``v5litepod-4``."""
    runtime_version: str
    num_cpus: PositiveInt

    @property
    def num_chips(self) -> int:
        """Chips of a machine; Google counts cores in the names of the older generations."""
        generation, _, size = self.accelerator_type.partition("-")
        return int(size) // (1 if generation in _COUNTED_IN_CHIPS else 2)

    @model_validator(mode="after")
    def _check_one_host(self) -> Self:
        most = 8 if self.accelerator_type.startswith(_COUNTED_IN_CHIPS) else 4
        if not 1 <= self.num_chips <= most:
            raise ValueError(
                f"accelerator_type must have 1 to {most} chips, those of one host, got {self.accelerator_type!r} with "
                f"{self.num_chips}. Take a smaller type"
            )
        return self


class GcpCluster(Section):
    """A Compute Engine head and TPU workers."""

    software: CloudSoftware
    project: str
    zone: str = Field(pattern=r"^[a-z]+-[a-z]+\d+-[a-z]$")
    machine_image: str
    """Image of the head's boot disk, with Docker; ``projects/.../global/images/family/...``."""
    user: str = "ubuntu"
    head_type: str
    """Machine type, such as ``n2-standard-8``."""
    head_num_cpus: PositiveInt
    workers: TpuWorkers


class AzureImage(Section):
    """A marketplace image with Docker."""

    publisher: str
    offer: str
    sku: str
    version: str = "latest"


class AzureWorkers(CloudWorkers):
    """Virtual machines."""

    size: str
    """Such as ``Standard_NC4as_T4_v3``."""
    num_gpus: Count = 0
    """GPUs of that size; Ray cannot ask Azure for it."""
    num_cpus: PositiveInt


class AzureCluster(Section):
    """Azure virtual machines."""

    software: CloudSoftware
    location: str
    resource_group: str
    subscription_id: str | None = None
    """None takes the one of ``az account show``."""
    machine_image: AzureImage
    user: str = "ubuntu"
    private_key: FilePath = "~/.ssh/id_rsa"
    public_key: FilePath = "~/.ssh/id_rsa.pub"
    head_size: str
    head_num_cpus: PositiveInt
    workers: AzureWorkers


class Description(Section):
    """What all clusters share, and where each runs."""

    name: Name = "lepton"
    image: str = Field(default="rayproject/ray:2.60.0-py311", pattern=r"^\S+:\S+$")
    """Container image of the places that use one; its Ray and Python are those of the tested versions."""
    extras: Texts = ("all",)
    """Extras of the package that every machine gets."""
    exclude: Texts = ("/.git", ".*env", ".*_token", "/runs", "/data", "__pycache__", ".*_cache")
    """What is not copied to the machines, as rsync's ``--exclude``; a slash first means the project's own folder."""
    token_file: FilePath = "~/.ray/auth_token"  # noqa: S105  where it is, not what
    """Ray's token on the launching machine, copied to every machine; ``ray get-auth-token --generate`` makes one."""
    environment: Annotated[dict[str, str], Strict(False)] = Field(default_factory=dict)
    """Environment variables of every Ray process and shell, such as ``MLFLOW_TRACKING_URI``. No secrets: the files are checked in."""
    object_store_gib: PositiveFloat = 2.0
    """Memory for objects on each machine, head and workers alike, GiB."""
    spill: SpillSpec = SpillSpec()
    disk_gib: PositiveInt = 100
    """Disk of each machine in a cloud without the room for spilled objects, GiB."""
    head_takes_work: bool = True
    """Whether tasks, workers and replicas may run on the head; without, it is for the cluster and for jobs' drivers."""
    gcs_storage: Annotated[RocksDbStorage | RedisStorage, Field(discriminator="kind")] | None = None
    """Where the head keeps the cluster's state, so that it can be started again while workers go on serving; None loses it."""
    idle_minutes: PositiveFloat = 10.0
    """A worker in a cloud that idles longer is given back."""

    local: LocalCluster | None = None
    aws: AwsCluster | None = None
    gcp: GcpCluster | None = None
    azure: AzureCluster | None = None

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        if not any((self.local, self.aws, self.gcp, self.azure)):
            raise ValueError("local, aws, gcp or azure must be given, got none. Describe a cluster")
        for name in self.environment:
            if not _ENVIRONMENT_NAME.fullmatch(name) or name in _OURS:
                raise ValueError(
                    f"environment must name variables other than {' and '.join(_OURS)}, got {name!r}. Rename it"
                )
        if self.spill.gib < self.object_store_gib:
            raise ValueError(
                f"spill.gib must be at least object_store_gib ({self.object_store_gib:g}), got {self.spill.gib:g}. "
                "Raise it: what does not fit into memory goes there"
            )
        room_gib = _TPU_BOOT_DISK_GIB - _TPU_SYSTEM_GIB
        if self.gcp is not None and self.spill.gib > room_gib:
            raise ValueError(
                f"spill.gib must be at most {room_gib} with TPU machines, whose disk has {_TPU_BOOT_DISK_GIB} GB, "
                f"got {self.spill.gib:g}. Lower it"
            )
        return self


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def load_description(path: Path) -> Description:
    """Read a description (YAML).

    Raises:
        SpecError: If the file cannot be read or anything in it is wrong; lists every problem.
    """
    return parse_model(Description, read_text(path), source=str(path))
