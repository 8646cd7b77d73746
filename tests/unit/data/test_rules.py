"""Rules across columns, judged row by row by plain Python; functions of the user; what messages say."""

import math
import operator
import re
import sys
from datetime import UTC, datetime
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.hashing import to_words
from lepton_ray.data.keys import key_hashes, sort_keys
from lepton_ray.data.rules import compare, describe, load_rule_functions, row_breaches
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.row_rules import Comparison

PROPERTY = settings(max_examples=100, deadline=None)
TIME = pa.timestamp("us", "UTC")
CATEGORY = pa.dictionary(pa.int32(), pa.string())
SCHEMA = {
    "a": pa.float64(),
    "b": pa.float64(),
    "c": CATEGORY,
    "d": pa.string(),
    "t": TIME,
    "u": TIME,
}
PYTHON = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}

numbers = (
    st.none()
    | st.sampled_from([0.0, -0.0, 1.0, 2.0, 1e308, -1e308, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
)
texts = (
    st.none()
    | st.sampled_from(["x", "y", "é", "e\u0301", "\x00", "a\nb"])
    | st.text(st.characters(codec="utf-8"), max_size=4)
)
moments = [
    datetime(2024, 1, 31, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
]
times = st.none() | st.sampled_from(moments) | st.datetimes(timezones=st.just(UTC))
rows_of_tables = st.lists(
    st.fixed_dictionaries({"a": numbers, "b": numbers, "c": texts, "d": texts, "t": times, "u": times}), max_size=12
)


def table_of(rows, schema=SCHEMA):
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in schema.items()})


def clean_of(*rules):
    return CleanSpec.model_validate({"rules": list(rules)})


def judge(rows, *rules, **options):
    """The reason and detail of each row, None while it is kept."""
    table = rows if isinstance(rows, pa.Table) else table_of(rows)
    fates = [None] * table.num_rows
    for breach in row_breaches(table, clean_of(*rules), **options):
        for row, detail in zip(np.flatnonzero(breach.rows), breach.details.to_pylist(), strict=True):
            assert fates[row] is None
            fates[row] = (breach.place, breach.reason, detail)
    return fates


def places(rows, *rules, **options):
    return [fate and fate[0] for fate in judge(rows, *rules, **options)]


# --- the oracle


@st.composite
def comparisons(draw):
    left, right, constants = draw(
        st.sampled_from(
            [("a", "b", numbers), ("b", "a", numbers), ("c", "d", texts), ("d", "c", texts), ("t", "u", times)]
        )
    )
    signs = ["==", "!=", "in", "not_in"] + (["<", "<=", ">", ">="] if left in "abt" else ["matches"])
    sign = draw(st.sampled_from(signs))
    constant = constants.filter(lambda value: value is not None)
    if sign == "matches":
        return {"left": left, "operator": sign, "value": draw(st.sampled_from(["x|y", "[a-z]+", "", "(?i)X", "."]))}
    if sign in ("in", "not_in"):
        return {
            "left": left,
            "operator": sign,
            "values": [as_spec(v) for v in draw(st.lists(constant, min_size=1, max_size=3))],
        }
    if draw(st.booleans()):
        return {"left": left, "operator": sign, "right": right}
    return {"left": left, "operator": sign, "value": as_spec(draw(constant))}


def as_spec(value):
    return value.isoformat() if isinstance(value, datetime) else value


def from_spec(value, like):
    return datetime.fromisoformat(value) if isinstance(like, datetime) else value


def holds(comparison, row):
    """True, False or None where an operand is missing."""
    left, sign = row[comparison["left"]], comparison["operator"]
    if sign in ("is_missing", "is_given"):
        return (left is None) == (sign == "is_missing")
    if left is None or ("right" in comparison and row[comparison["right"]] is None):
        return None
    if sign == "matches":
        return re.fullmatch(comparison["value"], left) is not None
    if "values" in comparison:
        return (left in [from_spec(value, left) for value in comparison["values"]]) == (sign == "in")
    right = row[comparison["right"]] if "right" in comparison else from_spec(comparison["value"], left)
    return PYTHON[sign](left, right)


@PROPERTY
@given(rows_of_tables, comparisons())
def test_comparisons_hold_as_in_python(rows, comparison):
    found = compare(Comparison.model_validate(comparison), table_of(rows))
    assert found.to_pylist() == [holds(comparison, row) for row in rows]


@st.composite
def rules(draw):
    kind = draw(st.sampled_from(["compare", "given"]))
    rule = {"kind": kind}
    if draw(st.booleans()):
        missing = st.sampled_from(["is_missing", "is_given"]).flatmap(
            lambda sign: st.sampled_from("acdt").map(lambda name: {"left": name, "operator": sign})
        )
        rule["when"] = draw(st.lists(comparisons() | missing, min_size=1, max_size=2))
    if kind == "compare":
        return {**rule, **draw(comparisons()), "missing": draw(st.sampled_from(["allow", "break"]))}
    low, high = draw(st.sampled_from([(3, 3), (1, 3), (0, 2), (0, 0), (1, 1), (1, 2)]))
    return {**rule, "columns": ["a", "c", "t"], "at_least": low, "at_most": high}


def breaks(rule, row):
    if not all(holds(condition, row) for condition in rule.get("when", [])):
        return False
    if rule["kind"] == "compare":
        held = holds(rule, row)
        return rule["missing"] == "break" if held is None else not held
    return not rule["at_least"] <= sum(row[name] is not None for name in rule["columns"]) <= rule["at_most"]


@PROPERTY
@given(rows_of_tables, st.lists(rules(), min_size=1, max_size=4), st.randoms(use_true_random=False), st.data())
def test_the_first_broken_rule_removes_a_row_whatever_the_order_and_the_blocks(rows, rules, random, data):
    expected = [next((f"clean.rules.{i}" for i, rule in enumerate(rules) if breaks(rule, row)), None) for row in rows]
    assert places(rows, *rules) == expected
    order = random.sample(range(len(rows)), len(rows))
    assert places([rows[i] for i in order], *rules) == [expected[i] for i in order]
    cut = data.draw(st.integers(0, len(rows)))
    assert places(rows[:cut], *rules) + places(rows[cut:], *rules) == expected
    chunked = pa.concat_tables([table_of(rows[:cut]), table_of(rows[cut:])])
    assert places(chunked, *rules) == expected


exact = st.none() | st.floats(-1e15, 1e15).map(lambda value: round(value, 3))


@PROPERTY
@given(st.lists(st.tuples(exact, exact, exact), max_size=8), st.sampled_from([0.0, 0.005, 1.0, 1e9]))
@example([(0.1, 0.2, 0.3), (1e308, 1e308, 1e308), (1e16, 1.0, 1e16)], 0.0)
def test_totals_against_exact_sums(rows, tolerance):
    schema = dict.fromkeys(("net", "tax", "gross"), pa.float64())
    table = table_of([dict(zip(schema, row, strict=True)) for row in rows], schema)
    rule = {"kind": "total", "columns": ["net", "tax"], "total": "gross", "tolerance": tolerance}
    for (net, tax, gross), place in zip(rows, places(table, rule), strict=True):
        if None in (net, tax, gross):
            assert place is None
            continue
        off = abs(Fraction(net) + Fraction(tax) - Fraction(gross))
        rounding = Fraction(1e-14) * (abs(Fraction(net)) + abs(Fraction(tax)) + abs(Fraction(gross)))
        if off > Fraction(tolerance) + rounding:
            assert place == "clean.rules.0"
        elif off <= Fraction(tolerance):
            assert place is None


def test_a_sum_of_decimal_fractions_is_no_breach():
    schema = dict.fromkeys(("net", "tax", "gross"), pa.float64())
    rule = {"kind": "total", "columns": ["net", "tax"], "total": "gross", "tolerance": 0}
    table = table_of([{"net": 0.1, "tax": 0.2, "gross": 0.3}, {"net": 0.1, "tax": 0.2, "gross": 0.3001}], schema)
    assert places(table, rule) == [None, "clean.rules.0"]


# --- words


def test_details_name_rule_condition_and_values():
    rows = [{"a": 5.0, "b": 3.5, "c": "it's\x1b[2J", "d": None, "t": moments[0], "u": None}]
    compared = {"kind": "compare", "left": "a", "operator": "<=", "right": "b", "name": "stay"}
    when = {"left": "c", "operator": "!=", "value": "x"}
    assert judge(rows, {**compared, "when": when})[0] == (
        "clean.rules.0",
        "rule_broken",
        "stay: a must be <= b when c != 'x', got a = 5, b = 3.5, c = \"it's\\x1b[2J\"",
    )
    given_rule = {"kind": "given", "columns": ["d", "u"], "at_least": 1}
    assert judge(rows, given_rule)[0][2] == "at least 1 of d, u must be given, got d = missing, u = missing"
    late = {"kind": "compare", "left": "t", "operator": ">", "value": "2024-02-01"}
    assert judge(rows, late)[0][2] == "t must be > '2024-02-01', got t = 2024-01-31 00:00:00.000000Z"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"at_least": 1}, "at least 1 of a, b, c must be given"),
        ({}, "all of a, b, c must be given"),
        ({"at_most": 0}, "none of a, b, c must be given"),
        ({"at_most": 2, "at_least": 1}, "1 to 2 of a, b, c must be given"),
        ({"at_most": 2, "at_least": 2}, "exactly 2 of a, b, c must be given"),
    ],
)
def test_counts_in_words(rule, words):
    assert clean_of({"kind": "given", "columns": ["a", "b", "c"], **rule}).rules[0].sentence == words


