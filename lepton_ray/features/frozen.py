"""The base of fitted states: frozen, plain JSON, no pickle."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Strict

Floats = Annotated[tuple[float, ...], Strict(False)]
Ints = Annotated[tuple[int, ...], Strict(False)]
Texts = Annotated[tuple[str, ...], Strict(False)]


class Frozen(BaseModel):
    """What fitting learnt, or a part of it."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", strict=True)
