"""Pretrained backbones: loaded as transformers has them, frozen and thawed to the bit, with thin matrices, resumed and exported.

Small backbones with random weights stand for large ones; ``test_pretrained_weights.py`` has real weights.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from lepton_ray.artifacts.kinds import FeatureSet, ModelInput, Target
from lepton_ray.core.errors import SpecError
from lepton_ray.export import to_onnx
from lepton_ray.models.catalog import build_model
from lepton_ray.models.torch.lora import LowRank
from lepton_ray.spec.model import FusionModel, Model, PretrainedModel, TrainSpec
from lepton_ray.stages.train import fingerprint, with_backbones
from lepton_ray.train import checkpoint
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import TrainState, start_state, train_epochs

transformers = pytest.importorskip("transformers", reason="the extra 'pretrained' is not installed")

_SEED, _CLASSES, _IDS = 3, 3, 20
_TOKENS = ModelInput(name="tokens", shape=(6,), num_ids=_IDS)
_PIXELS = ModelInput(name="pixels", shape=(3, 32, 32))
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12},
    "electra": {"embedding_size": 6, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12},
    "vit": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 32, "patch_size": 8},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 6, 6, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [4, 6, 6, 8], "depths": [1, 1, 1, 1]},
    "efficientnet_lite": {"stem": 4, "head": 8, "blocks": [[1, 3, 1, 1, 4], [2, 5, 2, 2, 6]]},
}  # fmt: skip
_TEXTS = ("bert", "distilbert", "electra")


def write_backbone(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a small backbone as Hugging Face does."""
    settings = {**_CONFIGS[kind], **({"vocab_size": _IDS, "max_position_embeddings": 16} if kind in _TEXTS else {})}
    settings |= changes
    torch.manual_seed(7)
    folder.mkdir(parents=True)
    if kind == "efficientnet_lite":
        from lepton_ray.models.torch.efficientnet_lite import EfficientNetLite

        network = EfficientNetLite(settings)
        for parameter in network.parameters():
            if parameter.ndim > 1:  # what torch begins with lets an image fade from layer to layer
                torch.nn.init.kaiming_normal_(parameter)
        save_file(network.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": kind, **settings}))
    else:
        config = transformers.AutoConfig.for_model(kind, initializer_range=0.5, **settings)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbones") / "bert", "bert")


def _spec(folder: Path, **settings: Any) -> PretrainedModel:
    return PretrainedModel.model_validate({"kind": "pretrained", "backbone": str(folder), "dropout": 0.0, **settings})


def _given(kind: str) -> ModelInput:
    return _TOKENS if kind in _TEXTS else _PIXELS


def _rows(given: ModelInput, count: int) -> Any:
    rng = np.random.default_rng(count)
    if given.num_ids is None:
        return rng.normal(size=(count, *given.shape)).astype(np.float32)
    ids = rng.integers(1, given.num_ids, (count, *given.shape))
    ids[1:, 4:] = 0
    return ids


def _build(spec: Any, given: ModelInput = _TOKENS) -> Any:
    return partial(build_model, spec, [given], _CLASSES)


def _data(rows: int = 20) -> TrainData:
    x, y = _rows(_TOKENS, rows + 8), np.arange(rows + 8) % _CLASSES
    return TrainData({"tokens": x[:rows]}, y[:rows], {"tokens": x[rows:]}, y[rows:])


def _train_spec(**settings: Any) -> TrainSpec:
    return TrainSpec(
        **{"epochs": 3, "global_batch_size": 8, "lr": 0.05, "optimizer": "adamw", "weight_decay": 0.1, **settings}
    )


def _train(spec: PretrainedModel, train: TrainSpec, stop: int | None = None) -> TrainState:
    state = start_state(_build(spec), train, _SEED)
    for now in train_epochs(state, _data(), train, _SEED):
        if now.epoch == stop:
            break
    return state


def _changed(state: TrainState, spec: PretrainedModel) -> set[int]:
    """The groups of layers, from the input, whose weights are others than at first."""
    groups = state.model.layer_groups()  # type: ignore[operator]
    before = start_state(_build(spec), _train_spec(), _SEED).model.layer_groups()  # type: ignore[operator]
    pairs = enumerate(zip(groups, before, strict=True))
    return {i for i, (g, b) in pairs if any(not torch.equal(p, q) for p, q in zip(g, b, strict=True))}


@pytest.mark.slow_but("mean-bert", "first-electra")
@pytest.mark.parametrize("kind", _TEXTS)
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_text_is_encoded_as_transformers_does(tmp_path: Path, kind: str, pooling: str) -> None:
    folder = write_backbone(tmp_path / kind, kind)
    model = _build(_spec(folder, pooling=pooling))().eval()
    ids = torch.from_numpy(_rows(_TOKENS, 5))
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        got = model.backbone(ids)
        for row, vector in zip(ids, got, strict=True):  # alone and without padding
            values = reference(input_ids=row[row != 0][None]).last_hidden_state[0]
            wanted = values.mean(0) if pooling == "mean" else values[0]
            assert (vector - wanted).abs().max() < 1e-5
        moved = model.backbone(torch.cat([ids[:, 4:], ids[:, :4]], 1)[1:])
    assert (moved - got[1:]).abs().max() < 1e-5  # padding may stand in front


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext"])
def test_an_image_is_encoded_as_transformers_does(tmp_path: Path, kind: str) -> None:
    folder = write_backbone(tmp_path / kind, kind)
    model = _build(_spec(folder), _PIXELS)().eval()
    pixels = torch.from_numpy(_rows(_PIXELS, 3))
    with torch.inference_mode():
        given = transformers.AutoModel.from_pretrained(folder).eval()(pixel_values=pixels)
        wanted = given.last_hidden_state[:, 1:].mean(1) if kind == "vit" else given.pooler_output.flatten(1)
        assert (model.backbone(pixels) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("kind", _CONFIGS)
def test_each_weight_is_in_one_group_of_layers(tmp_path: Path, kind: str) -> None:
    model = _build(_spec(write_backbone(tmp_path / kind, kind)), _given(kind))()
    groups = [[id(p) for p in group] for group in model.layer_groups()]
    assert sorted(member for group in groups for member in group) == sorted(id(p) for p in model.backbone.parameters())
    assert len(groups) == {"resnet": 5, "convnext": 5, "efficientnet_lite": 4}.get(kind, 3)
    assert all(groups)


def _assert_exported(spec: PretrainedModel, given: ModelInput) -> None:
    from onnx import TensorProto, helper

    model = _build(spec, given)()
    for module in model.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.3)
    torch.nn.init.normal_(model.head[-1].weight, std=model.backbone.width**-0.5)
    target = Target(task="classification", classes=("a", "b", "c"))
    raw = helper.make_tensor_value_info(
        "raw", TensorProto.INT64 if given.num_ids else TensorProto.FLOAT, ["n", *given.shape]
    )
    made = helper.make_tensor_value_info(given.name, raw.type.tensor_type.elem_type, ["n", *given.shape])
    graph = helper.make_graph([helper.make_node("Identity", ["raw"], [given.name])], "prepare", [raw], [made])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 5)]
    expected = {rows: to_onnx.predict(model, target, [_rows(given, rows)]) for rows in (1, 5)}
    joined = to_onnx.export_model(model, [given], helper.make_model(graph, opset_imports=opsets, ir_version=10), target)
    session = ort.InferenceSession(joined.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows, wanted in expected.items():
        (got,) = session.run(["probabilities"], {"raw": _rows(given, rows)})
        assert np.abs(got - wanted).max() < 1e-5
    assert wanted.std(0).max() > 1e-3


@pytest.mark.parametrize(
    "kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in _CONFIGS if kind != "bert")]
)
def test_an_exported_backbone_answers_as_torch_does(tmp_path: Path, kind: str) -> None:
    lora = {"factor_rank": 2, "target_modules": ["query"]} if kind == "bert" else None
    _assert_exported(_spec(write_backbone(tmp_path / kind, kind), lora=lora), _given(kind))


@pytest.mark.parametrize(("freeze", "learning"), [("none", {0, 1, 2}), (1, {1, 2}), (2, {2}), ("all", set())])
def test_frozen_weights_stay_to_the_bit(bert: Path, freeze: Any, learning: set[int]) -> None:
    """Weight decay alone would change them; and the optimizer holds nothing for them."""
    spec = _spec(bert, freeze=freeze)
    state = _train(spec, _train_spec(epochs=1, average_decay=0.9))
    assert _changed(state, spec) == learning
    assert state.averaged is not None
    frozen = [p for i, group in enumerate(state.averaged.layer_groups()) if i not in learning for p in group]  # type: ignore[operator]
    first = [p for i, group in enumerate(_build(spec)().layer_groups()) if i not in learning for p in group]
    assert all(torch.equal(p, q) for p, q in zip(frozen, first, strict=True))
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    groups = state.model.layer_groups()  # type: ignore[operator]
    assert {i for i, group in enumerate(groups) for p in group if id(p) in held} == learning
    assert len(state.optimizer.state) == len(held)


@pytest.mark.slow
def test_groups_of_layers_begin_to_learn_from_the_top(bert: Path) -> None:
    spec = _spec(bert, unfreeze_every_epochs=2)
    train = _train_spec(epochs=8, lr=1e-3)
    state = start_state(_build(spec), train, _SEED)
    seen = [_changed(now, spec) for now in train_epochs(state, _data(), train, _SEED)]
    assert seen == [set(), set(), {2}, {2}, {1, 2}, {1, 2}, {0, 1, 2}, {0, 1, 2}]
    partly = _spec(bert, unfreeze_every_epochs=1, freeze=2)
    assert _changed(_train(partly, _train_spec(epochs=4)), partly) == {2}


@pytest.mark.slow_but("settings1-2")
@pytest.mark.parametrize("stop", [2, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 3))])
@pytest.mark.parametrize(
    "settings", [{"unfreeze_every_epochs": 1, "layer_lr_factor": 0.5}, {"lora": {"factor_rank": 2}}]
)
def test_resumed_after_any_epoch_is_equal_to_the_bit(bert: Path, tmp_path: Path, stop: int, settings: Any) -> None:
    spec = _spec(bert, **settings)
    train = _train_spec(epochs=4, average_decay=0.9, clip_norm=1.0, schedule="cosine", warmup_fraction=0.2)
    undisturbed = _train(spec, train)
    checkpoint.save(_train(spec, train, stop), tmp_path)
    resumed = start_state(_build(spec), train, _SEED + 1)
    checkpoint.restore(resumed, tmp_path)
    for _ in train_epochs(resumed, _data(), train, _SEED):
        pass
    assert resumed.history == undisturbed.history
    for mine, theirs in ((resumed.model, undisturbed.model), (resumed.averaged, undisturbed.averaged)):
        assert mine is not None
        assert theirs is not None
        assert all(
            torch.equal(p, q) for p, q in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
    assert len(resumed.optimizer.state) == len(undisturbed.optimizer.state)


def test_lower_layers_learn_slower(bert: Path) -> None:
    spec = _spec(bert, layer_lr_factor=0.5, freeze=1)
    state = _train(spec, _train_spec(epochs=1, lr=0.04, schedule="constant"))
    rates = {id(p): group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
    groups = state.model.layer_groups()  # type: ignore[operator]
    assert {rates.get(id(p)) for p in groups[0]} == {None}
    assert {rates[id(p)] for p in groups[1]} == {0.01}
    assert {rates[id(p)] for p in groups[2]} == {0.02}
    assert {rates[id(p)] for p in state.model.head.parameters()} == {0.04}  # type: ignore[union-attr]
    for group in state.optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_thin_matrices_change_nothing_at_first_and_merge(bert: Path) -> None:
    ids = [_rows(_TOKENS, 5)]
    target = Target(task="classification", classes=("a", "b", "c"))
    spec = _spec(bert, lora={"factor_rank": 2, "alpha": 8.0, "target_modules": ["query", "dense"]})
    plain = start_state(_build(_spec(bert)), _train_spec(), _SEED).model.eval()
    state = start_state(_build(spec), _train_spec(), _SEED)
    with torch.inference_mode():
        first, wanted = (model.eval().backbone(torch.from_numpy(ids[0])) for model in (state.model, plain))  # type: ignore[operator]
    assert torch.equal(first, wanted)
    state = _train(spec, _train_spec())
    base = load_file(bert / "model.safetensors")
    held = {name: value for name, value in state.model.state_dict().items() if name.endswith("original")}
    assert len(held) == 2 * 4  # query, and three layers named dense, of two layers
    for name, value in held.items():
        assert torch.equal(
            value, base[name.removeprefix("backbone.encoder.").replace("parametrizations.weight.original", "weight")]
        )
    thin = [p for m in state.model.modules() if isinstance(m, LowRank) for p in m.parameters()]
    learning = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert learning == {id(p) for p in [*thin, *state.model.head.parameters()]}  # type: ignore[union-attr]
    unmerged = to_onnx.predict(state.model, target, ids)
    to_onnx.merge_weights(state.model)
    assert state.model.state_dict().keys() == plain.state_dict().keys()
    assert np.abs(to_onnx.predict(state.model, target, ids) - unmerged).max() < 1e-6
    assert np.abs(to_onnx.predict(plain, target, ids) - unmerged).max() > 1e-3


def test_a_batch_does_not_change_the_statistics_of_the_pretraining(tmp_path: Path) -> None:
    model = _build(_spec(write_backbone(tmp_path / "lite", "efficientnet_lite")), _PIXELS)().train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    pixels = torch.from_numpy(_rows(_PIXELS, 4))
    together = model(pixels)
    assert (model(pixels[:1]) - together[:1]).abs().max() < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def _feature_set(given: ModelInput) -> FeatureSet:
    return FeatureSet.model_construct(inputs=(given,), target=Target(task="classification", classes=("a", "b", "c")))


def test_a_checkpoint_and_a_worker_need_no_files_of_the_backbone(bert: Path, tmp_path: Path) -> None:
    """What builds the model travels with the weights; what is stored builds it, and takes any weights of that form."""
    folder = shutil.copytree(bert, tmp_path / "copy")
    spec: Any = FusionModel.model_validate(
        {"kind": "fusion", "encoders": {"tokens": {"kind": "pretrained", "backbone": str(folder), "lora": {}}}}
    )
    wanted = start_state(_build(spec), _train_spec(), _SEED).model.state_dict()
    described, build = with_backbones(spec, _feature_set(_TOKENS), _train_spec(), _SEED)
    shutil.rmtree(folder)
    got = start_state(build, _train_spec(), _SEED + 1).model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in got.items())
    stored = TypeAdapter[Any](Model).validate_json(described.model_dump_json())
    build_model(stored, [_TOKENS], _CLASSES).load_state_dict(wanted)


def test_other_weights_are_another_step(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "copy")
    first = fingerprint(_spec(folder))
    assert first == fingerprint(_spec(bert))
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1
    save_file(weights, folder / "model.safetensors")
    assert fingerprint(_spec(folder)) != first
    assert fingerprint(_spec(folder, config={"model_type": "bert"})) is None


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"lora": {"target_modules": ["quary"]}}, _TOKENS, r"model.lora.target_modules must name linear layers .*\(dense, key, query, value\), got 'quary'"),
        ({"freeze": 3}, _TOKENS, "model.freeze must be less than 3, the backbone"),
        ({}, ModelInput(name="tokens", shape=(6,), num_ids=_IDS + 1), "must know all token ids, got 21 for its 20"),
        ({}, ModelInput(name="tokens", shape=(17,), num_ids=_IDS), r"encode.max_length \(17\), got 16"),
        ({}, ModelInput(name="tokens", shape=(6,), num_ids=_IDS, padding_id=1), r"must pad with the id of the features \(1\), got 0"),
        ({}, _PIXELS, "model.backbone must be one that takes image, got a bert, which takes tokens"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_of_the_spec(bert: Path, settings: Any, given: ModelInput, expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        _build(_spec(bert, **settings), given)()


def test_damaged_and_foreign_files_are_named(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "copy")
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(SpecError, match=r"model.backbone must hold weights that fit its config.json, got .*missing\)"):
        _build(_spec(folder))()
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(SpecError, match=r"model\.backbone must hold weights that fit"):
        _build(_spec(folder))()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    with pytest.raises(SpecError, match=r"model\.backbone must be a folder with config\.json and model\.safetensors"):
        _build(_spec(folder))()
    code = {"model_type": "mine", "auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(code))
    (folder / "model.safetensors").touch()
    with pytest.raises(SpecError, match=r"must have a model_type of bert, .* got 'mine'"):
        _build(_spec(folder))()
