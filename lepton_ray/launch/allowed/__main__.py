"""Write the allow-lists again: ``python -m lepton_ray.launch.allowed [PROVIDER ...]``.

Needs Ray and botocore for ``aws``, google-api-python-client for ``gcp_compute`` and ``gcp_tpu``, azure-mgmt-compute for ``azure``.
"""

import importlib
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lepton_ray.core.files import write_atomic
from lepton_ray.launch.allowed import PROVIDERS

_DRAFT = "http://json-schema.org/draft-07/schema#"
_INSTANCE_TYPE = r"^[a-z][a-z0-9-]*\.(nano|micro|small|medium|large|[0-9]*xlarge|metal(-[0-9]+xl)?)$"
_VM_SIZE = r"^(Standard|Basic)_[A-Z][A-Za-z0-9_-]*$"
_SET_BY_RAY_ON_AWS = ("SubnetId", "MinCount", "MaxCount")
_SET_BY_RAY_ON_AZURE = ("vmName", "vmTags", "vmCount", "msi", "nsg", "subnet", "zones", "provisionPublicIp", "adminUsername", "publicKey")  # fmt: skip
_OUTPUT_ONLY = "[Output Only]"


def make(provider: str) -> dict[str, Any]:
    """Return the JSON Schema of a provider's ``node_config``, from the installed libraries."""
    makers = {
        "aws": _make_aws,
        "gcp_compute": lambda: _make_gcp("compute.v1", "Instance", {"sourceInstanceTemplate": {"type": "string"}}, []),
        "gcp_tpu": lambda: _make_gcp(
            "tpu.v2alpha1", "Node", {"serviceAccounts": {"type": "array"}}, ["runtimeVersion"]
        ),
        "azure": _make_azure,
    }
    return makers[provider]()


def _make_aws() -> dict[str, Any]:
    """The input of EC2's RunInstances, with what Ray adds to it and without what Ray overwrites."""
    loader = importlib.import_module("botocore.loaders").Loader()
    shapes = loader.load_service_model("ec2", "service-2")["shapes"]
    found: dict[str, Any] = {}
    root = _aws_shape(shapes, "RunInstancesRequest", found)
    properties = {name: kind for name, kind in root["properties"].items() if name not in _SET_BY_RAY_ON_AWS}
    properties["SubnetIds"] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    properties["InstanceType"] = {"type": "string", "pattern": _INSTANCE_TYPE}
    needed = [{"required": ["InstanceType"]}, {"required": ["LaunchTemplate"]}]
    return _whole(f"botocore {version('botocore')}", {**root, "properties": properties, "anyOf": needed}, found)


def _aws_shape(shapes: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, Any]:
    shape = shapes[name]
    if shape["type"] == "structure":
        members = {key: _aws_member(shapes, member["shape"], found) for key, member in shape["members"].items()}
        required = [key for key in shape.get("required", []) if key not in _SET_BY_RAY_ON_AWS]
        return _object(members, required)
    if shape["type"] == "list":
        return {"type": "array", "items": _aws_member(shapes, shape["member"]["shape"], found)}
    kinds = {"integer": "integer", "long": "integer", "float": "number", "double": "number", "boolean": "boolean"}
    kind: dict[str, Any] = {"type": kinds.get(shape["type"], "string")}
    return {**kind, "enum": shape["enum"]} if "enum" in shape and name != "InstanceType" else kind


def _aws_member(shapes: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, Any]:
    if shapes[name]["type"] not in ("structure", "list"):
        return _aws_shape(shapes, name, found)
    if name not in found:
        found[name] = {}  # shapes may refer to themselves
        found[name] = _aws_shape(shapes, name, found)
    return {"$ref": f"#/definitions/{name}"}


