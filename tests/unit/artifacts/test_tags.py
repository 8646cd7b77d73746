"""Sets of tags: how they are read from lists and texts, which rules they break, and what a model learns from them."""

import json
import string

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.tags import TagReader, count_tags, encode_tags, parse_tags, split_tags
from lepton_ray.spec.data import TagsColumn

PROPERTY = settings(max_examples=100, deadline=None)
TAGS = st.lists(st.text(string.ascii_letters + " -'", min_size=1, max_size=6).filter(str.strip), max_size=5)


def column(**options):
    return TagsColumn.model_validate({"kind": "tags", **options})


def read(value, missing_words=("NA",), **options):
    return TagReader(column(**options), missing_words).read(value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("b|a", "a|b"),
        (" b | a |b| ", "a|b"),
        (["b", " a", "b"], "a|b"),
        ('["b", "a"]', "a|b"),
        ([2.0, True, 3], "2|3|true"),
        ("[b|a]", "[b|a]"),
        ("a", "a"),
        ([], ""),
        ("[]", ""),
        ("", None),
        (None, None),
        ("NA", None),
        ("|", None),
        ([""], None),
        (["NA"], None),
        ("NA|a", "a"),
    ],
)
def test_lists_and_texts_are_sets(value, found):
    assert read(value) == found


@pytest.mark.parametrize("value", ["(none)", " (none) ", ["(none)"], ["(none)", ""], "NONE|", "", None, "NA|"])
def test_words_say_that_no_tag_belongs_to_the_row(value):
    assert read(value, none_words=["(none)", "", "NONE"]) == ""


def test_words_for_none_are_no_tags():
    assert read("(none)|a", none_words=["(none)"]) == "a"
    assert read("None|a", none_words=["none"], normalise=["lower"]) == "a"
    assert read("None", none_words=["none"], normalise=["lower"]) == ""


def test_a_replaced_tag_may_be_left_out():
    assert read("IMAX|Drama", replace={"IMAX": ""}) == "Drama"
    assert read("IMAX", replace={"IMAX": ""}) is None


def test_the_form_is_of_each_tag():
    assert read("Sci Fi|NOIR", normalise=["lower"], replace={"sci fi": "science fiction"}) == "noir|science fiction"
    assert read("a, b", separator=",") == "a,b"


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], [None], [{"a": 1}], b"a", '[["a"]]', "[null]"])
def test_other_values_are_no_sets(value):
    with pytest.raises(ValueError, match="must be a list of texts, or a text"):
        read(value)


@pytest.mark.parametrize(("value", "options"), [(["a|b"], {}), ("a&#124;b", {"normalise": ["html"]})])
def test_no_tag_holds_the_separator(value, options):
    with pytest.raises(ValueError, match=r"must hold tags without the separator '\|'"):
        read(value, **options)


@PROPERTY
@given(TAGS, st.randoms())
def test_order_and_repeats_mean_nothing(tags, random):
    found = read(tags)
    shuffled = [*tags, *tags[:2]]
    random.shuffle(shuffled)
    assert read(shuffled) == found
    assert read(json.dumps(shuffled)) == found
    if tags:
        assert read("|".join(shuffled)) == found
        assert read(found) == found
        assert split_tags(found, column()) == sorted({tag.strip() for tag in tags if tag.strip() != "NA"})


@PROPERTY
@given(st.lists(st.none() | TAGS.filter(bool), max_size=8))
def test_lists_and_texts_of_a_column_are_read_alike(rows):
    texts = pa.array([None if row is None else "|".join(row) for row in rows], pa.string()).dictionary_encode()
    of_texts, text_breaches = parse_tags(column(), texts, ["NA"])
    of_lists, list_breaches = parse_tags(column(), pa.array(rows, pa.list_(pa.string())), ["NA"])
    assert of_texts.to_pylist() == of_lists.to_pylist() == [read(row) for row in rows]
    assert text_breaches == list_breaches == []


@PROPERTY
@given(st.lists(TAGS, min_size=1, max_size=8))
def test_a_matrix_holds_what_the_sets_hold(rows):
    sets, _ = parse_tags(column(), pa.array(rows, pa.list_(pa.string())), [])
    chunks = pa.chunked_array([sets[:1], sets[1:]])
    counts = count_tags(chunks, column())
    classes = sorted(counts)
    matrix = encode_tags(chunks, column(), classes)
    assert matrix.shape == (len(rows), len(classes))
    assert matrix.dtype == np.float32
    held = [[classes[place] for place in np.flatnonzero(row)] for row in matrix]
    assert held == [sorted({tag.strip() for tag in row}) for row in rows]
    assert matrix.sum(axis=0).tolist() == [counts[name] for name in classes]


def test_a_matrix_leaves_out_what_is_no_class_and_takes_no_missing_set():
    sets = pa.chunked_array([["a|b", "b", ""]])
    assert encode_tags(sets, column(), ["a", "c"]).tolist() == [[1, 0], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="tags must be given in every row, got 1 without"):
        encode_tags(pa.chunked_array([["a", None]]), column(), ["a"])


def breaches(cells, **options):
    _, found = parse_tags(column(**options), pa.array(cells), ["NA"])
    return [(breach.reason, breach.rule, np.flatnonzero(breach.rows).tolist()) for breach in found]


def test_rules_are_about_each_tag():
    cells = [["a"], ["a", "x"], [], None, ["b", "a"]]
    assert breaches(cells, allowed=["a", "b"]) == [("not_allowed", "must be one of a, b (each tag)", [1])]
    assert breaches(cells, pattern="[ab]") == [("pattern_mismatch", "must match '[ab]' (each tag)", [1])]
    assert breaches(cells, required=True) == [("missing_required", "must hold a tag", [2])]


def test_cells_that_are_no_sets_are_null_and_told_apart():
    sets, found = parse_tags(column(), pa.array([["a|b"], ["a"], [None]]), [])
    assert sets.to_pylist() == [None, "a", None]
    assert [(breach.reason, np.flatnonzero(breach.rows).tolist()) for breach in found] == [
        ("type_error", [0]),
        ("type_error", [2]),
    ]


def test_texts_that_are_not_utf_8_are_no_sets():
    broken = pa.array([[b"\xff"], [b"a"]], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    sets, found = parse_tags(column(), broken, [])
    assert sets.to_pylist() == [None, "a"]
    assert found[0].rows.tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed": ["a|b"]}, r"allowed must hold tags without the separator '\|', got 'a\|b'"),
        ({"replace": {"x": "a|b"}}, r"replace must hold tags without the separator '\|', got 'a\|b'"),
        ({"separator": ""}, "at least 1 character"),
    ],
)
def test_a_column_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        column(**options)
