"""YAML as a spec needs it: no duplicate keys, numbers as people write them, and the line of every value.

Scalars follow YAML 1.2: ``1e-3`` is a number, ``no`` is a text. PyYAML's own rules are YAML 1.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]

_MAX_NODES = 100_000  # aliases repeat nodes: a few lines could otherwise stand for billions
_MAX_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """Builds nodes only; its table of implicit scalar types is replaced below."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", list("tf")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass
class Document:
    """Parsed YAML: plain data, the line of each path (from 1), and what was wrong."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def parse(text: str) -> Document:
    """Parse one YAML document; every problem is reported in the result, none is raised."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        document.problems.append(_describe(error))
        return document
    except RecursionError:
        document.problems.append(f"the file must be nested at most {_MAX_DEPTH} deep")
        return document
    budget = iter(range(_MAX_NODES))
    document.data = None if node is None else _build(node, (), document, budget)
    return document


def parse_scalar(text: str) -> Any:
    """Return what ``text`` means as a YAML value; ``--set`` uses it.

    Raises:
        ValueError: If it is not YAML.
    """
    document = parse(text)
    if document.problems:
        raise ValueError("; ".join(document.problems))
    return document.data


def _build(node: yaml.Node, path: Path, document: Document, budget: Iterator[int]) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if next(budget, None) is None or len(path) > _MAX_DEPTH:
        message = f"the file must hold at most {_MAX_NODES} values, {_MAX_DEPTH} deep. Write it without aliases"
        if message not in document.problems:
            document.problems.append(message)
        return None
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, document, budget)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, index), document, budget) for index, item in enumerate(node.value)]
    return _build_scalar(node, path, document)


def _build_mapping(node: yaml.MappingNode, path: Path, document: Document, budget: Iterator[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
            document.problems.append(
                f"line {line}: a key must be a plain text, got {key_node.value!r}. Write the keys out"
            )
            continue
        key = key_node.value
        if key in result:
            first = document.lines[(*path, key)]
            name = ".".join(map(str, (*path, key)))
            document.problems.append(f"line {line}: {name} must stand once, it is on line {first} too. Remove one")
            continue
        document.lines[(*path, key)] = line
        result[key] = _build(value_node, (*path, key), document, budget)
    return result


def _build_scalar(node: yaml.Node, path: Path, document: Document) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text: str = node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    if kind == "str":
        return text
    name = ".".join(map(str, path)) or "the file"
    document.problems.append(
        f"line {node.start_mark.line + 1}: {name} must be plain YAML, got the tag {node.tag!r}. Remove it"
    )
    return None


def _describe(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f"line {mark.line + 1}: " if mark else ""
    return f"{place}the file must be valid YAML: {problem}"
