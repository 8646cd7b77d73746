"""The OpenAPI document of a served model, made of its signature: what to send to each path, and what comes back.

Records are described as they are best sent. Some more is understood, such as a number in a text; the document does not say all of it.
"""

from collections.abc import Callable
from typing import Any

from lepton_ray.artifacts.signature import Signature, TensorSpec
from lepton_ray.spec.data import (
    CategoryColumn,
    Column,
    ImageColumn,
    NumberColumn,
    SeriesColumn,
    TextColumn,
    TimeColumn,
)

_Schema = dict[str, Any]

_ARROW, _PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
_BINARY: _Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
_PROBABILITY: _Schema = {"type": "number", "minimum": 0, "maximum": 1}
_NUMBERS = ("epoch_s", "epoch_ms")
_ERRORS = {
    "400": "not of the protocol",
    "401": "no good token",
    "403": "a token without the scope",
    "404": "no such job of this token, or none any more",
    "409": "a job that is not done",
    "413": "a body that is too large",
    "415": "a body with a content-encoding",
    "422": "a record that breaks the signature; field, rule and value are named; or a key that came with another body",
    "429": "more than a limit; Retry-After says when to ask again",
    "500": "the server failed",
    "503": "too many wait; Retry-After says when to ask again",
    "507": "the model is larger than the memory limit",
}


def describe(name: str, version: str, signature: Signature, max_rows: int, has_jobs: bool) -> _Schema:
    """Return the document, of OpenAPI 3.1.

    Whether tokens are asked for is not the model's affair: each path takes one or none.
    """
    jobs = _jobs(signature) if has_jobs else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version, "description": "Predictions of a model, served by lepton_ray."},
        "servers": [{"url": "."}],
        "security": [{"bearer": []}, {}],
        "paths": {
            "/predict": {"post": _predict(signature)},
            **jobs,
            **_server_paths(),
            **_model_paths(name, version, signature),
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token, where serve.auth asks for one."}
            },
            "schemas": {
                **_schemas(signature, max_rows),
                **({"Job": _JOB} if has_jobs else {}),
                "Error": _object(error={"type": "string"}),
            },
            "responses": {
                code: {"description": text, "content": _json(_ref("Error"))} for code, text in _named_errors().items()
            },
        },
    }


def add_model(document: _Schema, name: str, version: str, signature: Signature, max_rows: int) -> None:
    """Add a further model to the document of the one that is always there."""
    of = f".{name}"
    document["paths"] |= {
        f"/v2/models/{name}/predict": {"post": _predict(signature, of)},
        **_model_paths(name, version, signature, of),
    }
    document["components"]["schemas"] |= _schemas(signature, max_rows, of)


def _schemas(signature: Signature, max_rows: int, of: str = "") -> _Schema:
    """Return what a model reads and answers; ``of`` ends the names of a further one."""
    return {
        f"Record{of}": _record(signature),
        f"Records{of}": {"type": "array", "items": _ref(f"Record{of}"), "minItems": 1, "maxItems": max_rows},
        f"Prediction{of}": _prediction(signature),
        f"Predictions{of}": _object(
            model={"type": "string"},
            version={"type": "string"},
            predictions={"type": "array", "items": _ref(f"Prediction{of}")},
        ),
    }


def _ref(name: str, section: str = "schemas") -> _Schema:
    return {"$ref": f"#/components/{section}/{name}"}


def _json(schema: _Schema) -> _Schema:
    return {"application/json": {"schema": schema}}


