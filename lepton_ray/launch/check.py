"""What is wrong with a launcher file, all of it at once: what Ray refuses, what a cloud would, and what both ignore."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from lepton_ray.core.errors import SpecError
from lepton_ray.core.text import show
from lepton_ray.launch.allowed import schema_of
from lepton_ray.launch.on_ray import aws_image_regions, is_tpu_type, launcher_schema, what_ray_refuses
from lepton_ray.spec.yaml_text import STANDS_ONCE, parse

Config = dict[str, Any]

_ANYWHERE = ("type", "module", "disable_node_updaters", "disable_launch_config_check", "foreground_node_launch", "worker_liveness_check", "use_internal_ips", "use_external_head_ip", "cache_stopped_nodes")  # fmt: skip
# What Ray 2.60 reads of ``provider``; its own schema lets everything through.
PROVIDER_KEYS = {
    "local": ("head_ip", "worker_ips", "external_head_ip", "coordinator_address"),
    "aws": ("region", "availability_zone", "aws_credentials", "key_pair", "security_group", "cloudwatch"),
    "gcp": ("region", "availability_zone", "project_id", "gcp_credentials"),
    "azure": ("location", "resource_group", "subscription_id", "availability_zone", "tags", "subnet_mask", "unique_id", "msi_name", "msi_resource_group", "msi", "nsg", "subnet"),
}  # fmt: skip
_NEEDED = {
    "local": ("head_ip", "worker_ips"),
    "aws": ("region",),
    "gcp": ("region", "availability_zone", "project_id"),
    "azure": ("location", "resource_group"),
}

# Keys that the cloud takes but Ray overwrites without a word, and where to say it instead.
_OVERWRITTEN = {
    "SubnetId": "Ray ignores it. Use SubnetIds, a list",
    "MinCount": "Ray sets it. Use min_workers of the node type",
    "MaxCount": "Ray sets it. Use max_workers of the node type",
    "provisionPublicIp": "Ray sets it. Use provider.use_internal_ips",
    "zones": "Ray sets it. Use availability_zone",
    "vmTags": "Ray sets it. Use tags of the node_config",
    "adminUsername": "Ray sets it. Use auth.ssh_user",
    "publicKey": "Ray sets it. Use auth.ssh_public_key",
    "vmName": "Ray sets it. Remove it",
    "vmCount": "Ray sets it. Use max_workers of the node type",
    "msi": "Ray sets it. Use provider.msi",
    "nsg": "Ray sets it. Use provider.nsg",
    "subnet": "Ray sets it. Use provider.subnet",
}

_KINDS = {"object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}  # fmt: skip
_MAX_CHOICES = 12


def check_file(path: Path) -> Config:
    """Return what a launcher file says.

    Raises:
        SpecError: If it cannot be read or anything in it is wrong; lists every problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)  # as Ray itself does
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or no date
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise SpecError([f"the file must be readable YAML, got: {reason}. Mend it, or check the path"], str(path)) from None  # fmt: skip
    try:
        repeated = [problem for problem in parse(text).problems if STANDS_ONCE in problem]
        problems = [*repeated, *find_problems(config)]
    except RecursionError:
        problems = [
            "the file must not hold a part within itself, by an alias, and its parts must not lie so deep. Mend it"
        ]
    if problems:
        raise SpecError(problems, str(path))
    return dict(config)


def find_problems(config: Any) -> list[str]:
    """Return what is wrong with a launcher file's content, a sentence each; empty if nothing is."""
    if not isinstance(config, dict):
        return [f"the file must be a mapping, got {show(config)}. Start with 'cluster_name: ...'"]
    if problems := list(_odd_keys(config, "")):
        return problems  # JSON Schema knows no such keys
    problems = list(_breaches(config, launcher_schema(), ""))
    problems += _check_provider(config)
    problems += _check_node_types(config)
    problems += _check_starts(config)
    if not problems and (refused := what_ray_refuses(config)):
        problems.append(f"the file must be what ray up takes, got: {refused}. Mend it")
    return list(dict.fromkeys(problems))  # a schema's alternatives may say the same


def _odd_keys(value: Any, path: str) -> Iterator[str]:
    """Yield what is wrong with keys that YAML takes for numbers, dates or truth values."""
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str)]
        yield from (f"{path or 'the file'} must have keys that are text, got {show(key)}. Quote it" for key in odd)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _odd_keys(item, f"{path}.{key}" if path else str(key))


def _check_provider(config: Config) -> Iterator[str]:
    provider = config.get("provider")
    if not isinstance(provider, dict) or not isinstance(kind := provider.get("type"), str):
        return  # the schema has said so
    if kind not in PROVIDER_KEYS:
        if kind != "external":
            yield f"provider.type must be one of {', '.join(PROVIDER_KEYS)}, got {show(kind)}. {_hint(kind, PROVIDER_KEYS)}"
        return
    known = (*_ANYWHERE, *PROVIDER_KEYS[kind])
    yield from (_unknown(f"provider.{key}", key, known) for key in provider if key not in known)
    if kind == "local" and "coordinator_address" in provider:
        return
    yield from (f"provider.{key} must be given. Add it" for key in _NEEDED[kind] if provider.get(key) in (None, ""))
    workers = provider.get("worker_ips")
    if isinstance(workers, list) and (twice := [ip for ip in workers if workers.count(ip) > 1]):
        yield f"provider.worker_ips must name each machine once, got {show(twice[0])} {workers.count(twice[0])} times. Remove it"


