"""The messages of the Open Inference Protocol v2 over gRPC, and what they are over HTTP: there is one home for what is answered.

The classes are made of the tables below, so no generated code follows a version of protobuf. Field numbers and types are the
protocol's: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_grpc.md; of the
repository's index, configuration and statistics those of https://github.com/triton-inference-server/common, protobuf/. Fields that
are left out here, such as parameters, are read over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError

from lepton_ray.serve.protocol import ProtocolError

SERVICE = "/inference.GRPCInferenceService/"
INFER = "ModelInfer"

_TAGS = (1 << 3 | 2, 2 << 3 | 2)  # of model_name and model_version, as they stand in a message
_MAX_SHORT = 0x7F  # largest length that is one byte
_MAX_SHIFT = 63  # of the last seven bits of a number
_MAX_FIELDS = 256  # of a request for predictions: an empty tensor is two bytes of it, and a hundred in memory
_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5  # how the value of a field stands

_MODEL = "string name=1, string version=2"
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready=1",
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": "bool ready=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name=1, string version=2, repeated string extensions=3",
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": "string name=1, repeated string versions=2, string platform=3, repeated TensorMetadata inputs=4, "
    "repeated TensorMetadata outputs=5",
    "TensorMetadata": "string name=1, string datatype=2, repeated int64 shape=3",
    "ModelInferRequest": "string model_name=1, string model_version=2, string id=3, repeated Tensor inputs=5, "
    "repeated RequestedOutput outputs=6, repeated bytes raw_input_contents=7",
    "ModelInferResponse": "string model_name=1, string model_version=2, string id=3, repeated Tensor outputs=5, "
    "repeated bytes raw_output_contents=6",
    "Tensor": "string name=1, string datatype=2, repeated int64 shape=3, Contents contents=5",
    "RequestedOutput": "string name=1",
    "Contents": "repeated bool bool_contents=1, repeated int32 int_contents=2, repeated int64 int64_contents=3, "
    "repeated uint32 uint_contents=4, repeated uint64 uint64_contents=5, repeated float fp32_contents=6, "
    "repeated double fp64_contents=7, repeated bytes bytes_contents=8",
    "RepositoryIndexRequest": "string repository_name=1, bool ready=2",
    "RepositoryIndexResponse": "repeated ModelIndex models=1",
    "ModelIndex": "string name=1, string version=2, string state=3, string reason=4",
    "ModelConfigRequest": _MODEL,
    "ModelConfigResponse": "ModelConfig config=1",
    "ModelConfig": "string name=1, string platform=2, int32 max_batch_size=4, repeated ModelInput input=5, "
    "repeated ModelOutput output=6, string backend=17",
    "ModelInput": "string name=1, DataType data_type=2, repeated int64 dims=4, Reshape reshape=5",
    "ModelOutput": "string name=1, DataType data_type=2, repeated int64 dims=3, Reshape reshape=5",
    "Reshape": "repeated int64 shape=1",
    "ModelStatisticsRequest": _MODEL,
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats=1",
    "ModelStatistics": "string name=1, string version=2, uint64 last_inference=3, uint64 inference_count=4, "
    "uint64 execution_count=5, InferStatistics inference_stats=6, repeated BatchStatistics batch_stats=7",
    "InferStatistics": "Duration success=1, Duration fail=2, Duration queue=3, Duration compute_input=4, "
    "Duration compute_infer=5, Duration compute_output=6, Duration cache_hit=7, Duration cache_miss=8",
    "BatchStatistics": "uint64 batch_size=1, Duration compute_input=2, Duration compute_infer=3, Duration compute_output=4",
    "Duration": "uint64 count=1, uint64 ns=2",
}
_DATA_TYPES = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING"
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the values of a datatype stand, if not raw."""


def _build_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="inference", syntax="proto3")
    enum = file.enum_type.add(name="DataType")
    for place, name in enumerate(_DATA_TYPES.split()):
        enum.value.add(name=f"TYPE_{name}", number=place)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(", ")):
            *repeated, kind, rest = text.split()
            field_name, _, number = rest.partition("=")
            field = message.field.add(name=field_name, number=int(number), label=3 if repeated else 1)
            if kind in _MESSAGES or kind == "DataType":
                field.type_name = f".inference.{kind}"
                field.type = field.TYPE_ENUM if kind == "DataType" else field.TYPE_MESSAGE
            else:
                field.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()  # of our own: another library may have the same names in the common one
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _MESSAGES
    }


CLASSES = _build_classes()
"""By the name of a message."""


class Asking(NamedTuple):
    """What a method asks for over HTTP."""

    method: str
    path_of: Callable[[Any], str]
    """Of its message."""
    wrapper: str | None = None
    """Field of the answer that holds what HTTP answers; None if it is the answer."""


def _of_model(what: str) -> Callable[[Any], str]:
    def path_of(message: Any) -> str:
        if "/" in message.name or "/" in message.version:
            raise ProtocolError("name and version must come without a slash")
        version = f"/versions/{message.version}" if message.version else ""
        return f"/v2/models/{message.name}{version}{what}"

    return path_of


def _statistics(message: Any) -> str:
    return _of_model("/stats")(message) if message.name else "/v2/models/stats"