def _object(**properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_COUNT: _Schema = {"type": "integer", "minimum": 0}
_JOB: _Schema = {
    **_object(
        id={"type": "string"},
        state={"type": "string", "enum": ["queued", "running", "done", "failed", "cancelled"]},
        rows={**_COUNT, "description": "0 until they are known"},
        rows_done=_COUNT,
    ),
    "additionalProperties": {"type": ["integer", "string"]},
    "description": "One that has failed also has 'status' and 'error'.",
}


def _named_errors() -> dict[str, str]:
    return {f"Error{code}": text for code, text in _ERRORS.items()}


def _failures(*codes: str) -> _Schema:
    return {code: _ref(f"Error{code}", "responses") for code in ("401", "403", "429", *codes)}


def _responses(content: _Schema, *codes: str) -> _Schema:
    return {"200": {"description": "the answer", "content": content}, **_failures(*codes)}


def _tables() -> _Schema:
    return {"text/csv": {"schema": {"type": "string"}}, **{kind: {"schema": _BINARY} for kind in (_ARROW, _PARQUET)}}


def _bodies(signature: Signature, records: _Schema) -> _Schema:
    bodies: _Schema = {**_json({"oneOf": [records, _object(records=records)]}), **_tables()}
    for name in signature.of_kind("image"):
        files = {"type": "array", "items": _BINARY, "minItems": 1}
        fields = {other: {"type": "string"} for other in signature.columns if other != name}
        form = {"type": "object", "properties": {name: files, **fields}, "required": [name]}
        bodies |= {kind: {"schema": _BINARY} for kind in ("image/png", "image/jpeg")}
        bodies["multipart/form-data"] = {"schema": form}
    return {"required": True, "content": bodies}


def _predict(signature: Signature, of: str = "") -> _Schema:
    answers = {**_json(_ref(f"Predictions{of}")), **_tables(), "text/event-stream": {"schema": {"type": "string"}}}
    codes = ("400", "413", "415", "422", "500", "503", *_no_room(of))
    return {
        "operationId": f"predict{of}",
        "summary": "Predictions for records",
        "requestBody": _bodies(signature, _ref(f"Records{of}")),
        "responses": _responses(answers, *codes),
    }


def _jobs(signature: Signature) -> _Schema:
    """Return the paths of jobs, whose bodies may have more records than that of a prediction."""
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}
    location = {"location": {"required": True, "schema": {"type": "string"}}}
    taken = {"description": "the job is taken", "headers": location, "content": _json(_ref("Job"))}
    submit = {
        "operationId": "submitJob",
        "summary": "Take a long prediction, and answer at once",
        "parameters": [
            {**key, "description": "The same job sent twice with it is one job; another body needs another key."}
        ],
        "requestBody": _bodies(signature, {"type": "array", "items": _ref("Record"), "minItems": 1}),
        "responses": {"202": taken, **_failures("413", "415", "422", "503")},
    }
    told = _responses(_json(_ref("Job")), "404", "503")
    given = _responses(_json(_ref("Predictions")), "404", "409", "503")
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}

    def one(name: str, summary: str, responses: _Schema) -> _Schema:
        return {"operationId": name, "summary": summary, "parameters": [id], "responses": responses}

    return {
        "/jobs": {"post": submit},
        "/jobs/{id}": {
            "get": one("tellJob", "How far a job is", told),
            "delete": one("cancelJob", "End a job and forget it", told),
        },
        "/jobs/{id}/result": {"get": one("giveJob", "The predictions of a job that is done", given)},
    }


def _server_paths() -> _Schema:
    paths = {
        "/openapi.json": ("get", "describe", "This document"),
        "/v2": ("get", "server", "What the server is"),
        "/v2/health/live": ("get", "live", "Whether the server lives"),
        "/v2/health/ready": ("get", "ready", "Whether the server is ready"),
        "/v2/repository/index": ("post", "index", "The packages that are served"),
        "/v2/models/stats": ("get", "allStats", "What the packages have answered, in Triton's form"),
    }
    return {path: {method: _operation(id, summary)} for path, (method, id, summary) in paths.items()}


def _model_paths(name: str, version: str, signature: Signature, of: str = "") -> _Schema:
    paths: _Schema = {}
    for path, kind in ((f"/v2/models/{name}", of), (f"/v2/models/{name}/versions/{version}", f"OfVersion{of}")):
        paths |= {
            path: {"get": _operation(f"metadata{kind}", "The model's tensors")},
            f"{path}/ready": {"get": _operation(f"modelReady{kind}", "Whether the model is ready", *_no_room(of))},
            f"{path}/config": {"get": _operation(f"config{kind}", "The model's configuration, in Triton's form")},
            f"{path}/stats": {"get": _operation(f"stats{kind}", "What the model has answered, in Triton's form")},
            f"{path}/infer": {"post": _infer(f"infer{kind}", signature, *_no_room(of))},
        }
    return paths


def _no_room(of: str) -> tuple[str, ...]:
    """Return the code that only a further model can answer with."""
    return ("507",) if of else ()


_ANYTHING: _Schema = {"type": ["object", "array"]}


def _operation(id: str, summary: str, *codes: str) -> _Schema:
    return {"operationId": id, "summary": summary, "responses": _responses(_json(_ANYTHING), *codes)}


def _infer(id: str, signature: Signature, *codes: str) -> _Schema:
    raw: _Schema = {"application/octet-stream": {"schema": _BINARY}}
    length = {"name": "Inference-Header-Content-Length", "in": "header", "schema": {"type": "integer", "minimum": 0}}
    return {
        "operationId": id,
        "summary": "Predictions for tensors: Open Inference Protocol v2",
        "parameters": [{**length, "description": "Bytes of the JSON, where raw tensors stand behind it."}],
        "requestBody": {"required": True, "content": {**_json(_tensors(signature)), **raw}},
        "responses": _responses({**_json(_ANYTHING), **raw}, "400", "413", "415", "422", "500", "503", *codes),
    }


