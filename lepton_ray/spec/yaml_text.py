"""YAML as a spec needs it: no duplicate keys, numbers as people write them, and the line of every value.

Scalars follow YAML 1.2: ``1e-3`` is a number, ``no`` is a text. PyYAML's own rules are YAML 1.1.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.reader import ReaderError

from lepton_ray.core.text import show

Path = tuple[str | int, ...]

_MAX_NODES = 100_000  # aliases repeat nodes: a few lines could otherwise stand for billions
_MAX_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """Builds nodes only; its table of implicit scalar types is replaced below."""


_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"^(?:~|null|)$"), lambda text: None),
    "bool": (re.compile(r"^(?:true|false)$"), lambda text: text == "true"),
    "int": (re.compile(r"^[-+]?[0-9]+$"), int),
    "float": (re.compile(r"^[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?$"), float),
}
_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, _pattern, None)
STANDS_ONCE = "must stand once"
"""In what is said of a key that stands twice, of which other readers of YAML take the last value."""


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
        document.problems.append(_describe(error, text))
        return document
    except (ValueError, OverflowError):  # PyYAML lets them through
        document.problems.append("the file must be valid YAML: an escape or a version number is out of range")
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
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _build_mapping(node, path, document, budget)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_build(item, (*path, index), document, budget) for index, item in enumerate(node.value)]
    return _build_scalar(node, path, document)


def _build_mapping(node: yaml.MappingNode, path: Path, document: Document, budget: Iterator[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not _is_key(key_node):
            document.problems.append(
                f"line {line}: a key must be a plain text, got {show(key_node.value)}. Write the keys out"
            )
            continue
        key = key_node.value
        if key in result:
            first = document.lines[(*path, key)]
            name = ".".join(map(str, (*path, key)))
            document.problems.append(f"line {line}: {name} {STANDS_ONCE}, it is on line {first} too. Remove one")
            continue
        document.lines[(*path, key)] = line
        result[key] = _build(value_node, (*path, key), document, budget)
    return result


def _is_key(node: yaml.Node) -> bool:
    if (
        not isinstance(node, yaml.ScalarNode)
        or (node.value == "<<" and node.style is None)
        or not is_encodable(node.value)
    ):
        return False
    return node.tag.removeprefix(_TAG) in ("str", *_SCALARS)


def is_encodable(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8: YAML's escapes and a command line can hold half a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _build_scalar(node: yaml.Node, path: Path, document: Document) -> Any:
    kind = node.tag.removeprefix(_TAG)
    text = node.value
    if kind == "str" and is_encodable(text):
        return text
    if kind in _SCALARS and _SCALARS[kind][0].match(text):
        with contextlib.suppress(ValueError):  # Python reads integers of at most 4300 digits
            return _SCALARS[kind][1](text)
    name = ".".join(map(str, path)) or "the file"
    value = show(text) if isinstance(node, yaml.ScalarNode) else "a collection"
    document.problems.append(
        f"line {node.start_mark.line + 1}: {name} must be plain YAML, got {value} as {node.tag!r}. Write the value plainly"
    )
    return None


def _describe(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: the file must be valid YAML: {error.reason}, got {text[error.position]!r}"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f"line {mark.line + 1}: " if mark else ""
    return f"{place}the file must be valid YAML: {problem}"
