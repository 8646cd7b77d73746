"""YAML file + ``--set`` overrides -> ``RunSpec``, or every problem at once, each with its line."""

import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lepton_ray.core.errors import SpecError
from lepton_ray.core.text import show
from lepton_ray.spec import yaml_text
from lepton_ray.spec.base import IMPORT_PATH
from lepton_ray.spec.run import RunSpec

Model = TypeVar("Model", bound=BaseModel)

_MAX_SPEC_BYTES = 4 << 20
_MAPPING_ERRORS = ("dict_type", "model_type", "model_attributes_type")


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read a spec file.

    Args:
        path: YAML file, at most 4 MiB of UTF-8.
        overrides: ``section.field=value`` texts that replace or add values, as ``--set`` takes them.

    Raises:
        SpecError: If the file cannot be read or anything in it is wrong; lists every problem.
    """
    return parse_spec(read_text(Path(path)), overrides, source=str(path))


def read_text(path: Path) -> str:
    """Return the text of a spec file; see ``load_spec``."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise SpecError(
            [f"the spec must be a readable file, got {str(path)!r} ({error.strerror}). Check the path"]
        ) from error
    if len(content) > _MAX_SPEC_BYTES:
        raise SpecError([f"the spec must be at most {_MAX_SPEC_BYTES} bytes, got more. Split the run"], str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            [f"the spec must be UTF-8, got byte {content[error.start]:#x} at offset {error.start}"], str(path)
        ) from error


def parse_spec(text: str, overrides: Sequence[str] = (), source: str = "spec") -> RunSpec:
    """Build a spec from YAML text; see ``load_spec``."""
    return parse_model(RunSpec, text, overrides, source)


def parse_model(model: type[Model], text: str, overrides: Sequence[str] = (), source: str = "spec") -> Model:
    """Build a model from YAML text; its errors are those of ``load_spec``."""
    document = yaml_text.parse(text)
    problems = list(document.problems)
    data = document.data if document.data is not None else {}
    if not isinstance(data, dict):
        problems.append(f"the spec must be a mapping of sections, got {type(data).__name__}. Start with 'name: ...'")
        raise SpecError(problems, source)
    if problems and not data:
        raise SpecError(problems, source)
    set_paths = [path for override in overrides if (path := _apply_override(data, override, problems))]
    try:
        spec = model.model_validate(data)
    except ValidationError as error:
        for details in error.errors():
            problems += _explain_all(details, document.lines, set_paths, model)
    except RecursionError:
        problems.append("the spec must not be nested so deep")
    if problems:
        raise SpecError(problems, source)
    return spec


def _apply_override(data: dict[str, Any], override: str, problems: list[str]) -> tuple[str, ...] | None:
    name, separator, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not separator or not all(path) or not yaml_text.is_encodable(name):
        problems.append(f"--set must be PATH=VALUE, got {show(override)}. Write for example --set train.epochs=5")
        return None
    try:
        value = yaml_text.parse_scalar(text)
    except ValueError as error:
        problems.append(f"--set {name} must have a YAML value, got {show(text)} ({error})")
        return None
    target, rest = data, path
    followed: tuple[str, ...] = ()
    while len(rest) > (size := _key_size(target, rest)):
        key, rest = ".".join(rest[:size]), rest[size:]
        child = target.get(key)
        if child is None:
            child = target[key] = {}
        if not isinstance(child, dict):
            problems.append(f"--set {name} must follow sections, but {key!r} is {show(child)}. Set {key} itself")
            return None
        target, followed = child, (*followed, key)
    key = ".".join(rest)
    target[key] = value
    return (*followed, key)


def _key_size(section: dict[str, Any], path: tuple[str, ...]) -> int:
    """Return how many parts of a path are its first key: keys of the file may have dots, as ``train.lr`` of ``tune.space``."""
    sizes = range(len(path), 0, -1)
    return next((size for size in sizes if ".".join(path[:size]) in section), 1)


def _explain_all(
    details: ErrorDetails, lines: dict[yaml_text.Path, int], set_paths: list[tuple[str, ...]], root: type[BaseModel]
) -> list[str]:
    """Return the sentences of an error; one that compares sections has several, each of which begins with its path."""
    if details["type"] != "problems":
        return [_explain(details, lines, set_paths, root)]
    sentences: list[str] = details["ctx"]["problems"]
    return [_place(_path_of(text), lines, set_paths) + text + ("" if text[-1] in ".?" else ".") for text in sentences]


