"""Vocabulary files in the form of Hugging Face's ``tokenizer.json``: which of them the graph can compute, read into plain facts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS = ("WordLevel", "WordPiece")
_MAX_FILE_BYTES = 256 << 20
_SPACE = r"\s\x{85}\pZ"
_PUNCTUATION = r"!-/:-@\[-`{-~\pP"
_IDEOGRAPHS = (
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{2F800}-\x{2FA1F}"
)
_WORD = r"\pL\pM\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{200C}\x{200D}"
_EXPRESSIONS = {
    "WhitespaceSplit": f"[^{_SPACE}]+",
    "Whitespace": f"[{_WORD}]+|[^{_WORD}{_SPACE}]+",
    "BertPreTokenizer": f"[{_PUNCTUATION}]|[^{_PUNCTUATION}{_SPACE}]+",
}
_BERT_WITH_IDEOGRAPHS = f"[{_PUNCTUATION}{_IDEOGRAPHS}]|[^{_PUNCTUATION}{_IDEOGRAPHS}{_SPACE}]+"


@dataclass(frozen=True)
class TokenizerFile:
    """What the graph needs to know of a tokenizer."""

    expression: str
    """RE2 of the words that a text is cut into."""
    is_wordpiece: bool
    """Whether words are cut further into the longest known pieces, from the left."""
    vocabulary: Mapping[str, int]
    unknown_id: int
    pad_id: int
    continuing_prefix: str
    """How pieces are marked that do not begin a word."""
    max_word_length: int
    """Characters; a longer word is unknown."""
    before: tuple[int, ...]
    """Ids that every text begins with."""
    after: tuple[int, ...]
    """Ids that every text ends with, also when it is cut."""
    normalise: tuple[str, ...]
    """Steps that ``normalise`` of the column must take, because the graph cannot."""


def read_tokenizer(path: str) -> TokenizerFile:
    """Read a file.

    Raises:
        ValueError: If it cannot be read, or holds what the graph cannot compute; says what it must hold.
    """
    text = _read(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"must be JSON, got {path!r} ({error}). Take a tokenizer.json") from error
    try:
        return _parse(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"must have the form of a tokenizer.json, got {path!r} ({error!r}). Save it anew") from error


def _read(path: str) -> bytes:
    file = Path(path)
    try:
        if (size := file.stat().st_size) > _MAX_FILE_BYTES:
            raise ValueError(f"must be at most {_MAX_FILE_BYTES:,} bytes, got {path!r} of {size:,}. Take a smaller one")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"must be a readable file, got {path!r} ({error.strerror}). Check the path") from error


def _parse(content: dict[str, Any]) -> TokenizerFile:
    model = content["model"]
    kind = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else "unnamed")
    if kind not in MODELS:
        raise ValueError(
            f"must hold a model of type {' or '.join(MODELS)}, got {kind!r}, which the operators of onnxruntime cannot "
            "compute. Take another file, or tokens words or characters"
        )
    vocabulary = {str(token): int(number) for token, number in model["vocab"].items()}
    normalise = _normalise_steps(content.get("normalizer"))
    before, after = _frame(content.get("post_processor"))
    padding = content.get("padding") or {}
    return TokenizerFile(
        expression=_expression(content),
        is_wordpiece=kind == "WordPiece",
        vocabulary=vocabulary,
        unknown_id=vocabulary[model["unk_token"]],
        pad_id=int(padding.get("pad_id", vocabulary.get("[PAD]", vocabulary.get("<pad>", 0)))),
        continuing_prefix=model.get("continuing_subword_prefix", ""),
        max_word_length=int(model.get("max_input_chars_per_word", 100)),
        before=before,
        after=after,
        normalise=normalise,
    )


def _expression(content: dict[str, Any]) -> str:
    kind = (content.get("pre_tokenizer") or {}).get("type")
    if kind not in _EXPRESSIONS:
        raise ValueError(
            f"must have a pre_tokenizer of type {', '.join(_EXPRESSIONS)}, got {kind!r}. Take another file"
        )
    normalizer = content.get("normalizer") or {}
    if kind == "BertPreTokenizer" and normalizer.get("handle_chinese_chars"):
        return _BERT_WITH_IDEOGRAPHS
    return _EXPRESSIONS[kind]


def _normalise_steps(normalizer: dict[str, Any] | None) -> tuple[str, ...]:
    if normalizer is None:
        return ()
    kind = normalizer["type"]
    if kind == "Sequence":
        return tuple(step for part in normalizer["normalizers"] for step in _normalise_steps(part))
    if kind == "BertNormalizer":
        lower, strips = normalizer.get("lowercase"), normalizer.get("strip_accents")
        strips = lower if strips is None else strips
        return (*(["accents"] if strips else []), *(["lower"] if lower else []))
    steps = {"Lowercase": ("lower",), "NFC": ("nfc",), "NFKC": ("nfkc",)}
    if kind not in steps:
        raise ValueError(f"must have a normalizer of type BertNormalizer, {', '.join(steps)} or none, got {kind!r}")
    return steps[kind]


def _frame(processor: dict[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after a single text."""
    if processor is None:
        return (), ()
    kind = processor["type"]
    if kind == "BertProcessing":
        return (int(processor["cls"][1]),), (int(processor["sep"][1]),)
    if kind != "TemplateProcessing":
        raise ValueError(f"must have a post_processor of type TemplateProcessing, BertProcessing or none, got {kind!r}")
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for item in processor["single"]:
        if "Sequence" in item:
            side = 1
        else:
            sides[side].extend(map(int, processor["special_tokens"][item["SpecialToken"]["id"]]["ids"]))
    return tuple(sides[0]), tuple(sides[1])