def _tensors(signature: Signature) -> _Schema:
    inputs: _Schema = {
        "name": {"type": "string", "enum": [tensor.name for tensor in signature.inputs]},
        "datatype": {"type": "string", "examples": [tensor.datatype for tensor in signature.inputs]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {"type": "array"},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}},
    }
    outputs: _Schema = {
        "name": {"type": "string", "enum": [tensor.name for tensor in signature.outputs]},
        "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "inputs": {
                "type": "array",
                "items": {"type": "object", "properties": inputs, "required": ["name", "datatype", "shape"]},
                "minItems": len(signature.inputs),
            },
            "outputs": {"type": "array", "items": {"type": "object", "properties": outputs, "required": ["name"]}},
            "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
        },
        "required": ["inputs"],
    }


def _record(signature: Signature) -> _Schema:
    properties: _Schema = {name: describe_column(column) for name, column in signature.columns.items()}
    properties |= {name: {"description": "May be sent, and is not read."} for name in signature.unused}
    required = [name for name, column in signature.columns.items() if _is_required(column)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _is_required(column: Column) -> bool:
    return isinstance(column, ImageColumn) or bool(getattr(column, "required", False))


def describe_column(column: Column) -> _Schema:
    """Return the schema of a column's values; ``x-kind`` is its kind."""
    schema = {"x-kind": column.kind, **_DESCRIBERS[type(column)](column)}
    if not _is_required(column) and isinstance(schema.get("type"), str) and column.kind != "series":
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


def _number(column: NumberColumn) -> _Schema:
    bounds = {"minimum": column.min, "maximum": column.max}
    kind = "integer" if column.whole else "number"
    return {"type": kind, **{name: bound for name, bound in bounds.items() if bound is not None}}


def _category(column: CategoryColumn) -> _Schema:
    if column.allowed is None:
        return {"type": "string"}
    is_exact = not column.normalise and not column.replace
    return {"type": "string", "enum" if is_exact else "examples": list(column.allowed)}


def _text(column: TextColumn) -> _Schema:
    lengths = {} if column.normalise else {"minLength": column.min_length, "maxLength": column.max_length}
    return {"type": "string", **{name: length for name, length in lengths.items() if length is not None}}


def _time(column: TimeColumn) -> _Schema:
    words = {"epoch_s": "seconds since 1970", "epoch_ms": "milliseconds since 1970", "iso": "ISO 8601"}
    bounds = [f"{word} {bound}" for word, bound in (("from", column.min), ("to", column.max)) if bound is not None]
    text = " ".join([words.get(column.format, f"by the pattern {column.format}"), *bounds])
    return {"type": "number" if column.format in _NUMBERS else "string", "description": text}


def _series(column: SeriesColumn) -> _Schema:
    items = {"type": ["number", "null"]}
    return {"type": "array", "items": items, "minItems": column.length, "maxItems": column.length}


def _image(column: ImageColumn) -> _Schema:
    schema: _Schema = {"type": "integer", "minimum": 0, "maximum": 255}
    for size in (column.channels, column.width, column.height):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    file = _object(b64={"type": "string", "contentEncoding": "base64", "description": "of a PNG or JPEG file"})
    return {"oneOf": [file, schema], "description": f"{column.width}x{column.height} pixels"}


_DESCRIBERS: dict[type, Callable[[Any], _Schema]] = {
    NumberColumn: _number,
    CategoryColumn: _category,
    TextColumn: _text,
    TimeColumn: _time,
    SeriesColumn: _series,
    ImageColumn: _image,
}


def _prediction(signature: Signature) -> _Schema:
    outputs = {tensor.name: _output(tensor, signature) for tensor in signature.outputs}
    if "probabilities" in outputs and "label" not in outputs:
        labels = {"type": "array", "items": {"type": "string", "enum": list(signature.classes)}}
        outputs = {"labels": labels, **outputs}
    return _object(**outputs)


def _output(tensor: TensorSpec, signature: Signature) -> _Schema:
    if tensor.name == "probabilities":
        return _object(**dict.fromkeys(signature.classes, _PROBABILITY))
    if tensor.datatype == "BYTES":
        return {"type": "string", "enum": list(signature.classes)}
    single = {"type": "boolean" if tensor.datatype == "BOOL" else "number"}
    if len(tensor.shape) == 1:
        return single
    return {"type": "array", "items": single, "minItems": tensor.shape[1], "maxItems": tensor.shape[1]}
