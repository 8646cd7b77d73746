"""Models against the features: what does not fit is found before any row is read."""

import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import RunSpec, parse_spec
from lepton_ray.spec.model_check import inputs_of
from lepton_ray.spec.tune import apply_values

_COLUMNS = {
    "features": "age: number",
    "ids": "user: category, item: category",
    "tokens": "note: text",
    "steps": "load: {kind: series, length: 5}",
    "pixels": "photo: {kind: image, height: 9, width: 12, channels: 3}",
}
_CNN = "{kind: cnn, channels: [4]}"


def _spec(names: list[str], model: str, *overrides: str) -> RunSpec:
    columns = ", ".join(_COLUMNS[name] for name in names)
    text = (
        "name: x\n"
        f"data: {{source: {{kind: parquet, uri: a}}, label: y, columns: {{{columns}, y: category}}}}\n"
        "features: {categories: {encode: ids}, texts: {encode: ids}, series: {encode: steps}}\n"
        f"model: {model}\n"
    )
    return parse_spec(text, overrides)


def _problems(names: list[str], model: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        _spec(names, model, *overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (["features"], "{kind: linear}"),
        (["features"], "{kind: mlp}"),
        (["features"], "{kind: custom, module: a.b:c, options: {depth: 3}}"),
        (["tokens"], "{kind: rnn, cell: gru, bidirectional: true}"),
        (["tokens"], "{kind: transformer, width: 12, heads: 3}"),
        (["steps"], "{kind: rnn}"),
        (["steps"], "{kind: transformer}"),
        (["steps"], "{kind: mlp}"),
        (["features", "steps"], "{kind: fusion, encoders: {features: {kind: mlp}, steps: {kind: rnn, cell: gru}}}"),
        (["tokens"], "{kind: fusion, encoders: {tokens: {kind: rnn}}}"),
        (["ids"], "{kind: factorization}"),
        (["ids"], "{kind: two_towers, user: [user], item: [item], hidden: []}"),
        (["ids"], "{kind: custom, module: a.b:c}"),
        (
            ["features", "ids"],
            "{kind: fusion, encoders: {features: {kind: mlp}, ids: {kind: two_towers, user: [item], item: [user]}}}",
        ),
        (["pixels"], "{kind: linear}"),
        (["pixels"], "{kind: resnet, channels: [4, 4, 4, 4, 4, 4]}"),
        (["pixels"], "{kind: cnn, channels: [4, 4, 4]}"),
        (["pixels"], "{kind: cnn, channels: [4], padding: valid, hidden: null}"),
        (["features", "tokens"], "{kind: custom, module: a.b:c}"),
        (["tokens", "pixels"], f"{{kind: fusion, encoders: {{tokens: {{kind: rnn}}, pixels: {_CNN}}}}}"),
        (
            ["features", "tokens", "pixels"],
            f"{{kind: fusion, encoders: {{features: {{kind: mlp}}, tokens: {{kind: rnn}}, pixels: {_CNN}}}}}",
        ),
    ],
)
def test_a_model_that_fits_its_inputs(names: list[str], model: str) -> None:
    spec = _spec(names, model)
    expected = names if len(names) > 1 or names != ["pixels"] else ["features"]
    assert list(inputs_of(spec.features, spec.data)) == expected
    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("names", "model", "rule"),
    [
        (
            ["features"],
            "{kind: transformer}",
            "model.kind must be one of 'linear', 'mlp', 'custom' for columns, got 'transf",
        ),
        (["features"], "{kind: resnet}", "got 'resnet', which takes an image. Change the kind or the features"),
        (["steps"], "{kind: cnn}", "'rnn', 'transformer', 'custom' for steps (a series with encode: steps), got 'cnn'"),
        (
            ["tokens"],
            "{kind: mlp}",
            "model.kind must be one of 'rnn', 'transformer', 'pretrained', 'custom' for token ids",
        ),
        (
            ["pixels"],
            "{kind: rnn}",
            "'cnn', 'resnet', 'pretrained', 'custom' for an image, got 'rnn', which takes token ids",
        ),
        (
            ["features", "tokens"],
            "{kind: mlp}",
            "model.kind must be 'fusion' or 'custom' for several inputs (features: columns, tokens: token ids",
        ),
        (
            ["features", "tokens"],
            "{kind: fusion, encoders: {features: {kind: mlp}}}",
            "model.encoders must have an encoder for 'tokens' (token ids (a text with encode: ids)), got none. Add it",
        ),
        (
            ["features"],
            "{kind: fusion, encoders: {features: {kind: mlp}, tokens: {kind: rnn}}}",
            "model.encoders must name inputs of the model (features), got 'tokens'. Remove it",
        ),
        (
            ["features", "tokens"],
            "{kind: fusion, encoders: {features: {kind: mlp}, tokens: {kind: cnn}}}",
            "model.encoders.tokens.kind must be one of 'rnn', 'transformer', 'pretrained', 'custom' for token ids",
        ),
        (
            ["features", "pixels"],
            "{kind: fusion, encoders: {features: {kind: mlp}, pixels: {kind: cnn, channels: [1, 1, 1, 1]}}}",
            "model.encoders.pixels.channels must have at most 3 entries for images of side 9, got 4",
        ),
        (
            ["pixels"],
            "{kind: cnn, channels: [1, 1, 1], padding: valid}",
            "model.channels must have at most 1 entries for images of side 9, got 3",
        ),
        (["tokens"], "{kind: transformer, width: 10, heads: 4}", "width must be a multiple of heads (4), got 10"),
        (
            ["ids"],
            "{kind: mlp}",
            "one of 'factorization', 'two_towers', 'custom' for ids (categories with encode: ids)",
        ),
        (["features"], "{kind: factorization}", "got 'factorization', which takes ids (categories with encode: ids)"),
        (
            ["ids"],
            "{kind: two_towers, user: [user, age], item: [item]}",
            "model.user must name columns with encode: ids (user, item), got 'age'. Name one of them",
        ),
        (
            ["ids"],
            "{kind: two_towers, user: [user], item: [item, user]}",
            "model.user and item must name each column once, got 'user' twice. Remove one",
        ),
        (
            ["ids"],
            "{kind: fusion, encoders: {ids: {kind: two_towers, user: [item], item: [user, item]}}}",
            "model.encoders.ids.user and item must name each column once, got 'item' twice",
        ),
        (["ids"], "{kind: two_towers, user: [user], item: []}", "model.item must have at least 1 item"),
        (["features"], "{kind: custom, module: a.b}", "model.module must be package.module:function"),
        (["features"], "{kind: fusion, encoders: {}}", "model.encoders must have at least 1 item"),
        (
            ["features"],
            "{kind: fusion, encoders: {features: {kind: fusion}}}",
            "model.encoders.features.kind must be one of 'linear'",
        ),
        (
            ["features"],
            "{kind: fusion, encoders: {features: {kind: mlp, width: 3}}}",
            "model.encoders.features.width must be a known key",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_named(names: list[str], model: str, rule: str) -> None:
    (problem,) = _problems(names, model)
    assert rule in problem
    assert problem.startswith("line 4: model.")


def test_every_column_of_ids_is_on_one_side() -> None:
    model = "{kind: two_towers, user: [user], item: [item]}"
    more = "data.columns={user: category, item: category, shop: category, y: category}"
    (problem,) = _problems(["ids"], model, more)
    assert "model.user or item must name every column with encode: ids, got 'shop' in neither. Add it" in problem


def test_one_column_of_ids_has_no_pairs() -> None:
    (problem,) = _problems(["ids"], "{kind: factorization}", "data.columns={user: category, y: category}")
    assert "model.kind must not be 'factorization' for one column of ids, got user. Encode another as ids" in problem


def test_the_image_is_measured_as_the_features_leave_it() -> None:
    assert "side 5" in _problems(["pixels"], "{kind: cnn, channels: [1, 1, 1]}", "features.images={crop: [5, 8]}")[0]


def test_a_text_beside_one_that_is_ids_stays_a_column() -> None:
    spec = _spec(
        ["tokens"],
        "{kind: fusion, encoders: {features: {kind: linear}, tokens: {kind: transformer}}}",
        "data.columns.title=text",
        "features.columns={title: {kind: text, encode: hash}}",
    )
    assert inputs_of(spec.features, spec.data) == {"features": "table", "tokens": "tokens"}


def test_augmentation_is_held_against_the_inputs_there_are() -> None:
    assert _spec(["tokens"], "{kind: rnn}", "train.augment={text: {swap_fraction: 0.1}}").train.augment is not None
    (problem,) = _problems(["tokens"], "{kind: rnn}", "train.augment={table: {noise_std: 0.1}}")
    assert "train.augment.table must be left out for data without number columns" in problem


def test_a_search_reaches_into_encoders_and_options() -> None:
    space = "{model.encoders.tokens.layers: {kind: integer, low: 1, high: 3}, model.encoding_width: {kind: choice, values: [8]}}"
    fusion = "{kind: fusion, encoders: {tokens: {kind: rnn}}}"
    spec = _spec(["tokens"], fusion, f"tune={{space: {space}}}")
    assert spec.model is not None
    model, _ = apply_values(spec.model, spec.train, {"model.encoders.tokens.layers": 3, "model.encoding_width": 8})
    assert (model.model_dump()["encoders"]["tokens"]["layers"], model.model_dump()["encoding_width"]) == (3, 8)
    custom = _spec(
        ["tokens"],
        "{kind: custom, module: a:b, options: {depth: 1}}",
        "tune={space: {model.options.depth: {kind: integer, low: 1, high: 2}}}",
    )
    assert custom.tune is not None
    for path in ("model.encoders.tokens.depth", "model.encoders.pixels.layers", "model.encoders.tokens.layers.x"):
        (problem,) = _problems(["tokens"], fusion, f"tune={{space: {{{path}: {{kind: integer, low: 1, high: 2}}}}}}")
        assert f"tune.space.{path} must only hold values" in problem
    (problem,) = _problems(
        ["tokens"], "{kind: transformer}", "tune={space: {model.heads: {kind: choice, values: [4, 3]}}}"
    )
    assert "tune.space.model.heads must only hold values that model.heads takes, got 3 (" in problem


def _search(width: str, heads: str) -> str:
    return f"tune={{space: {{model.width: {width}, train.lr: {{kind: uniform, low: 0.1, high: 0.2}}, model.heads: {heads}}}}}"


def test_values_that_do_not_go_together_are_refused() -> None:
    """Each alone fits the model as it is described, 64 wide with 4 heads."""
    described = "{kind: transformer, width: 64, heads: 4}"
    (problem,) = _problems(
        ["tokens"], described, _search("{kind: choice, values: [64, 100]}", "{kind: choice, values: [4, 8]}")
    )
    assert "tune.space.model.width and tune.space.model.heads must only hold values that go together" in problem
    assert "got 100 and 8 (" in problem
    (problem,) = _problems(
        ["tokens"],
        described,
        _search("{kind: integer, low: 8, high: 800, step: 4}", "{kind: choice, values: [4, 8]}"),
    )
    assert "must only hold values that go together" in problem


def test_values_that_only_fit_together_are_taken_and_applied_at_once() -> None:
    """64 is no multiple of 5 or 6, and 4 no divisor of 90."""
    described = "{kind: transformer, width: 64, heads: 4}"
    spec = _spec(["tokens"], described, _search("{kind: choice, values: [60, 90]}", "{kind: choice, values: [5, 6]}"))
    assert spec.model is not None
    for values in ({"model.width": 90, "model.heads": 5}, {"model.heads": 6, "model.width": 90}):
        model, _ = apply_values(spec.model, spec.train, values)
        assert {f"model.{name}": model.model_dump()[name] for name in ("width", "heads")} == values
    problems = _problems(
        ["tokens"], described, _search("{kind: choice, values: [60, 90]}", "{kind: choice, values: [5, 7]}")
    )
    assert "tune.space.model.heads must only hold values that model.heads takes, got 7 (" in "\n".join(problems)
