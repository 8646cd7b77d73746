"""Points and values: the same there and back, whatever a value is."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lepton_ray.spec.tune import Domain
from lepton_ray.tune.space import clip, decode, encode, grid

_HIDDEN: list[Any] = [[8], [8, 4], "json:[8]", True, 1, 1.0, "a"]


def _space(**domains: Any) -> dict[str, Any]:
    return {f"model.{name}": TypeAdapter(Domain).validate_python(domain) for name, domain in domains.items()}


_SPACE = _space(
    hidden={"kind": "choice", "values": _HIDDEN},
    size={"kind": "integer", "low": 16, "high": 64, "step": 16},
    rate={"kind": "uniform", "low": 0.1, "high": 0.3, "step": 0.1},
    lr={"kind": "log_uniform", "low": 1e-4, "high": 1e-1},
)


@given(
    st.sampled_from(_HIDDEN), st.sampled_from([16, 32, 48, 64]), st.sampled_from([0.1, 0.2, 0.3]), st.floats(1e-4, 1e-1)
)
def test_values_come_back_as_they_went(hidden: Any, size: int, rate: float, lr: float) -> None:
    values = {"model.hidden": hidden, "model.size": size, "model.rate": rate, "model.lr": lr}
    back = decode(_SPACE, encode(_SPACE, values))
    assert back == values
    assert [type(value) for value in back.values()] == [type(value) for value in values.values()]
    assert clip(_SPACE, encode(_SPACE, values)) == encode(_SPACE, values)


@given(st.tuples(*[st.floats(-1e9, 1e9)] * 4))
def test_any_point_is_clipped_into_the_space(coordinates: tuple[float, ...]) -> None:
    values = decode(_SPACE, clip(_SPACE, dict(zip(_SPACE, coordinates, strict=True))))
    assert values["model.hidden"] in _HIDDEN
    assert values["model.size"] in (16, 32, 48, 64)
    assert values["model.rate"] in (0.1, 0.2, 0.3)
    assert 1e-4 <= values["model.lr"] <= 1e-1


def test_what_is_outside_goes_to_the_nearest_end() -> None:
    ends = [decode(_SPACE, clip(_SPACE, dict.fromkeys(_SPACE, far))) for far in (-1e9, 1e9)]
    assert [tuple(values.values()) for values in ends] == [(_HIDDEN[0], 16, 0.1, 1e-4), (_HIDDEN[-1], 64, 0.3, 1e-1)]


def test_the_grid_is_the_product() -> None:
    space = {path: domain for path, domain in _SPACE.items() if path != "model.lr"}
    seen = [tuple(decode(space, point).values()) for point in grid(space)]
    assert seen == list(itertools.product(_HIDDEN, [16, 32, 48, 64], [0.1, 0.2, 0.3]))
