"""Sub-words through the compiled graph, against WordPiece as its authors describe it, in plain Python."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import SpecError
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features
from lepton_ray.spec.tokenizer_file import read_tokenizer
from lepton_ray.stages.featurize import fingerprint

from .feature_case import fit

PIECES = [
    "un",
    "##aff",
    "##able",
    "a",
    "b",
    "##a",
    "##b",
    "##ab",
    "ab",
    "é",
    "##é",
    "東",
    "!",
    "[CLS]",
    "[SEP]",
    "\U0001f600",
]
VOCABULARY = {piece: number for number, piece in enumerate(["[PAD]", "[UNK]", *PIECES])}
TEXTS = st.lists(st.text("abé東!u nf le\U0001f600\x00", max_size=20) | st.just("unaffable"), min_size=1, max_size=6)
FRAME = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}],
    "special_tokens": {name: {"id": name, "ids": [VOCABULARY[name]]} for name in ("[CLS]", "[SEP]")},
}


def write(path, model=None, **parts):
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": VOCABULARY} | (
        model or {}
    )
    content = {
        "normalizer": None,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "model": model,
    }
    path.write_text(json.dumps(content | parts), encoding="utf-8")
    return str(path)


def is_punctuation(character):
    return unicodedata.category(character)[0] == "P"


def words_of(text):
    """Words between spaces, punctuation alone."""
    words = [""]
    for character in text:
        if character.isspace():
            words.append("")
        elif is_punctuation(character):
            words += [character, ""]
        else:
            words[-1] += character
    return [word for word in words if word]


def pieces_of(word, longest):
    """Greedy from the left, longest piece first; nothing fits: unknown."""
    ids, start = [], 0
    while start < len(word) <= longest:
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in VOCABULARY:
                ids.append(VOCABULARY[piece])
                start = end
                break
        else:
            return [VOCABULARY["[UNK]"]]
    return ids or [VOCABULARY["[UNK]"]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    short = {"max_input_chars_per_word": 4}
    return {
        "plain": (write(folder / "plain.json"), [], [], 100),
        "framed": (write(folder / "framed.json", post_processor=FRAME), ["[CLS]"], ["[SEP]"], 100),
        "short": (write(folder / "short.json", short), [], [], 4),
    }


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.sampled_from(["plain", "framed", "short"]), st.integers(3, 9))
def test_pieces_are_the_longest_from_the_left(files, texts, name, max_length):
    path, before, after, longest = files[name]
    section = {
        "tokens": {"kind": "subwords", "tokenizer_file": path},
        "encode": {"kind": "ids", "max_length": max_length},
    }
    result = fit({"t": "text"}, {"t": texts}, texts=section).outputs({"t": texts})["tokens"]
    for text, row in zip(texts, result, strict=True):
        ids = [number for word in words_of(text) for number in pieces_of(word, longest)]
        ids = ids[: max_length - len(before) - len(after)]
        ids = [*(VOCABULARY[p] for p in before), *ids, *(VOCABULARY[p] for p in after)]
        assert row.tolist() == ids + [0] * (max_length - len(ids))


def test_whole_words_of_a_file(tmp_path):
    model = {"type": "WordLevel", "vocab": {"<unk>": 7, "ab": 3, "!?": 5}, "unk_token": "<unk>"}
    path = write(tmp_path / "t.json", model, pre_tokenizer={"type": "Whitespace"}, padding={"pad_id": 9})
    section = {"tokens": {"kind": "subwords", "tokenizer_file": path}, "encode": {"kind": "ids", "max_length": 4}}
    fitted = fit({"t": "text"}, {"t": [""]}, texts=section)
    texts = ["ab!? x", "", "ab", None, "ab ab ab ab ab"]
    expected = [[3, 5, 7, 9], [9, 9, 9, 9], [3, 9, 9, 9], [9, 9, 9, 9], [3, 3, 3, 3]]
    assert fitted.outputs({"t": texts})["tokens"].tolist() == expected


def test_ideographs_stand_alone_where_the_file_says_so(tmp_path):
    normalizer = {"type": "BertNormalizer", "lowercase": False, "strip_accents": None, "handle_chinese_chars": True}
    path = write(tmp_path / "t.json", normalizer=normalizer)
    section = {"tokens": {"kind": "subwords", "tokenizer_file": path}, "encode": {"kind": "ids", "max_length": 4}}
    result = fit({"t": "text"}, {"t": [""]}, texts=section).outputs({"t": ["a東東b"]})["tokens"]
    assert result.tolist() == [[VOCABULARY[c] for c in "a東東b"]]


@pytest.mark.parametrize(
    ("model", "parts", "expected"),
    [
        ({"type": "BPE"}, {}, "must hold a model of type WordLevel or WordPiece, got 'BPE', which the operators of onnxruntime"),
        ({}, {"pre_tokenizer": {"type": "ByteLevel"}}, "must have a pre_tokenizer of type WhitespaceSplit, Whitespace, BertPreTokenizer, got 'ByteLevel'"),
        ({}, {"pre_tokenizer": None}, "got None"),
        ({}, {"normalizer": {"type": "StripAccents"}}, "must have a normalizer of type BertNormalizer, Lowercase, NFC, NFKC or none, got 'StripAccents'"),
        ({}, {"post_processor": {"type": "ByteLevel"}}, "must have a post_processor of type TemplateProcessing, BertProcessing or none"),
        ({"vocab": []}, {}, "must have the form of a tokenizer.json"),
        ({"unk_token": "?"}, {}, "must have the form of a tokenizer.json"),
    ],
)  # fmt: skip
def test_what_the_graph_cannot_compute_is_refused(tmp_path, model, parts, expected):
    with pytest.raises(ValueError, match=r"^must") as raised:
        read_tokenizer(write(tmp_path / "t.json", model, **parts))
    assert expected in str(raised.value)


def test_a_normalizer_must_be_the_columns_own(tmp_path):
    path = write(
        tmp_path / "t.json", normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    )
    columns = {"note": {"kind": "text", "normalise": ["lower"]}, "label": "category"}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "columns": columns, "label": "label"})
    section = {"tokens": {"kind": "subwords", "tokenizer_file": path}, "encode": "ids"}
    (problem,) = check_features(FeaturesSpec.model_validate({"texts": section}), data)
    assert "must be used with normalise 'nfc', as its normalizer has it, got ['lower'] for 'note'" in problem
    framed = write(tmp_path / "t.json", post_processor=FRAME)
    section = {"tokens": {"kind": "subwords", "tokenizer_file": framed}, "encode": {"kind": "ids", "max_length": 2}}
    (problem,) = check_features(FeaturesSpec.model_validate({"texts": section}), data)
    assert "must be used with a max_length above 2, got 2. Raise it" in problem


@pytest.mark.parametrize(
    ("normalizer", "wanted"),
    [
        ({"lowercase": True, "strip_accents": None}, ("accents", "lower")),
        ({"lowercase": True, "strip_accents": False}, ("lower",)),
        ({"lowercase": False, "strip_accents": True}, ("accents",)),
        ({"lowercase": False}, ()),
    ],
)
def test_accents_are_stripped_where_bert_does(tmp_path, normalizer, wanted):
    """As BertNormalizer has it: left open, accents go where letters become lower case."""
    path = write(tmp_path / "t.json", normalizer={"type": "BertNormalizer", **normalizer})
    assert read_tokenizer(path).normalise == wanted


def test_a_file_that_is_still_to_be_written_is_looked_at_by_the_run(tmp_path):
    """``prepare`` of a source may write it; without one it must be there at once."""
    path = str(tmp_path / "later.json")
    features = FeaturesSpec.model_validate(
        {"texts": {"tokens": {"kind": "subwords", "tokenizer_file": path}, "encode": "ids"}}
    )
    data = {"source": {"kind": "csv", "uri": "x"}, "columns": {"t": "text", "y": "category"}, "label": "y"}
    (problem,) = check_features(features, DataSpec.model_validate(data))
    assert "must be a readable file" in problem
    waiting = DataSpec.model_validate({**data, "source": {"kind": "csv", "uri": "x", "prepare": "a.b:c"}})
    assert check_features(features, waiting) == []
    with pytest.raises(SpecError, match=r"tokenizer_file must be a file, got .*later.json', which is not there"):
        fingerprint(waiting, features)


def test_sub_words_come_as_ids_only():
    section = {"tokens": {"kind": "subwords", "tokenizer_file": "x"}, "encode": "bag"}
    with pytest.raises(ValueError, match="encode must be 'ids' for tokens 'subwords', got 'bag'"):
        FeaturesSpec.model_validate({"texts": section})