def _make_gcp(service: str, name: str, added: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """A resource of a discovery document, without what only answers hold."""
    folder = Path(str(find_spec("googleapiclient").origin)).parent  # type: ignore[union-attr]  # it is installed here
    path = folder / "discovery_cache" / "documents" / f"{service}.json"
    schemas = json.loads(path.read_text(encoding="utf-8"))["schemas"]
    found: dict[str, Any] = {}
    root = _gcp_type(schemas, schemas[name], found)
    root = {**root, "properties": {**root["properties"], **added}, "required": required}
    return _whole(f"google-api-python-client {version('google-api-python-client')}, {service}", root, found)


def _gcp_type(schemas: dict[str, Any], kind: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    if (name := kind.get("$ref")) is not None:
        if name not in found:
            found[name] = {}
            found[name] = _gcp_type(schemas, schemas[name], found)
        return {"$ref": f"#/definitions/{name}"}
    if kind["type"] == "array":
        return {"type": "array", "items": _gcp_type(schemas, kind["items"], found)}
    if kind["type"] == "object" and "properties" in kind:
        given = {key: part for key, part in kind["properties"].items() if not _is_output(part)}
        return _object({key: _gcp_type(schemas, part, found) for key, part in given.items()}, [])
    if kind["type"] == "object":
        return {"type": "object"}
    if kind.get("format") in ("int64", "uint64"):
        return {"type": ["string", "integer"]}  # JSON has no such integers, YAML has: the service takes both
    plain = kind["type"] if kind["type"] in ("string", "integer", "number", "boolean") else None
    result: dict[str, Any] = {"type": plain} if plain else {}
    return {**result, "enum": kind["enum"]} if "enum" in kind else result


def _is_output(kind: dict[str, Any]) -> bool:
    return bool(kind.get("readOnly")) or kind.get("description", "").startswith(_OUTPUT_ONLY)


def _make_azure() -> dict[str, Any]:
    """The parameters of the template that Ray fills in, with the values that Azure's models have for them."""
    models = importlib.import_module("azure.mgmt.compute.models")
    ray_folder = Path(str(find_spec("ray").origin)).parent  # type: ignore[union-attr]  # it is installed here
    template = json.loads((ray_folder / "autoscaler/_private/_azure/azure-vm-template.json").read_text("utf-8"))
    kinds = {"int": "integer", "bool": "boolean"}
    parameters: dict[str, Any] = {
        name: {"type": kinds.get(one["type"], one["type"])}
        for name, one in template["parameters"].items()
        if name not in _SET_BY_RAY_ON_AZURE
    }
    parameters |= {
        "vmSize": {"type": "string", "pattern": _VM_SIZE},
        "priority": {"type": "string", "enum": _values(models.VirtualMachinePriorityTypes)},
        "evictionPolicy": {"type": "string", "enum": _values(models.VirtualMachineEvictionPolicyTypes)},
        "billingProfile": _object({"maxPrice": {"type": "number"}}, []),
        "availability_zone": {"type": ["string", "integer"]},
    }
    root = _object({"azure_arm_parameters": _object(parameters, ["vmSize"]), "tags": {"type": "object"}}, ["azure_arm_parameters"])  # fmt: skip
    return _whole(f"ray {version('ray')}, azure-mgmt-compute {version('azure-mgmt-compute')}", root, {})


def _values(kinds: Any) -> list[str]:
    return sorted(kind.value for kind in kinds)


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


def _whole(source: str, root: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": _DRAFT, "$comment": f"made from {source}", **root, "definitions": definitions}


def text_of(schema: dict[str, Any]) -> str:
    """Return a schema as its file has it: a line for each of its parts."""
    head = {key: value for key, value in schema.items() if key not in ("properties", "definitions")}
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key in ("properties", "definitions"):
        lines = [f"  {json.dumps(name)}: {json.dumps(part, sort_keys=True)}" for name, part in schema[key].items()]
        parts.append(f"{json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


if __name__ == "__main__":
    for given in sys.argv[1:] or PROVIDERS:
        write_atomic(Path(__file__).parent / f"{given}.json", text_of(make(given)))