def _check_node_types(config: Config) -> Iterator[str]:
    types, provider = config.get("available_node_types"), config.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if not isinstance(types, dict) or kind not in ("aws", "gcp", "azure"):
        return
    for name, node_type in types.items():
        if not isinstance(node_type, dict):
            continue
        path = f"available_node_types.{name}"
        least, most = node_type.get("min_workers", 0), node_type.get("max_workers")
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield f"{path}.min_workers must be at most max_workers ({most}), got {least}. Lower it, or raise max_workers"
        node = node_type.get("node_config")
        if not isinstance(node, dict):
            continue
        if kind == "gcp":
            yield from _check_gcp(node, f"{path}.node_config")
        else:
            yield from _breaches(node, schema_of(kind), f"{path}.node_config")
        if (
            kind == "aws"
            and "ImageId" not in node
            and (region := config["provider"].get("region")) not in aws_image_regions()
        ):
            yield f"{path}.node_config.ImageId must be given in {region}, for which Ray has no image of its own. Add it"


def _check_gcp(node: Config, path: str) -> Iterator[str]:
    """Ray tells a TPU from an instance by whether it has a ``machineType``."""
    is_tpu = "machineType" not in node and ("acceleratorType" in node or "acceleratorConfig" in node)
    if not is_tpu and "machineType" not in node and "sourceInstanceTemplate" not in node:
        yield f"{path} must have machineType, or acceleratorType for a TPU, got {', '.join(map(str, node)) or 'nothing'}. Add one"
    if is_tpu and "acceleratorType" in node and "acceleratorConfig" in node:
        yield f"{path} must have acceleratorType or acceleratorConfig, got both. Remove one"
    if is_tpu and isinstance(kind := node.get("acceleratorType", "v4-8"), str) and not is_tpu_type(kind):
        yield f"{path}.acceleratorType must be a generation and a size, such as v4-8, got {kind!r}. Check its spelling"
    yield from _breaches(node, schema_of("gcp_tpu" if is_tpu else "gcp_compute"), path)


def _check_starts(config: Config) -> Iterator[str]:
    """Traps of Ray 2.60 that no schema knows."""
    starts = config.get("head_start_ray_commands", [])  # without, Ray has its own, which set nothing
    provider = config.get("provider")
    if not isinstance(starts, list) or not isinstance(provider, dict):
        return
    text = " ".join(str(command) for command in starts)
    if "ray start" in text and "--autoscaling-config" not in text:
        yield "head_start_ray_commands must give ray start --autoscaling-config=~/ray_bootstrap_config.yaml, got none. Add it: no worker is started without"
    if provider.get("type") == "local" and "RAY_enable_autoscaler_v2=0" not in text:
        yield "head_start_ray_commands must set RAY_enable_autoscaler_v2=0 with provider local, got nothing. Add it before ray start: autoscaler v2 starts one worker too few"


def _breaches(value: Any, schema: Config, path: str) -> Iterator[str]:
    """Yield how a value breaks a JSON Schema, a sentence for each place."""
    errors = jsonschema.Draft7Validator(schema).iter_errors(value)
    for error in sorted(errors, key=lambda error: list(map(str, error.absolute_path))):
        yield from _explain(error, ".".join([*([path] if path else []), *map(str, error.absolute_path)]))


def _explain(error: jsonschema.ValidationError, place: str) -> Iterator[str]:
    schema: Any = error.schema
    rule: Any = error.validator_value
    value: Any = error.instance
    where, got = place or "the file", show(value)
    if error.validator == "additionalProperties":
        known = schema.get("properties", {})
        yield from (_unknown(f"{place}.{key}" if place else key, key, known) for key in value if key not in known)  # fmt: skip
    elif error.validator == "required":
        missing = [key for key in rule if key not in value]
        yield from (f"{place}.{key} must be given. Add it" if place else f"{key} must be given. Add it" for key in missing)  # fmt: skip
    elif error.validator == "type":
        kinds = " or ".join(_KINDS.get(kind, kind) for kind in ([rule] if isinstance(rule, str) else rule))
        yield f"{where} must be {kinds}, got {got}. Change it"
    elif error.validator == "enum":
        yield f"{where} must be one of {_choices(rule)}, got {got}. {_hint(value, rule)}"
    elif error.validator == "anyOf":
        names = " or ".join(part["required"][0] for part in rule)
        yield f"{where} must have {names}, got neither. Add one"
    elif error.validator == "pattern":
        yield f"{where} must be like {rule}, got {got}. Check its spelling"
    else:
        yield f"{where} must be valid: {error.message}. Change it"


def _unknown(path: str, key: Any, known: Any) -> str:
    if key in _OVERWRITTEN and not path.startswith("provider."):
        return f"{path} must not be given: {_OVERWRITTEN[key]}"
    return f"{path} must be a known key. {_hint(key, known)}"


def _hint(wrong: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(wrong), list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Choose from {_choices(known)}"


def _choices(known: Any) -> str:
    names = [str(name) for name in known]
    return ", ".join(names[:_MAX_CHOICES]) + (", ..." if len(names) > _MAX_CHOICES else "")
