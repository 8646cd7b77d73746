"""Any text, any mutation of a spec and any value of a section loads, or raises errors that name place and rule."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import RunSpec, parse_spec

from .test_load import _IMAGES, _TABLE


def _check_problems(error: SpecError) -> None:
    assert error.problems
    for problem in error.problems:
        assert " must " in problem, problem
        assert not problem.startswith(("must", " ")), problem


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="abc:-[]{}&*!|>'\"#%@,?\n \\ux0", max_size=60))
def test_any_text_raises_nothing_but_spec_errors(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    _check_problems(caught.value)


_JUNK = st.sampled_from(
    [
        "!!int x",
        "*a",
        "&a ",
        "null",
        "[]",
        "{}",
        "-1",
        "1e999",
        "${HOME}",
        "'",
        '"',
        ":",
        "- ",
        "\n",
        "\ud800",
        "kind",
        "<<: ",
    ]
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([_TABLE, _IMAGES]),
    st.lists(st.tuples(st.integers(0, 250), st.integers(0, 12), _JUNK), min_size=1, max_size=3),
)
def test_mutated_specs_load_or_raise_spec_errors(text: str, edits: list[tuple[int, int, str]]) -> None:
    for start, length, junk in edits:
        text = text[:start] + junk + text[start + length :]
    try:
        spec = parse_spec(text)
    except SpecError as error:
        _check_problems(error)
    else:
        assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("kind"), inner, max_size=3)
    ),
    max_leaves=6,
)
_PATHS = st.sampled_from(
    [
        "data",
        "data.source",
        "data.columns",
        "data.columns.age",
        "model",
        "model.hidden",
        "train",
        "tune",
        "tune.space",
        "serve",
        "register",
        "evaluate.gates",
    ]
)


@settings(max_examples=100, deadline=None)
@given(_PATHS, _VALUES)
def test_any_value_of_a_section_is_refused_by_name_or_taken(path: str, value: Any) -> None:
    try:
        parse_spec(_TABLE, [f"{path}={yaml.safe_dump(value, default_flow_style=True)}"])
    except SpecError as error:
        _check_problems(error)