ASKING = {
    "ServerLive": Asking("GET", lambda _: "/v2/health/live"),
    "ServerReady": Asking("GET", lambda _: "/v2/health/ready"),
    "ServerMetadata": Asking("GET", lambda _: "/v2"),
    "ModelReady": Asking("GET", _of_model("/ready")),
    "ModelMetadata": Asking("GET", _of_model("")),
    "ModelConfig": Asking("GET", _of_model("/config"), "config"),
    "ModelStatistics": Asking("GET", _statistics),
    "RepositoryIndex": Asking("POST", lambda _: "/v2/repository/index", "models"),
}
"""The methods besides that of predictions."""


def read_path(name: str, body: bytes) -> str:
    """Return the path that the method ``name`` asks for.

    Raises:
        ProtocolError: If the body is not its message.
    """
    return ASKING[name].path_of(_decode(f"{name}Request", body))


def write_answer(name: str, content: bytes) -> bytes:
    """Return the answer of the method ``name``, of the JSON that HTTP has answered.

    Raises:
        ProtocolError: If that is of something else: a model may have a name that means more in a path.
    """
    answer = orjson.loads(content)
    if name == "ModelMetadata" and "inputs" not in answer:
        raise ProtocolError("name must be that of a model")
    wrapper = ASKING[name].wrapper
    message = CLASSES[f"{name}Response"]()
    json_format.ParseDict({wrapper: answer} if wrapper else answer, message, ignore_unknown_fields=True)
    return bytes(message.SerializeToString())


def peek_model(body: bytes) -> tuple[str, str] | None:
    """Return the model's name and version that a request for predictions begins with, None if it does not.

    Who answers is known without a look at the tensors. A version that is not there is empty.
    """
    texts = dict.fromkeys(_TAGS, "")
    place = 0
    for _ in range(_MAX_FIELDS):  # a message of more is refused where it is read, off the event loop
        if place + 1 >= len(body) or (tag := body[place]) not in texts:
            break
        end = place + 2 + body[place + 1]
        if body[place + 1] > _MAX_SHORT:
            return None
        texts[tag] = str(body[place + 2 : end], "utf-8", "replace")
        place = end
    name, version = texts.values()
    return (name, version) if name else None


def read_infer(body: bytes | bytearray) -> tuple[dict[str, Any], memoryview]:
    """Return a request for predictions as the JSON of HTTP says it, and its raw tensors behind each other.

    Raises:
        ProtocolError: If it is none.
    """
    _check_fields(body)
    message = _decode("ModelInferRequest", bytes(body))
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        rule = f"raw_input_contents must be as many as inputs ({len(message.inputs)}), or none"
        raise ProtocolError(f"{rule}, got {len(raw)}")
    inputs = [_read_tensor(tensor, raw[index] if raw else None) for index, tensor in enumerate(message.inputs)]
    request = {
        "model_name": message.model_name,
        "model_version": message.model_version,
        "id": message.id,
        "inputs": inputs,
        "outputs": [{"name": output.name} for output in message.outputs],
        "parameters": {"binary_data_output": bool(raw)},
    }
    return request, memoryview(raw[0] if len(raw) == 1 else b"".join(raw))


def _check_fields(body: bytes | bytearray) -> None:
    place = count = 0
    while place < len(body):
        tag, place = _read_varint(body, place)
        kind = tag & 7
        size, place = _read_varint(body, place) if kind in (_VARINT, _SIZED) else (0, place)
        place += {_SIZED: size, _FIXED64: 8, _FIXED32: 4}.get(kind, 0)
        count += 1
        if count > _MAX_FIELDS:
            raise ProtocolError(f"the message must have at most {_MAX_FIELDS} fields. Send inputs once each")


def _read_varint(body: bytes | bytearray, place: int) -> tuple[int, int]:
    """Return a number, and where it ends; of what breaks off protobuf says so."""
    value = shift = 0
    while place < len(body):
        byte = body[place]
        value, shift, place = value | (byte & _MAX_SHORT) << shift, shift + 7, place + 1
        if byte <= _MAX_SHORT or shift > _MAX_SHIFT:
            break
    return value, place


def _read_tensor(tensor: Any, raw: bytes | None) -> dict[str, Any]:
    given = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    place = f"inputs.{tensor.name[:80]}"
    if raw is not None:
        if tensor.HasField("contents"):
            raise ProtocolError(f"{place}.contents must not stand beside raw_input_contents. Remove one")
        return {**given, "parameters": {"binary_data_size": len(raw)}}
    field = _CONTENTS.get(tensor.datatype)
    values = [] if field is None else list(getattr(tensor.contents, field))
    if tensor.datatype != "BYTES":
        return {**given, "data": values}
    try:
        return {**given, "data": [value.decode() for value in values]}
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{place}.contents must be UTF-8, got {error.object[:80]!r}") from error


def write_infer(head: Mapping[str, str], tensors: Sequence[Mapping[str, Any]], blobs: Sequence[bytes]) -> bytes:
    """Return the answer to a request for predictions: ``head`` names model, version and id; raw tensors are ``blobs``."""
    message = CLASSES["ModelInferResponse"](**head, raw_output_contents=blobs)
    for tensor in tensors:
        written = message.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if "data" in tensor:
            values = tensor["data"]
            listed = values if isinstance(values, list) else values.tolist()
            field = getattr(written.contents, _CONTENTS[tensor["datatype"]])
            field.extend([text.encode() for text in listed] if tensor["datatype"] == "BYTES" else listed)
    return bytes(message.SerializeToString())


def _decode(name: str, body: bytes) -> Any:
    message = CLASSES[name]()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ProtocolError(f"the message must be a {name}") from error
    return message