def test_images_and_series_are_not_shown():
    table = pa.table(
        {"i": pa.array([b"\xff" * 100_000], pa.binary()), "s": pa.array([[1.0, None]], pa.list_(pa.float64(), 2))}
    )
    assert describe("no", table, ["i", "s"]).to_pylist() == ["no, got i = (an image), s = (a series)"]


def test_long_texts_are_cut():
    (detail,) = describe("no", pa.table({"d": ["x" * 10_000]}), ["d"]).to_pylist()
    assert len(detail) < 120


def test_stop_says_place_count_and_first_row():
    rows = [{**dict.fromkeys(SCHEMA), "a": value} for value in (1.0, 7.0, 8.0)]
    rule = {"kind": "compare", "left": "a", "operator": "<", "value": 5, "on_fail": "stop"}
    (breach,) = row_breaches(table_of(rows), clean_of(rule))
    assert breach.is_stop
    assert str(breach.error()) == (
        "clean.rules.0 must hold for every row (on_fail: stop), got 2 rows that break it, such as: a must be < 5, got a = 7. "
        "Repair the source, or set on_fail: remove"
    )


def test_rows_that_are_removed_already_are_not_looked_at():
    rows = [{**dict.fromkeys(SCHEMA), "a": value} for value in (7.0, 8.0)]
    rule = {"kind": "compare", "left": "a", "operator": "<", "value": 5, "on_fail": "stop"}
    assert places(rows, rule, is_kept=np.array([False, True])) == [None, "clean.rules.0"]
    assert list(row_breaches(table_of(rows), clean_of(rule), is_kept=np.array([False, False]))) == []


