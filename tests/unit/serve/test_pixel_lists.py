"""Images as nested numbers: read the short way they are what the standard library's JSON says, and nothing else is read that way."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve.pixel_lists import read_pixel_lists
from lepton_ray.spec.data import DataSpec

_HEIGHT, _WIDTH, _CHANNELS = 2, 3, 1


def _signature(**kinds: str) -> Signature:
    shape = {"height": _HEIGHT, "width": _WIDTH, "channels": _CHANNELS}
    columns = {name: {"kind": kind, **(shape if kind == "image" else {})} for name, kind in kinds.items()}
    source = {"kind": "parquet", "uri": "images"}
    return Signature.of(DataSpec.model_validate({"source": source, "columns": columns}), None)


_SIGNATURE = _signature(**{"picture 1": "image"})
_IMAGE = [[[0], [9], [10]], [[99], [100], [255]]]
_TEXT = json.dumps([{"picture 1": _IMAGE}]).encode()


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("wrap", [list, lambda records: {"records": records}], ids=["list", "records"])
@pytest.mark.parametrize("options", [{}, {"separators": (",", ":")}, {"indent": 1}], ids=["usual", "dense", "indented"])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_pixels_are_what_stands_there(rows: int, wrap: Any, options: dict[str, Any], kind: Any) -> None:
    images = np.random.default_rng(rows).integers(0, 256, (rows, _HEIGHT, _WIDTH, _CHANNELS), np.uint8)
    text = json.dumps(wrap([{"picture 1": image.tolist()} for image in images]), **options).encode()
    records = read_pixel_lists(kind(text), _SIGNATURE)
    assert records is not None
    np.testing.assert_array_equal([record["picture 1"] for record in records], images)
    assert {record["picture 1"].dtype for record in records} == {np.dtype(np.uint8)}


_NUMBERS = st.sampled_from(
    ["0", "7", "255", "256", "-0", "-1", "1.0", "1e2", "007", "1 2", "", "null", "true", '"1"', "9" * 30]
)
_SPACES = st.sampled_from(["", " ", "\n", "\t \r", "\x0b", "\xa0"])
_MUTATIONS = st.lists(
    st.tuples(st.integers(0, 80), st.integers(0, 3), st.sampled_from([*'[]{},:"0 1.eE-\\n\0', "[[", "]]", "],["])),
    max_size=3,
)


@settings(max_examples=600)
@given(
    numbers=st.lists(_NUMBERS | st.integers(0, 255).map(str), min_size=6, max_size=6),
    space=_SPACES,
    key=st.sampled_from(["picture 1", "picture 2", "picture1", "pic ture", "picture\\u0020" + "1", "image", ""]),
    head=st.sampled_from(["", '{"records":', '{"rec ords":', '{"records2":', '{"records":{"records":', "\ufeff"]),
    mutations=_MUTATIONS,
)
@example(["1"] * 6, "", "picture 1", "", [])
@example(["1"] * 6, "", "picture1", "", [])
@example(["1"] * 6, "", "picture 1", '{"rec ords":', [])
@example(["1 2", "", "1", "1", "1", "1"], "", "picture 1", "", [])
def test_what_is_read_is_what_json_is(
    numbers: list[str], space: str, key: str, head: str, mutations: list[tuple[int, int, str]]
) -> None:
    """A body is read as the standard library reads it, or not at all."""
    rows = [numbers[:3], numbers[3:]]
    image = "[" + f",{space}".join("[" + ",".join(f"[{space}{number}]" for number in row) + "]" for row in rows) + "]"
    text = f'{head}[{{"{key}":{space}{image}}}]{"}" * head.count("{")}{space}'
    for at, length, more in mutations:
        text = text[:at] + more + text[at + length :]
    records = read_pixel_lists(text.encode(), _SIGNATURE)
    if records is None:
        return
    said = json.loads(text)
    said = said["records"] if isinstance(said, dict) else said
    assert [list(record) for record in said] == [["picture 1"]] * len(records)
    np.testing.assert_array_equal([record["picture 1"] for record in records], [record["picture 1"] for record in said])
    assert not any(
        isinstance(pixel, bool | float) for record in said for pixel in np.ravel(record["picture 1"]).tolist()
    )


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"records": []},
        [{"picture 1": None}],
        [{"picture 1": {"b64": "AAAA"}}],
        [{"picture 1": [_IMAGE[0]]}],
        [{"picture 1": [*_IMAGE, _IMAGE[0]]}],
        [{"picture 1": [[[1], [2]], [[3], [4], [5], [6]]]}],
        [{"picture 1": np.ravel(_IMAGE).tolist()}],
        [{"picture 1": np.add(_IMAGE, 1).tolist()}],
        [{"picture 1": _IMAGE, "label": "a"}],
        [{"picture 1": _IMAGE}, {}],
        {"records": [{"picture 1": _IMAGE}], "more": 1},
    ],
)
def test_other_bodies_are_left(content: Any) -> None:
    assert read_pixel_lists(json.dumps(content).encode(), _SIGNATURE) is None


def test_a_name_given_twice_is_left() -> None:
    twice = _TEXT.replace(b"]}]", b'], "picture 1": [[[1],[1],[1]],[[1],[1],[1]]]}]')
    assert json.loads(twice)[0]["picture 1"][0][0] == [1]
    assert read_pixel_lists(twice, _SIGNATURE) is None


def test_other_signatures_are_left() -> None:
    assert read_pixel_lists(_TEXT, _SIGNATURE) is not None
    assert read_pixel_lists(_TEXT, _signature(**{"picture 1": "image"}, age="number")) is None
    assert read_pixel_lists(b'[{"age": 1}]', _signature(age="number")) is None
