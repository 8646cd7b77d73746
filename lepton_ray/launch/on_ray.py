"""What Ray itself says of a launcher file, and jobs through Ray's own client. The private names of Ray 2.60 are here alone."""

import copy
import json
import logging
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray._private.accelerators import TPUAcceleratorManager
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.job_submission import JobStatus, JobSubmissionClient

from lepton_ray.core.errors import EngineError

_POLL_S = 1.0


@cache
def launcher_schema() -> dict[str, Any]:
    """Return Ray's JSON Schema of a launcher file."""
    path = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def what_ray_refuses(config: dict[str, Any]) -> str | None:
    """Return why Ray's own checks refuse a file's content, None if they take it; nothing is reached for."""
    logging.getLogger("ray.autoscaler._private.util").setLevel(
        logging.WARNING
    )  # it tells of each default that it fills in
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # noqa: BLE001  Ray and its providers raise what they like, click's errors too
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def is_tpu_type(text: str) -> bool:
    """Whether Ray takes a text such as ``v4-8`` for a TPU's type."""
    return bool(TPUAcceleratorManager.is_valid_tpu_accelerator_type(text))


def run_job(address: str, entrypoint: str, working_dir: Path, tell: Callable[[str], None]) -> int:
    """Run a job to its end, telling its log as it grows; returns the entrypoint's exit status.

    Args:
        address: URL of the dashboard.
        entrypoint: Shell command.
        working_dir: Folder that is copied to the cluster.
        tell: Takes pieces of the log.

    Raises:
        EngineError: If the dashboard does not take the job, or the job was stopped or lost.
    """
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(working_dir)})
        num_told, status = 0, client.get_job_status(job)
        while True:
            is_over = status.is_terminal()
            log = client.get_job_logs(job)
            tell(log[num_told:])
            num_told = len(log)
            if is_over:
                break
            time.sleep(_POLL_S)
            status = client.get_job_status(job)
        info = client.get_job_info(job)
    except (ConnectionError, RuntimeError) as error:
        raise EngineError(f"the cluster at {address} must take the job, got: {error}. See lepton-ray cluster status", retryable=True) from error  # fmt: skip
    if status == JobStatus.SUCCEEDED:
        return 0
    if not info.driver_exit_code or info.driver_exit_code < 0:
        raise EngineError(f"the job {job} must end by itself, got {status.value}: {info.message}", retryable=True)
    return int(info.driver_exit_code)
