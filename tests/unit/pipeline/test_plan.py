"""What the key of a step depends on."""

import json

import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.pipeline import run
from lepton_ray.pipeline.plan import STAGES, depends_of, to_step
from lepton_ray.spec import parse_spec

INGEST, CLEAN, FEATURIZE, TRAIN, EXPORT = (
    next(stage for stage in STAGES if stage.name == name)
    for name in ("ingest", "clean", "featurize", "train", "export")
)
SUBWORDS = "{texts: {tokens: {kind: subwords, tokenizer_file: %s}, encode: ids}}"


def step_of(stage, spec, artifacts):
    return to_step(stage, depends_of(stage, spec, artifacts))


def tokenizer_file(folder, number):
    file = folder / "tokenizer.json"
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": number}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    file.write_text(json.dumps({"pre_tokenizer": {"type": "Whitespace"}, "model": model}))
    return file


def spec_of(features):
    return parse_spec(
        f"name: n\ndata: {{source: {{kind: csv, uri: x.csv}}, columns: {{a: text}}}}\nfeatures: {features}\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "is_same"),
    [("max_failures", 9, True), ("start_timeout_s", 300.0, True), ("lr", 0.5, False), ("num_workers", 2, False)],
)
def test_what_changes_no_result_leaves_the_key_of_a_training_alone(name, value, is_same):
    model = parse_spec(
        "name: n\ndata: {source: {kind: csv, uri: x.csv}, columns: {a: number, b: category}, label: b}\nmodel: {kind: linear}\n"
    )
    other = model.model_copy(update={"train": model.train.model_copy(update={name: value})})
    assert (step_of(TRAIN, model, {}) == step_of(TRAIN, other, {})) == is_same


def test_another_tokenizer_at_the_same_path_is_another_step(tmp_path):
    file = tokenizer_file(tmp_path, 2)
    spec = spec_of(SUBWORDS % file)
    first = step_of(FEATURIZE, spec, {})
    assert step_of(FEATURIZE, spec, {}) == first
    tokenizer_file(tmp_path, 3)
    assert step_of(FEATURIZE, spec, {}) != first


def test_a_tokenizer_that_is_gone_is_named(tmp_path):
    file = tokenizer_file(tmp_path, 2)
    spec = spec_of(SUBWORDS % file)
    file.unlink()
    with pytest.raises(SpecError, match=r"features\.texts\.tokens\.tokenizer_file must be a file, got .*not there"):
        step_of(FEATURIZE, spec, {})


def test_nothing_outside_the_spec_leaves_the_key_alone(monkeypatch):
    spec = spec_of("{texts: {encode: ids}}")
    step = step_of(FEATURIZE, spec, {})
    monkeypatch.delattr(FEATURIZE.module, "fingerprint")
    assert step_of(FEATURIZE, spec, {}) == step


def test_other_keys_at_the_same_path_are_another_step(tmp_path):
    reference = tmp_path / "keys.csv"
    reference.write_text("a\nx\n")
    rule = f"{{kind: foreign_key, columns: a, reference: {{kind: csv, uri: {reference}}}}}"
    spec = parse_spec(
        f"name: n\ndata: {{source: {{kind: csv, uri: x.csv}}, columns: {{a: category}}}}\nclean: {{rules: [{rule}]}}\n"
    )
    first = step_of(CLEAN, spec, {})
    assert step_of(CLEAN, spec, {}) == first
    reference.write_text("a\nx\ny\n")
    assert step_of(CLEAN, spec, {}) != first


def test_without_keys_in_another_source_the_key_of_clean_stays(monkeypatch):
    spec = spec_of("{}")
    step = step_of(CLEAN, spec, {})
    monkeypatch.delattr(CLEAN.module, "fingerprint")
    assert step_of(CLEAN, spec, {}) == step


@pytest.mark.parametrize(
    ("stage", "override", "is_same"),
    [
        (INGEST, "data.engine=ray", True),
        (INGEST, "data.profile=false", True),
        (INGEST, "data.split={train: 0.5, val: 0.25, test: 0.25}", True),
        (INGEST, "data.missing_words=['?']", False),
        (CLEAN, "data.engine=ray", True),
        (CLEAN, "data.split={train: 0.5, val: 0.25, test: 0.25}", False),
        (CLEAN, "clean.max_removed_fraction=0.5", False),
        (FEATURIZE, "data.engine=ray", True),
        (FEATURIZE, "clean.max_removed_fraction=0.5", True),
        (FEATURIZE, "clean.checks.action=stop", False),
        (EXPORT, "serve.port=9000", True),
        (EXPORT, "serve.autoscaling.max_replicas=9", True),
        (EXPORT, "serve.max_rows_per_request=100", False),
        (EXPORT, "serve=null", False),
    ],
)
def test_a_key_depends_on_what_the_stage_looks_at(tmp_path, stage, override, is_same):
    (tmp_path / "x.csv").write_text("a,b\n1,x\n2,y\n")
    text = (
        f"name: n\ndata: {{source: {{kind: csv, uri: {tmp_path}/x.csv}}, columns: {{a: number, b: category}}, label: b}}\n"
        "model: {kind: linear}\nserve: {}\n"
    )
    assert (step_of(stage, parse_spec(text), {}) == step_of(stage, parse_spec(text, [override]), {})) == is_same


@pytest.mark.parametrize(
    ("stage", "spec"),
    [
        (CLEAN, "clean: {rules: [{kind: function, function: 'my_code:use', columns: [a]}]}"),
        (TRAIN, "model: {kind: custom, module: 'my_code:use'}"),
    ],
)
def test_other_code_of_the_users_own_is_another_step(tmp_path, monkeypatch, stage, spec):
    """What a killed run has judged with the code of before, the repaired code must judge anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    parsed = parse_spec(
        f"name: n\ndata: {{source: {{kind: csv, uri: x.csv}}, columns: {{a: number, b: category}}, label: b}}\n{spec}\n"
    )
    steps = []
    for code in ("def use(): return 1\n", "def use(): return 2\n"):
        (tmp_path / "my_code.py").write_text(code)
        steps += [step_of(stage, parsed, {}), step_of(stage, parsed, {})]
    assert steps[0] == steps[1] != steps[2] == steps[3]


def test_another_address_in_the_environment_is_another_step_but_not_another_password(monkeypatch):
    monkeypatch.setenv("PW", "one")
    monkeypatch.setenv("DB", "mongodb://me:one@here/shop")
    spec = parse_spec(
        "name: n\ndata: {source: {kind: ray, reader: mongo, options: {uri: '${DB}', password: '${PW}'}}, columns: {a: number}}\n"
    )
    first = step_of(INGEST, spec, {})
    monkeypatch.setenv("PW", "two")
    monkeypatch.setenv("DB", "mongodb://me:two@here/shop")
    assert step_of(INGEST, spec, {}) == first
    monkeypatch.setenv("DB", "mongodb://me:two@there/shop")
    assert step_of(INGEST, spec, {}) != first


@pytest.mark.parametrize("given", [{"name": "n"}, "spec.yaml", None])
def test_what_is_no_spec_is_told_so(given):
    with pytest.raises(SpecError, match=r"must be a RunSpec: what load_spec\(path\) reads, or RunSpec.model_validate"):
        run(given)