def test_empty_table():
    assert list(row_breaches(table_of([]), clean_of({"kind": "given", "columns": ["a", "b"], "at_least": 1}))) == []


# --- functions


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Writes a module of the user's into the working directory; returns a rule's import path for a body."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(body, columns=("a", "c")):
        name = f"user_rules_{tmp_path.name.replace('-', '_')}_{len(names)}"
        names.append(name)
        (tmp_path / f"{name}.py").write_text(
            f"import numpy as np\nimport pyarrow as pa\nimport pyarrow.compute as pc\n{body}\n"
        )
        return {"kind": "function", "function": f"{name}:fine", "columns": list(columns)}

    yield write
    for name in names:
        sys.modules.pop(name, None)


ROWS = [{**dict.fromkeys(SCHEMA), "a": float(value), "c": "x" if value % 2 else None} for value in range(4)]


@pytest.mark.parametrize(
    "body",
    [
        "def fine(rows): return pc.less(rows['a'], 2)",
        "def fine(rows): return rows['a'].to_numpy() < 2",
        "def fine(rows): return [value < 2 for value in rows['a'].to_pylist()]",
        "def fine(rows): return rows.to_pandas()['a'] < 2",
        "def fine(rows): return pc.less(rows['a'], 2).combine_chunks()",
        "def fine(rows): return [None if value == 1 else value < 2 for value in rows['a'].to_pylist()]",
    ],
)
def test_a_function_may_answer_with_any_array(functions, body):
    assert places(ROWS, functions(body)) == [None, None, "clean.rules.0", "clean.rules.0"]


