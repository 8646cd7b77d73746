"""The base of every section and the field types that sections share."""

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Self, get_args

from pydantic import Field, GetJsonSchemaHandler, Strict, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from lepton_ray.core import settings
from lepton_ray.core.frozen import Frozen


class EnvReferences:
    """Marks a text field in which ``${NAME}`` stands for an environment variable, expanded only when it is used."""


Uri = Annotated[str, EnvReferences(), Field(min_length=1, max_length=2048)]
"""A path or URI; may refer to the environment, so that no credential needs to stand in a spec."""

IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
ImportPath = Annotated[str, Field(pattern=IMPORT_PATH)]
"""``package.module:function``."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""Lower-case letters, digits, ``_`` and ``-``; at most 63 characters."""

Alias = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$", max_length=63)]
"""Of a version in the registry. A length in the pattern (``{0,62}``) would be compiled letter by letter: 30 ms at every start."""

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
IntTuple = Annotated[tuple[PositiveInt, ...], Strict(False)]


def short_form(value: Any) -> Any:
    """Return what a word is short for: ``age: number`` for ``age: {kind: number}``."""
    return {"kind": value} if isinstance(value, str) else value


class Section(Frozen):
    """A frozen part of a spec that refuses unknown keys and does not turn text into numbers."""

    @model_validator(mode="after")
    def _check_env_references(self) -> Self:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            texts = value if isinstance(value, tuple) else (value,)
            variables = [v for text in texts if isinstance(text, str) for v in settings.references(text)]
            if variables and not _may_refer(field):
                raise ValueError(
                    f"{name} must not refer to the environment, got {value!r}. Only URI fields may: write the value"
                )
            for variable in variables:
                if not settings.is_set(variable):
                    raise ValueError(
                        f"{name} must refer to environment variables that are set, got {value!r}. Set {variable}"
                    )
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the fields by the docstrings below them; pydantic's own way parses each class at every start."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _docstrings(cls).items():
            field = cls.model_fields.get(name)
            if field is not None and field.description is None:
                properties[field.alias or name]["description"] = text
        return schema


def _docstrings(section: type[Section]) -> dict[str, str]:
    """Return the text below each field of a section, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__[: section.__mro__.index(Section)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for above, below in pairwise(getattr(tree, "body", [])):
            match above, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


def _may_refer(field: FieldInfo) -> bool:
    members = get_args(field.annotation)  # of ``Uri | None`` the member carries the mark
    marks = [*field.metadata, *(mark for member in members for mark in getattr(member, "__metadata__", ()))]
    return any(isinstance(mark, EnvReferences) for mark in marks)


def raise_problems(problems: Sequence[str]) -> None:
    """Refuse a section for reasons that name the paths of their settings themselves.

    Raises:
        PydanticCustomError: If there are any; ``load`` takes it apart again.
    """
    if problems:
        raise PydanticCustomError("problems", "{problems}", {"problems": problems})


def replace(section: Section, values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the section's data with other values at their paths; validate it again, ``model_copy`` would not."""
    data: dict[str, Any] = section.model_dump(mode="json")
    for path, value in values.items():
        target = data
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
    return data