def _path_of(sentence: str) -> yaml_text.Path:
    return tuple(int(key) if key.isdecimal() else key for key in sentence.partition(" ")[0].split("."))


def _explain(
    details: ErrorDetails, lines: dict[yaml_text.Path, int], set_paths: list[tuple[str, ...]], root: type[BaseModel]
) -> str:
    location, model, types_there = _strip_union_tags(details["loc"], root)
    name = ".".join(map(str, location))
    place = _place(location, lines, set_paths)
    kind, got = details["type"], details["input"]
    if kind == "extra_forbidden":
        return f"{place}{name} must be a known key. {_suggest(str(location[-1]), _keys(model))}"
    if kind == "missing":
        return f"{place}{name} must be given. Add it"
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if kind == "value_error":
        return f"{place}{name + '.' if name else ''}{message}."
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        choices = ", ".join(repr(_tag(m)) for m in _models(types_there))
        got = got.get("kind") if isinstance(got, dict) else got
        return f"{place}{name}.kind must be one of {choices}, got {show(got)}. Set it."
    if kind in _MAPPING_ERRORS:
        return f"{place}{name} must be a mapping, got {show(got)}."
    if kind == "tuple_type":
        hint = "" if isinstance(got, dict) else f" Write [{got}]."
        return f"{place}{name} must be a list, got {show(got)}.{hint}"
    if kind == "string_pattern_mismatch" and details["ctx"]["pattern"] == IMPORT_PATH:
        return f"{place}{name} must be package.module:function, got {show(got)}. Name it so."
    message = (
        message.replace("String should", "must").replace("Dictionary should", "must").replace("Tuple should", "must")
    )
    is_quoted = kind in ("int_type", "float_type") and isinstance(got, str) and _is_number(got)
    hint = " Write the number without quotes." if is_quoted else ""
    hint = hint or (" Put it in quotes." if kind == "string_type" and isinstance(got, bool | int | float) else "")
    return f"{place}{name} {message if message.startswith('must') else 'must be valid: ' + message}, got {show(got)}.{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _place(location: yaml_text.Path, lines: dict[yaml_text.Path, int], set_paths: list[tuple[str, ...]]) -> str:
    if any(location[: len(path)] == path for path in set_paths):
        return "--set: "
    for length in range(len(location), 0, -1):
        if line := lines.get(location[:length]):
            return f"line {line}: "
    return "--set: " if any(path[: len(location)] == location for path in set_paths) else ""


def _suggest(wrong: str, known: list[str]) -> str:
    if close := difflib.get_close_matches(wrong, known, n=1):
        return f"Did you mean {close[0]!r}?"
    return f"Choose from {', '.join(known)}." if known else "Remove it."


def _strip_union_tags(
    location: tuple[int | str, ...], root: type[BaseModel]
) -> tuple[yaml_text.Path, type[BaseModel] | None, list[Any]]:
    """Return the path as the file has it (pydantic adds the ``kind`` of unions), the model it ends in, the types there."""
    path: list[int | str] = []
    types_now: list[Any] = [root]
    parent: type[BaseModel] | None = root
    for part in location:
        models = _models(types_now)
        tagged = [m for m in models if _tag(m) == part and len(models) > 1]
        if tagged:
            types_now = tagged
            continue
        path.append(part)
        parent = models[0] if models else None
        fields = {(f.alias or n): f for m in models for n, f in m.model_fields.items()}
        types_now = [fields[str(part)].annotation] if str(part) in fields else _item_types(types_now)
    return tuple(path), parent, types_now


def _models(annotations: list[Any]) -> list[type[BaseModel]]:
    return [t for t in _flatten(annotations) if isinstance(t, type) and issubclass(t, BaseModel)]


def _flatten(annotations: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for annotation in annotations:
        if get_origin(annotation) in (Union, types.UnionType):
            flat += _flatten(list(get_args(annotation)))
        elif hasattr(annotation, "__metadata__"):
            flat += _flatten([annotation.__origin__])
        else:
            flat.append(annotation)
    return flat


def _item_types(annotations: list[Any]) -> list[Any]:
    """Types of the values of a dict or the items of a tuple."""
    items: list[Any] = []
    for annotation in _flatten(annotations):
        arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
        items += arguments[1:] if get_origin(annotation) is dict else arguments
    return items


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []
