"""Specs from text: what YAML may say, every error at once with its line, overrides, checks across sections."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jsonschema_rs
import pytest
import yaml
from pydantic import Field

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import RunSpec, load_spec, parse_spec
from lepton_ray.spec.base import Section

_FOLDER = Path(__file__).parents[3] / "jobs"
_JOBS = sorted((_FOLDER / "specs").glob("*.yaml"))
_TABLE = """\
name: table
data:
  source: {kind: csv, uri: a.csv}
  label: outcome
  columns:
    age: {kind: number, min: 0}
    colour: category
    outcome: category
model:
  kind: mlp
"""
_IMAGES = """\
name: images
data:
  source: {kind: image_folder, uri: pictures}
  label: digit
  columns: {picture: {kind: image, height: 8, width: 9, channels: 1}, digit: category}
model: {kind: cnn, channels: [4, 8, 16]}
"""


def _problems(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, overrides)
    return caught.value.problems


def _one_problem(text: str, *overrides: str) -> str:
    (problem,) = _problems(text, *overrides)
    return problem


def test_scalars_follow_yaml_1_2() -> None:
    spec = parse_spec(
        _TABLE.replace("colour: category", "colour: {kind: category, allowed: [no, off, yes, 0x1F, 2020-01-01]}")
        + "train: {lr: 1e-3, weight_decay: .5, epochs: 07}\n"
    )
    assert spec.data.columns["colour"].model_dump()["allowed"] == ("no", "off", "yes", "0x1F", "2020-01-01")
    assert (spec.train.lr, spec.train.weight_decay, spec.train.epochs) == (0.001, 0.5, 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: '3'", "line 11: seed must be a valid integer, got '3'. Write the number without quotes."),
        ("seed: 3.0", "line 11: seed must be a valid integer, got 3.0."),
        ("seed: -1", "line 11: seed must be greater than or equal to 0, got -1."),
        ("storage: 3", "line 11: storage must be a valid string, got 3. Put it in quotes."),
        ("train: {lr: 1e999}", "line 11: train.lr must be a finite number, got inf."),
        ("train:", "line 11: train must be a mapping, got None."),
        ("trian: {}", "line 11: trian must be a known key. Did you mean 'train'?"),
        ("tune: {space: {train.lr: {kind: unifrom}}}", "line 11: tune.space.train.lr.kind must be one of 'choice', "),
        ("tune: {space: {train.lr: {low: 1}}}", "line 11: tune.space.train.lr.kind must be one of 'choice', 'uniform'"),
        (
            "tune: {space: {train.lr: {kind: choice, values: [1, {}]}}}",
            "line 11: tune.space.train.lr.values.1 must be a number, a text, true, false or a list of them, got {}.",
        ),
        ("clean: {outliers: {method: iqr, threshold: 0}}", "line 11: clean.outliers.threshold must be greater than 0"),
        ("seed: 1\nseed: 2", "line 12: seed must stand once, it is on line 11 too. Remove one"),
        ("1: 2", "line 11: 1 must be a known key. Choose from name, storage, "),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_rule(text: str, expected: str) -> None:
    assert _one_problem(_TABLE + text).startswith(expected)


def test_all_errors_come_at_once_with_their_lines() -> None:
    text = _TABLE.replace("min: 0", "min: zero").replace("name: table", "name: No") + "seed: 1\nseed: 2\nx: 3\n"
    places = [problem.split(" must ")[0] for problem in _problems(text)]
    assert places == ["line 12: seed", "line 1: name", "line 6: data.columns.age.min", "line 13: x"]


def test_what_does_not_fit_together_comes_at_once_too() -> None:
    text = _TABLE.replace("kind: mlp", "kind: cnn").replace("name: table", "name: table\nstorage: s3://bucket/runs") + (
        "clean: {duplicates: {columns: [nothing]}}\n"
        "features: {columns: {other: {kind: number}}}\n"
        "train: {augment: {image: {cutout_pixels: 2}}}\n"
        "evaluate: {gates: {acuracy: {min: 0.9}}}\n"
        "register: {}\n"
        "serve: {max_rows_per_request: 2}\n"
    )
    assert [problem.split(" must ")[0] for problem in _problems(text)] == [
        "line 11: model.kind",
        "line 14: train.augment.image",
        "line 12: clean.duplicates.columns",
        "line 13: features.columns.other",
        "line 15: evaluate.gates",
        "line 16: register.tracking_uri",
        "line 17: serve.max_rows_per_request",
    ]


def test_a_column_may_have_the_name_of_a_kind() -> None:
    text = _TABLE.replace("colour: category", "number: {kind: number, mn: 1}")
    assert _one_problem(text) == "line 7: data.columns.number.mn must be a known key. Did you mean 'min'?"


@pytest.mark.parametrize(
    ("tail", "rule"),
    [
        ("train: !!python/object:os.system {epochs: 3}", "train must be plain YAML"),
        ("train: !!python/object/apply:os.system [true]", "train must be plain YAML"),
        ("seed: !!python/name:os.system ''", "seed must be plain YAML"),
        ("seed: !!int foo", "seed must be plain YAML, got 'foo'"),
        ("seed: " + "9" * 5000, "seed must be plain YAML, got '999"),
        ("!!python/name:os.system seed: 3", "a key must be a plain text"),
        ("train: &a {epochs: 3}\n<<: *a", "line 12: a key must be a plain text, got '<<'. Write the keys out"),
        ("? [a, b]\n: 3", "a key must be a plain text"),
        ("seed: &a [*a, *a]", "values, 40 deep"),
        ("x: " + "[" * 60 + "]" * 60, "values, 40 deep"),
        ("x: " + "[" * 100_000, "must be nested at most"),
        ("seed: *nowhere", "line 11: the file must be valid YAML: found undefined alias 'nowhere'"),
        ("---\nname: two", "line 11: the file must be valid YAML"),
        ("seed: \x01", "line 11: the file must be valid YAML: special characters are not allowed, got '\\x01'"),
        ('storage: "\\UFFFFFFFF"', "an escape or a version number is out of range"),
        ('storage: "\\ud800"', "line 11: storage must be plain YAML, got '\\ud800'"),
        ('"\\ud800": 1', "line 11: a key must be a plain text, got '\\ud800'"),
        ("seed: [1, 2", "the file must be valid YAML"),
        ("\tseed: 1", "line 11: the file must be valid YAML"),
    ],
)
def test_what_yaml_can_do_and_a_spec_cannot(tail: str, rule: str) -> None:
    assert rule in "\n".join(_problems(_TABLE + tail))


def test_an_alias_is_a_copy_but_an_alias_bomb_is_refused() -> None:
    assert parse_spec(_TABLE + "train: {epochs: &n 7, max_failures: *n}").train.max_failures == 7
    bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    assert any("at most 100000 values" in problem for problem in _problems(bomb))


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "null", "{}"])
def test_an_empty_file_lists_what_must_be_given(text: str) -> None:
    assert _problems(text) == tuple(f"{name} must be given. Add it" for name in ("name", "data"))


@pytest.mark.parametrize("text", ["hello", "3", "[1, 2]", "true"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "the spec must be a mapping of sections, got " in _one_problem(text)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"name: \xff", "must be UTF-8, got byte 0xff at offset 6"),
        (b"#" * (4 << 20) + b"##", "must be at most 4194304"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "spec's folder.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=rule) as caught:
        load_spec(path)
    assert caught.value.source == str(path)


def test_a_missing_file_and_a_folder_are_no_specs(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SpecError, match=r"must be a readable file, got .*Check the path"):
            load_spec(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + _TABLE.encode())
    assert load_spec(path).name == "table"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("train.epochs=5", lambda s: s.train.epochs, 5),
        ("train.lr=1e-3", lambda s: s.train.lr, 0.001),
        ("model.hidden=[]", lambda s: s.model.hidden, ()),
        ("model.hidden=[8, 4]", lambda s: s.model.hidden, (8, 4)),
        ("model={kind: mlp, hidden: [3]}", lambda s: s.model.hidden, (3,)),
        ("clean.outliers.threshold=3", lambda s: s.clean.outliers.threshold, 3),
        ("data.columns.age.max=9", lambda s: s.data.columns["age"].max, 9),
        ("data.columns.age.min=", lambda s: s.data.columns["age"].min, None),
        ("register.alias=best", lambda s: s.register_.alias, "best"),
        (" name =other", lambda s: s.name, "other"),
        ("storage=a=b", lambda s: s.storage, "a=b"),
        ("data.source.uri='3'", lambda s: s.data.source.uri, "3"),
    ],
)
def test_overrides_replace_and_add(override: str, read: Callable[[Any], Any], expected: Any) -> None:
    assert read(parse_spec(_TABLE, [override])) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "--set must be PATH=VALUE, got 'train.epochs'."),
        ("=5", "--set must be PATH=VALUE, got '=5'."),
        ("train..epochs=5", "--set must be PATH=VALUE, got 'train..epochs=5'."),
        ("a\udcff=5", "--set must be PATH=VALUE, got 'a\\udcff=5'."),
        ("train.epochs=[1", "--set train.epochs must have a YAML value, got '[1'"),
        ("name.first=x", "--set name.first must follow sections, but 'name' is 'table'. Set name itself"),
        ("data.columns.colour.required=true", "--set data.columns.colour.required must follow sections, but 'colour'"),
        ("train.epochs=x", "--set: train.epochs must be a valid integer, got 'x'."),
        ("trian.epochs=5", "--set: trian must be a known key. Did you mean 'train'?"),
        ("train.epoch=5", "--set: train.epoch must be a known key. Did you mean 'epochs'?"),
        ("train=null", "--set: train must be a mapping, got None."),
    ],
)
def test_wrong_overrides_are_named(override: str, expected: str) -> None:
    assert _one_problem(_TABLE, override).startswith(expected)


def test_overrides_find_keys_that_have_dots() -> None:
    text = f"{_TABLE}\ntune: {{space: {{train.lr: {{kind: log_uniform, low: 1e-4, high: 1e-2}}}}}}\n"
    tune: Any = parse_spec(text, ["tune.space.train.lr.high=1e-1"]).tune
    assert (list(tune.space), tune.space["train.lr"].low, tune.space["train.lr"].high) == (["train.lr"], 1e-4, 0.1)
    tune = parse_spec(text, ["tune.space.train.lr={kind: choice, values: [1e-3, 1e-2]}"]).tune
    assert [domain.kind for domain in tune.space.values()] == ["choice"]
    assert _one_problem(text, "tune.space.train.lr.low=x").startswith("--set: tune.space.train.lr.low must be a valid")
    assert _one_problem(text, "tune.space.train.lr.lowest=1").startswith(
        "--set: tune.space.train.lr.lowest must be a known"
    )


@pytest.mark.parametrize("field", ["storage", "data.source.uri", "register.tracking_uri"])
def test_the_environment_may_stand_in_uris(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_SECRET", "hush")
    override = f"{field}=s3://${{LEPTON_SECRET}}/x"
    assert "hush" not in parse_spec(_TABLE, [override]).model_dump_json()
    monkeypatch.delenv("LEPTON_SECRET")
    assert "must refer to environment variables that are set" in _one_problem(_TABLE, override)


@pytest.mark.parametrize(
    "override", ["serve.host=${HOME}", "register.experiment=${HOME}", "data.missing_words=['${HOME}']"]
)
def test_the_environment_may_stand_nowhere_else(override: str) -> None:
    assert "must not refer to the environment" in _one_problem(_TABLE, override)


@pytest.mark.parametrize(
    ("text", "overrides", "rule"),
    [
        (
            _TABLE,
            ["data.label=age", "data.columns.age=text"],
            "data.label must name a column of kind 'category', 'number', 'tags' or 'series', got 'age' (one of kind 'text')",
        ),
        (
            _TABLE,
            ["data.label=x"],
            "data.label must name a column of kind 'category', 'number', 'tags' or 'series', got 'x' (no such column)",
        ),
        (
            _TABLE,
            ["data.columns={outcome: category, a: ignored}"],
            "data.columns must hold a feature besides the label",
        ),
        (
            _TABLE,
            ["model={kind: cnn}"],
            "model.kind must be one of 'linear', 'mlp', 'custom' for columns, got 'cnn', which takes an image",
        ),
        (_TABLE, ["data.split.train=0.8"], "data.split.train + val + test must be 1, got 1.1."),
        (_TABLE, ["train={num_workers: 3, global_batch_size: 10}"], "Use 9 or 12."),
        (_TABLE, ["train={num_workers: 30, global_batch_size: 10}"], "Use 30 or 60."),
        (
            _TABLE,
            ["train={num_workers: 2, min_workers: 3}"],
            "train.min_workers must be at most num_workers (2), got 3",
        ),
        (_TABLE, ["tune.space={train.lr: {kind: uniform, low: 0, high: 1}}"], "tune.space.train.lr must only hold"),
        (_TABLE, ["tune.space={model.size: {kind: integer, low: 1, high: 2}}"], "model of kind 'mlp' has no 'size'"),
        (_TABLE, ["tune.space={data.label: {kind: choice, values: [a]}}"], "space must have paths of train.lr"),
        (_TABLE, ["tune.space={model.hidden: {kind: choice, values: [[8], 8]}}"], "tune.space.model.hidden must only"),
        (
            _TABLE,
            ["train.num_workers=2", "tune.space={train.global_batch_size: {kind: integer, low: 16, high: 64}}"],
            "got 17",
        ),
        (
            _TABLE,
            ["tune={workers_per_trial: 3, space: {train.lr: {kind: uniform, low: 0.1, high: 1}}}"],
            "tune.workers_per_trial must fit train",
        ),
        (
            _TABLE,
            ["tune={workers_per_trial: 2, space: {train.global_batch_size: {kind: integer, low: 8, high: 12}}}"],
            "got 9",
        ),
        (_TABLE, ["evaluate={baseline: none, gates: {baseline_accuracy: {min: 0.1}}}"], "baseline must not be 'none'"),
        (
            _TABLE,
            ["storage=s3://bucket", "register={}"],
            "register.tracking_uri must name an MLflow server when storage is not local",
        ),
        (
            _TABLE,
            ["storage=s3://bucket", "register={tracking_uri: 'postgresql://host/db'}"],
            "got storage 's3://bucket' and a database, which keeps no files. Give the server's address",
        ),
        (
            _IMAGES,
            ["serve.max_request_bytes=4000"],
            "serve.max_request_bytes must be at least 6912, what 16 golden rows (export.golden_rows) of such images",
        ),
        (_TABLE, ["cost={prices: mine.yaml}"], "provider and head must be given with prices"),
        (
            _TABLE,
            ["serve.max_rows_per_request=8"],
            "serve.max_rows_per_request must be at least export.golden_rows (16)",
        ),
        (_TABLE, ["evaluate.gates={accuracy: {}}"], "evaluate.gates.accuracy.a gate must have min or max"),
        (_IMAGES, ["model.channels=[1, 1, 1, 1]"], "model.channels must have at most 3 entries for images of side 8"),
        (_IMAGES, ["data.columns.age=number"], "columns must hold one image and the label for an image_folder"),
        (_TABLE, ["model=null", "serve={}"], "model must be given for serve. Add model, or remove serve"),
        (_TABLE, ["data.label=null"], "data.label must be given for a model"),
        (_TABLE, ["data.split={train: 1.0, val: 0.0, test: 0.0}"], "must be more than 0 for a model"),
    ],
)
def test_sections_must_fit_each_other(text: str, overrides: list[str], rule: str) -> None:
    assert rule in _one_problem(text, *overrides)


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("data.columns.at={kind: time, min: '0001-01-01T00:00:00+14:00'}", "at.min must be an ISO 8601 time"),
        ("data.columns.at={kind: time, max: '9999-12-31T23:59:59-01:00'}", "at.max must be an ISO 8601 time"),
        ("data.columns.at={kind: time, format: '%d.%m.%d'}", "at.format must be 'iso', 'epoch_s', 'epoch_ms' or a"),
        ("data.columns.at={kind: time, format: '%c %Y'}", "at.format must be 'iso', 'epoch_s', 'epoch_ms' or a"),
        ("features.times.reference='9999-12-31T23:59:59-01:00'", "reference must be an ISO 8601 time"),
        (
            f"clean.rules=[{{kind: compare, left: age, operator: '<', value: 1{'0' * 400}}}]",
            "value must be a finite number or a text",
        ),
        (
            "tune.space={train.lr: {kind: uniform, low: 0.1, high: 1e300, step: 1e-300}}",
            "step must make at most 10000 values, got 1e-300",
        ),
        (
            f"tune.space={{train.global_batch_size: {{kind: integer, low: 1, high: {10**30}}}}}",
            "tune.space.train.global_batch_size.high must be less than or equal to",
        ),
        ("serve.rate_limit={requests_per_second: 1e308}", "serve.rate_limit.requests_per_second must be less than"),
    ],
)
def test_a_value_that_nothing_can_be_computed_with_is_named(override: str, rule: str) -> None:
    assert rule in _one_problem(_TABLE, override)


def test_splits_that_miss_one_by_rounding_are_fine() -> None:
    assert parse_spec(_TABLE, ["data.split={train: 0.7, val: 0.1, test: 0.2}"]).data.split.val == 0.1


@pytest.fixture(scope="module")
def schema() -> jsonschema_rs.Draft202012Validator:
    schema = RunSpec.model_json_schema()
    jsonschema_rs.meta.validate(schema)
    return jsonschema_rs.Draft202012Validator(schema)


def test_the_python_driver_builds_a_spec() -> None:
    build_spec = runpy.run_path(str(_FOLDER / "driver.py"))["build_spec"]
    assert set(build_spec().evaluate.gates) == {"accuracy"}


@pytest.mark.parametrize("path", _JOBS, ids=lambda path: path.stem)
def test_job_specs_load_round_trip_and_keep_the_schema(path: Path, schema: jsonschema_rs.Draft202012Validator) -> None:
    spec = load_spec(path)
    assert RunSpec.model_validate(spec.model_dump()) == spec
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec
    schema.validate(spec.model_dump(mode="json"))
    plain = re.sub(r"(?<=[\s\[:])(\d+)e-(\d+)", r"\1.0e-\2", path.read_text())  # PyYAML reads 1e-3 as a text
    schema.validate(yaml.safe_load(plain))


class _Described(Section):
    plain: int = 1
    told: int = 2
    """What it is,
    on two lines."""
    given: Annotated[int, Field(alias="as", description="as it says")] = 3
    """Not this."""
    #: no text of a field
    bare: int = 4


class _Inheriting(_Described):
    plain: int = 5
    """Told below."""
    section: _Described = _Described()
    """One in another."""


def test_the_schema_describes_fields_by_the_texts_below_them() -> None:
    schema = _Inheriting.model_json_schema()
    inner = {"told": "What it is,\non two lines.", "as": "as it says"}
    told = {name: field["description"] for name, field in schema["properties"].items() if "description" in field}
    assert told == {**inner, "plain": "Told below.", "section": "One in another."}
    told = {n: f["description"] for n, f in schema["$defs"]["_Described"]["properties"].items() if "description" in f}
    assert told == inner


@pytest.mark.parametrize(
    ("field", "longest"),
    [("register.alias", "Å"), ("register.model_name", "Ü 1."), ("cost.worker", "b.4")],
    ids=["alias", "model_name", "instance_type"],
)
def test_names_have_a_greatest_length(field: str, longest: str) -> None:
    limit = 200 if field == "register.model_name" else 63
    text = f"a{longest * limit}"[:limit]
    start = ["register={}"] if field.startswith("register") else ["cost={provider: aws, head: a, worker: b}"]
    parse_spec(_TABLE, [*start, f"{field}={text}"])
    with pytest.raises(SpecError, match=rf"{field} must have at most {limit} characters, got '{text[:9]}"):
        parse_spec(_TABLE, [*start, f"{field}={text}b"])
    with pytest.raises(SpecError, match=rf"{field} must match pattern .*, got '{text[:9]}"):
        parse_spec(_TABLE, [*start, f"{field}={text[:20]}/"])


def test_no_pattern_counts_letters_of_any_language() -> None:
    schema = json.dumps(RunSpec.model_json_schema())
    patterns = [json.loads(text) for text in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', schema)]
    assert len(patterns) > 10
    # each takes 30 ms or more of every start
    assert not [p for p in patterns if re.search(r"\\[wd]\S*\]\{\d*,?\d\d", p)]


def test_what_serves_needs_no_whole_spec() -> None:
    code = "import sys, lepton_ray.serve.front; sys.exit('lepton_ray.spec.run' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