def test_a_function_sees_kept_rows_and_its_columns_with_categories_as_texts(functions):
    rule = functions(
        "def fine(rows):\n"
        "    assert rows.column_names == ['a', 'c'] and rows.schema.field('c').type == pa.string()\n"
        "    assert rows['a'].to_pylist() == [2.0, 3.0]\n"
        "    return rows['c'].is_valid()"
    )
    earlier = {"kind": "compare", "left": "a", "operator": ">", "value": 1}
    fates = judge(ROWS, earlier, {**rule, "name": "with c"})
    assert [fate and fate[0] for fate in fates] == ["clean.rules.0", "clean.rules.0", "clean.rules.1", None]
    assert fates[2][2] == f"with c: {rule['function']} must find a, c fine, got a = 2, c = missing"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("def fine(rows): return True", "must return an array of true or false for each of 4 rows, got True"),
        ("def fine(rows): return None", "got None"),
        ("def fine(rows): return [True]", "got 1 of type bool"),
        ("def fine(rows): return np.ones(4)", "got 4 of type double"),
        ("def fine(rows): return np.ones((4, 1), bool)", "must return an array"),
        ("def fine(rows): return ['yes'] * 4", "got 4 of type string"),
        ("def fine(rows): return {'a': 1}", "must return an array"),
        ("def fine(rows): return [True, 'x', object(), 1]", "must return an array"),
        ("def fine(rows): return 1 / 0", "must not fail, got ZeroDivisionError: 'division by zero'"),
        ("def fine(): return 1", "must not fail, got TypeError"),
    ],
)
def test_a_wrong_answer_is_a_clear_error(functions, body, complaint):
    with pytest.raises(DataError, match=re.escape(complaint)) as caught:
        judge(ROWS, functions(body))
    assert str(caught.value).startswith("clean.rules.0.function must ")
    assert "Repair the function" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("no_such_module:fine", "ModuleNotFoundError"),
        ("math:no_such_function", "AttributeError"),
        ("math:pi", "must name a function, got 'math:pi', a float"),
    ],
)
def test_a_function_that_is_not_there_is_found_before_any_row(path, complaint):
    with pytest.raises(SpecError, match=complaint):
        load_rule_functions(clean_of({"kind": "function", "function": path, "columns": "a"}))


@pytest.mark.parametrize("body", ["raise RuntimeError('no')", "def fine(:"])
def test_a_module_that_cannot_be_imported_is_a_spec_error(functions, body):
    with pytest.raises(SpecError, match=r"clean\.rules\.0\.function must name a function that can be imported"):
        load_rule_functions(clean_of(functions(body)))


@pytest.mark.parametrize("pattern", ["(?=x)x", r"(x)\1", "x++", "x{2000}", r"x\Z"])
def test_an_expression_that_only_python_knows_is_none(pattern):
    with pytest.raises(ValidationError, match="value must be a regular expression of RE2"):
        clean_of({"kind": "compare", "left": "c", "operator": "matches", "value": pattern})


def test_an_expression_that_only_re2_knows_is_one():
    rows = [{**dict.fromkeys(SCHEMA), "c": text} for text in ("Tromsø", "x1")]
    rule = {"kind": "compare", "left": "c", "operator": "matches", "value": r"\p{L}+"}
    assert places(rows, rule) == [None, "clean.rules.0"]


def test_matches_means_the_whole_text():
    rows = [{**dict.fromkeys(SCHEMA), "c": text} for text in ("ab", "a", "xa", "ax", "a\n", None)]
    rule = {"kind": "compare", "left": "c", "operator": "matches", "value": "a|ab"}
    assert places(rows, rule) == [None, None, "clean.rules.0", "clean.rules.0", "clean.rules.0", None]


# --- foreign keys


@PROPERTY
@given(rows_of_tables, rows_of_tables, st.sampled_from([("a",), ("c",), ("t",), ("d", "b"), ("c", "a", "t")]))
def test_foreign_keys_against_sets(rows, others, columns):
    rule = {"kind": "foreign_key", "columns": list(columns), "reference": {"kind": "csv", "uri": "x.csv"}}

    def key(row):
        return tuple(row[name] for name in columns)

    known = {key(row) for row in others if None not in key(row)}
    keys = to_words(key_hashes(table_of(others), columns))
    references = {0: sort_keys(keys[[None not in key(row) for row in others]])}
    fates = judge(rows, rule, references=references)
    assert [fate is not None for fate in fates] == [None not in key(row) and key(row) not in known for row in rows]
    assert {fate[1] for fate in fates if fate} <= {"foreign_key"}


def test_a_foreign_key_without_its_reference_is_left_out():
    rule = {"kind": "foreign_key", "columns": "a", "reference": {"kind": "csv", "uri": "x.csv"}}
    assert judge([{**dict.fromkeys(SCHEMA), "a": 1.0}], rule) == [None]


def test_null_free_tables_of_one_row_and_many_chunks():
    table = pa.concat_tables([table_of([{**dict.fromkeys(SCHEMA), "a": float(i), "c": str(i)}]) for i in range(50)])
    assert table.column("c").num_chunks == 50
    rule = {"kind": "compare", "left": "c", "operator": "in", "values": ["3", "49"]}
    kept = [place is None for place in places(table, rule)]
    assert pc.sum(pa.array(kept)).as_py() == 2
    assert math.isclose(table.filter(pa.array(kept)).column("a").to_numpy().sum(), 52)
