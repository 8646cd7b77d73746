"""What a worker asks the cluster for."""

from lepton_ray.spec.model import TrainSpec
from lepton_ray.spec.tpu import chips_per_host


def is_in_driver(spec: TrainSpec, is_local: bool) -> bool:
    """Whether the training needs no worker of Ray Train, on a storage that is this machine's or not."""
    return is_local and spec.num_workers == 1 and not spec.use_gpu and spec.framework != "jax"


def worker_resources(spec: TrainSpec) -> dict[str, float]:
    """Return what a worker asks the cluster for, as Ray itself does of TPUs; whole numbers, which Ray counts devices by."""
    resources: dict[str, float] = {"CPU": spec.cpus_per_worker}
    if spec.use_gpu:
        resources["GPU"] = 1
    if spec.tpu_type and spec.tpu_topology:
        resources |= {
            "TPU": chips_per_host(spec.tpu_type, spec.tpu_topology),
            f"accelerator_type:{spec.tpu_type}": 0.001,
        }
    return resources
