"""The base of facts that are written as JSON and read again: frozen, without unknown keys, text is no number."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Strict

Floats = Annotated[tuple[float, ...], Strict(False)]
Ints = Annotated[tuple[int, ...], Strict(False)]
Texts = Annotated[tuple[str, ...], Strict(False)]


class Frozen(BaseModel):
    """What fitting learnt, what an artifact is, a section of a spec, or a part of one."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", strict=True)
