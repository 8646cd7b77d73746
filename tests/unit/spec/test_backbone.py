"""A pretrained backbone is given what it has learned from, or the spec is wrong: vocabulary, frame, length, pixels."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import parse_spec
from lepton_ray.spec.run import RunSpec

_VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}
_FRAME = {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
_TOKENIZER = {
    "model": {"type": "WordPiece", "vocab": _VOCABULARY, "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": _FRAME,
}
_BERT = {
    "model_type": "bert",
    "vocab_size": 5,
    "max_position_embeddings": 16,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
_LITE = {"model_type": "efficientnet_lite", "image_mean": [0.498] * 3, "image_std": [0.502] * 3}


def _write(folder: Path, config: Any, tokenizer: Any = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _text_spec(folder: Path, tokens: Any, length: int = 8, model: Any = None) -> RunSpec:
    return parse_spec(
        json.dumps(
            {
                "name": "x",
                "data": {
                    "source": {"kind": "csv", "uri": "x"},
                    "label": "y",
                    "columns": {"t": "text", "y": "category"},
                },
                "features": {"texts": {"tokens": tokens, "encode": {"kind": "ids", "max_length": length}}},
                "model": {"kind": "pretrained", "backbone": str(folder), **(model or {})},
            }
        )
    )


def _subwords(path: Path) -> dict[str, str]:
    return {"kind": "subwords", "tokenizer_file": str(path)}


def _problem(*arguments: Any, **settings: Any) -> str:
    with pytest.raises(SpecError) as raised:
        _text_spec(*arguments, **settings)
    return str(raised.value)


def test_a_text_must_come_as_the_backbone_has_learned_it(tmp_path: Path) -> None:
    folder = _write(tmp_path / "bert", _BERT, _TOKENIZER)
    own = _subwords(folder / "tokenizer.json")
    assert _text_spec(folder, own, model={"freeze": 2}).model is not None
    assert "must be subwords of the backbone's tokenizer.json, whose ids it has learned, got 'words'" in _problem(
        folder, "words"
    )
    assert "encode.max_length must be at most 16, which the backbone has learned, got 17" in _problem(folder, own, 17)
    assert "model.freeze must be less than 3, the backbone's groups of layers, got 3" in _problem(
        folder, own, model={"freeze": 3}
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {**_TOKENIZER["model"], "vocab": {**_VOCABULARY, "b": 5}}}, "must have ids below 5, the backbone's vocabulary, got 5"),
        ({"model": {**_TOKENIZER["model"], "vocab": {**_VOCABULARY, "a": 3, "[SEP]": 4}}}, "must have the backbone's own vocabulary, got '[SEP]' as 4, which the backbone knows as 3"),
        ({"post_processor": None}, "must begin and end each text with [CLS] and [SEP] ([2], [3]), as the backbone has learned, got [] and []"),
        ({"padding": {"pad_id": 1}}, "must pad with the id 0, as the backbone does, got 1"),
    ],
)  # fmt: skip
def test_another_tokenizer_is_refused(tmp_path: Path, changes: Any, expected: str) -> None:
    folder = _write(tmp_path / "bert", _BERT, _TOKENIZER)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**_TOKENIZER, **changes}))
    problem = _problem(folder, _subwords(other))
    assert expected in problem
    assert "Take the tokenizer.json of the backbone" in problem


def test_a_folder_must_hold_a_backbone_that_can_be_built(tmp_path: Path) -> None:
    folder = _write(tmp_path / "gpt", {"model_type": "gpt2"})
    assert "model.backbone must have a model_type of bert, distilbert" in _problem(folder, "words")
    (folder / "config.json").write_text("{")
    assert "must have a config.json that is JSON" in _problem(folder, "words")
    (folder / "model.safetensors").unlink()
    assert "must be a folder with config.json and model.safetensors, got" in _problem(folder, "words")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"freeze": "all", "lora": {}}, "freeze must not be 'all' with lora"),
        ({"freeze": "all", "unfreeze_every_epochs": 1}, "freeze must not be 'all' with unfreeze_every_epochs"),
        ({"freeze": 0}, "freeze"),
        ({"layer_lr_factor": 1.5}, "layer_lr_factor"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, settings: Any, expected: str) -> None:
    folder = _write(tmp_path / "bert", _BERT, _TOKENIZER)
    assert expected in _problem(folder, _subwords(folder / "tokenizer.json"), model=settings)


def _image_spec(folder: Path, images: Any, channels: int = 3, model: Any = None, framework: str = "torch") -> RunSpec:
    return parse_spec(
        json.dumps(
            {
                "name": "x",
                "data": {
                    "source": {"kind": "image_folder", "uri": "x"},
                    "label": "y",
                    "columns": {
                        "i": {"kind": "image", "height": 32, "width": 32, "channels": channels},
                        "y": "category",
                    },
                },
                "features": {"images": images},
                "model": {"kind": "pretrained", "backbone": str(folder), **(model or {})},
                "train": {"framework": framework},
            }
        )
    )


def test_an_image_must_come_as_the_backbone_has_learned_it(tmp_path: Path) -> None:
    """127/255 and 0.5 are one; so are pixels up to 255 with numbers to match."""
    folder = _write(tmp_path / "lite", _LITE)
    for scale, factor in (("unit", 1), ("none", 255)):
        given = {"kind": "given", "mean": [0.5 * factor] * 3, "std": [0.5 * factor] * 3}
        _image_spec(folder, {"scale": scale, "normalise": given})
    for images in ({}, {"normalise": "dataset"}, {"normalise": {"kind": "given", "mean": [0.4] * 3, "std": [0.5] * 3}}):
        with pytest.raises(
            SpecError, match=r"features.images.normalise must be what the backbone has learned from, mean \[0.498"
        ):
            _image_spec(folder, images)
    with pytest.raises(SpecError, match=r"data\.columns must give images of 3 channels to the backbone, got 1"):
        _image_spec(folder, {}, channels=1)
    fixed = _write(tmp_path / "vit", {"model_type": "vit", "image_size": 16, "num_hidden_layers": 2})
    _image_spec(fixed, {"resize": [16, 16]})
    with pytest.raises(
        SpecError, match=r"features.images.resize must be \[16, 16\], which the backbone takes alone, got \[32, 32\]"
    ):
        _image_spec(fixed, {})


def test_what_a_configuration_tells_of_an_image_backbone_is_told_before_anything_is_read(tmp_path: Path) -> None:
    stages = _write(tmp_path / "stages", {"model_type": "convnext", "depths": [1, 1, 2]})
    with pytest.raises(SpecError, match=r"model\.freeze must be less than 4, the backbone's groups of layers, got 4"):
        _image_spec(stages, {}, model={"freeze": 4})
    assert _image_spec(stages, {}, model={"freeze": 3})
    with pytest.raises(SpecError, match=r"model\.pooling must be mean for a convnext, .* got 'first'\. Remove it"):
        _image_spec(stages, {}, model={"pooling": "first"})
    vit = _write(tmp_path / "patches", {"model_type": "vit", "image_size": 32, "num_hidden_layers": 2})
    assert _image_spec(vit, {}, model={"pooling": "first"})
    keras = _write(tmp_path / "keras", {"model_type": "keras_applications", "architecture": "MobileNetV2"})
    given = {"kind": "given", "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(
        SpecError, match=r"features\.images\.resize must give the backbone at least 32x32, got \[28, 28\]"
    ):
        _image_spec(keras, {"resize": [28, 28], "normalise": given}, framework="keras")
    assert _image_spec(keras, {"normalise": given}, framework="keras")


def test_a_model_that_cannot_be_downloaded_is_one_sentence() -> None:
    """The hub is an address where nobody listens; the library reads it when it is imported, so in a process of its own."""
    pytest.importorskip("huggingface_hub", reason="the extra 'pretrained' is not installed")
    code = """
import os, sys
os.environ.update(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=sys.argv[1])
from lepton_ray.models.backbones import find_backbone
from lepton_ray.spec.model import PretrainedModel
from lepton_ray.core.errors import SpecError
for name in ("nobody/nothing", "no/such/folder"):
    try:
        find_backbone("model", PretrainedModel(kind="pretrained", backbone=name, revision="abc"))
    except SpecError as error:
        print(repr(error.problems))
"""
    done = subprocess.run([sys.executable, "-c", code, "unused_cache"], capture_output=True, text=True, check=True)
    offline, path = done.stdout.splitlines()
    assert (
        "model.backbone must be a folder that is there, or a model that Hugging Face gives, got 'nobody/nothing', revision abc ("
        in offline
    )
    assert "Check the name and the connection, or download the model and name its folder" in offline
    assert (
        "model.backbone must be a folder, or OWNER/NAME on Hugging Face, got 'no/such/folder'. Check the path" in path
    )
