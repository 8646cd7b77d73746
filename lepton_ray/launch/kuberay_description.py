"""The typed description that the manifests for Kubernetes come from: what they share, and the sizes of what runs."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lepton_ray.spec.base import PositiveInt, Section
from lepton_ray.spec.load import parse_model, read_text

DnsName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,35}[a-z0-9])?$")]
"""Lower-case letters, digits and ``-``; at most 37 characters: KubeRay 1.7 takes 47 for a RayService, whose name has ``-serving`` behind it."""


class SizeSpec(Section):
    """What a pod requests and is limited to: Ray counts on all of it."""

    cpus: PositiveInt
    memory_gib: PositiveInt
    object_store_gib: PositiveInt
    """In ``/dev/shm``; part of ``memory_gib``."""
    spill_gib: PositiveInt
    """Disk of the node for Ray's logs and the objects that do not fit."""
    gpus: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        if self.object_store_gib >= self.memory_gib:
            raise ValueError(
                f"object_store_gib must be less than memory_gib ({self.memory_gib}), which it is part of, "
                f"got {self.object_store_gib}. Lower it"
            )
        return self


class WorkersSpec(SizeSpec):
    """Workers that the autoscaler adds and takes away."""

    min: Annotated[int, Field(ge=0)]
    max: PositiveInt

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min must be at most max ({self.max}), got {self.min}. Lower it, or raise max")
        return self


class RedisSpec(Section):
    """The head's memory in a Redis of yours; its password is in the secret."""

    kind: Literal["redis"]
    address: str
    """``host:port``."""


class RocksDbSpec(Section):
    """The head's memory on a volume of its own; alpha in Ray 2.60.

    KubeRay's operator refuses it unless it is started with ``--feature-gates=GCSFaultToleranceEmbeddedStorage=true``.
    """

    kind: Literal["rocksdb"]
    gib: PositiveInt


class TrainingSpec(Section):
    """Where specs run."""

    image: str
    workers: WorkersSpec
    spec: str
    """What the RayJob runs, without deploying it; below the image's working directory."""
    storage: str
    """URI that outlives the cluster."""
    max_hours: PositiveInt
    """A RayJob that takes longer is stopped."""

    @model_validator(mode="after")
    def _check_storage(self) -> Self:
        if "://" not in self.storage:
            raise ValueError(
                f"storage must be a URI such as s3://BUCKET/runs, got {self.storage!r}. What lies at a path goes with its pod"
            )
        return self


class ServingSpec(Section):
    """Where the application runs."""

    image: str
    workers: WorkersSpec
    config: str
    """File as ``serve deploy`` takes it, with one application."""


class KubeDescription(Section):
    """What the manifests of one project share, and where its two clusters differ."""

    name: DnsName
    """Begins the name of everything."""
    namespace: DnsName
    operator_namespace: DnsName
    """Of KubeRay's operator, which asks clusters how they are."""
    monitoring_namespace: DnsName
    """Of Prometheus."""
    ray_version: str
    """Of the images."""
    tracking_uri: str
    """MLflow server, as pods reach it."""
    head: SizeSpec
    """Runs no tasks."""
    gcs: Annotated[RedisSpec | RocksDbSpec, Field(discriminator="kind")] | None = None
    """Where the head's memory outlives it, in the RayCluster and the RayService; a RayJob starts its cluster again instead. None loses it:
    with the head the whole cluster begins anew, and nobody answers until then."""
    training: TrainingSpec
    serving: ServingSpec


def load_description(path: Path) -> KubeDescription:
    """Read a description.

    Raises:
        SpecError: If it cannot be read or anything in it is wrong; lists every problem.
    """
    return parse_model(KubeDescription, read_text(path), source=str(path))
