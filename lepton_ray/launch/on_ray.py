"""What Ray itself says of a launcher file. The private names of Ray 2.60 are here alone."""

import ast
import copy
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray._private.accelerators import TPUAcceleratorManager
from ray.autoscaler._private.util import prepare_config, validate_config


@cache
def launcher_schema() -> dict[str, Any]:
    """Return Ray's JSON Schema of a launcher file."""
    path = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def what_ray_refuses(config: dict[str, Any]) -> str | None:
    """Return why Ray's own checks refuse a file's content, None if they take it; nothing is reached for."""
    # it tells of each default that it fills in
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # noqa: BLE001  Ray and its providers raise what they like, click's errors too
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def is_tpu_type(text: str) -> bool:
    """Whether Ray takes a text such as ``v4-8`` for a TPU's type."""
    return bool(TPUAcceleratorManager.is_valid_tpu_accelerator_type(text))


@cache
def aws_image_regions() -> frozenset[str]:
    """Return the regions of AWS whose machine image Ray knows; its module is read, as importing it takes boto3."""
    module = ast.parse((Path(ray.__file__).parent / "autoscaler" / "_private" / "aws" / "config.py").read_text("utf-8"))
    (images,) = (
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["DEFAULT_AMI"]
    )
    return frozenset(ast.literal_eval(images))
