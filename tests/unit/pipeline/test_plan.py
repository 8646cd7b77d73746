"""What the key of a step depends on."""

import json

import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.pipeline.plan import STAGES, depends_of, to_step
from lepton_ray.spec import parse_spec

CLEAN, FEATURIZE, TRAIN = (
    next(stage for stage in STAGES if stage.name == name) for name in ("clean", "featurize", "train")
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
