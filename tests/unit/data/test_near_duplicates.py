"""Near duplicates against brute force on Python sets; sketches against the Jaccard similarity they estimate."""

import itertools
import random
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_ray.data import near_duplicates
from lepton_ray.data.hashing import hash_columns, to_words
from lepton_ray.data.minhash import comparable_texts, shingle_hashes, sketch, sketch_rows
from lepton_ray.data.near_duplicates import find_near_duplicates, jaccard
from lepton_ray.spec.clean import NearDuplicatesSpec

PROPERTY = settings(max_examples=80, deadline=None)
CHARACTERS = NearDuplicatesSpec(columns=("t",))
WORDS = NearDuplicatesSpec(columns=("t",), shingle="words", ngram=2, similarity=0.6)
specs = pytest.mark.parametrize("spec", [CHARACTERS, WORDS], ids=["characters", "words"])
any_text = (
    st.none()
    | st.text(st.characters(codec="utf-8"), max_size=30)
    | st.sampled_from(["", " ", "a", "ab", "İ", "ﬁ", "𝒳y", "न\u093fम"])
)


# --- the oracle: plain Python


def comparable(text):
    """A text as it is compared: letters, marks and digits in lower case, one space between runs of them."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split())


def shingles(text, spec):
    units = text.split() if spec.shingle == "words" else text
    if len(units) < spec.ngram:
        return {tuple(units)}
    return {tuple(units[i : i + spec.ngram]) for i in range(len(units) - spec.ngram + 1)}


def similarity(a, b, spec):
    return jaccard_of(shingles(a, spec), shingles(b, spec))


def jaccard_of(first, second):
    return len(first & second) / len(first | second)


def clusters_of(texts, spec):
    """Clusters of the rows with text, by comparing each pair."""
    rows = [i for i, text in enumerate(texts) if text]
    sets = {i: shingles(texts[i], spec) for i in rows}
    cluster = {i: i for i in rows}
    for i, j in itertools.combinations(rows, 2):
        if cluster[i] != cluster[j] and jaccard_of(sets[i], sets[j]) >= spec.similarity:
            old, new = cluster[j], cluster[i]
            cluster = {row: new if name == old else name for row, name in cluster.items()}
    found = {}
    for row, name in cluster.items():
        found.setdefault(name, set()).add(row)
    return {frozenset(members) for members in found.values() if len(members) > 1}


# --- what is tested


def run(texts, spec, is_in=None, blocks=1, fetched=None):
    """Removed rows with the row that stays, by position; the rows are sketched in some blocks."""
    table = pa.table({"t": pa.array(texts, pa.string()), "n": np.arange(len(texts), dtype=float)})
    edges = np.linspace(0, len(texts), blocks + 1).astype(int)
    parts = [sketch_rows(table.slice(a, b - a), spec) for a, b in itertools.pairwise(edges)]
    bands = np.concatenate([part.bands for part in parts])
    has_text = np.concatenate([part.has_text for part in parts])

    def rows(positions):
        if fetched is not None:
            fetched.append(len(positions))
        return table.take(pa.array(positions))

    found = find_near_duplicates(
        spec,
        np.concatenate([part.keys for part in parts]),
        lambda band: bands[:, band],
        rows,
        row_hashes(texts),
        has_text if is_in is None else has_text & is_in,
    )
    return dict(zip(found.removed.tolist(), found.kept.tolist(), strict=True))


def row_hashes(texts):
    return to_words(hash_columns([pa.array([f"{i} {text}" for i, text in enumerate(texts)])]))


def to_clusters(removed):
    found = {}
    for row, kept in removed.items():
        found.setdefault(kept, {kept}).add(row)
    return {frozenset(members) for members in found.values()}


WORD_LIST = [
    "".join(letters)
    for letters in itertools.product("bdfgklmnprst", "aeiou", "bdfgklmnprst", ["", "a", "e", "ing", "ed", "er"])
]


def real_like_texts(number, seed, alike=0.3):
    """Sentences of words whose frequencies fall as in real text; some are edited copies of earlier ones."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(WORD_LIST) + 1)]
    texts = []
    for _ in range(number):
        if texts and rng.random() < alike:
            words = rng.choice(texts).split()
            for _ in range(rng.randint(0, 4)):
                at = rng.randrange(len(words))
                action = rng.choice(["swap", "drop", "add"])
                if action == "swap":
                    words[at] = rng.choice(WORD_LIST)
                elif action == "drop" and len(words) > 3:
                    del words[at]
                else:
                    words.insert(at, rng.choice(WORD_LIST))
        else:
            words = rng.choices(WORD_LIST, weights, k=rng.randint(8, 40))
        texts.append(" ".join(words))
    return texts


@PROPERTY
@given(st.lists(any_text, max_size=8))
@example(["a\u0301", "\u00e1", "A\u0301", "ﬁ", "FI", "x\x00y", "x_y", "  ", "٣", "½"])
def test_texts_are_compared_as_python_would_write_them(texts):
    found = comparable_texts(pa.table({"t": pa.array(texts, pa.string())}), CHARACTERS).to_pylist()
    for text, result in zip(texts, found, strict=True):
        if text is None:
            assert result is None
        elif text.isascii():
            assert result == (" ".join(re.findall("[a-z0-9]+", text.lower())) or None)
        elif result is not None:  # Unicode's tables differ by version between libraries
            assert result == result.strip()
            assert "  " not in result
            assert unicodedata.is_normalized("NFKC", result) or comparable(text) != result


def test_several_columns_are_one_text_and_short_ones_are_left_out():
    table = pa.table(
        {"a": ["Big  news", None, "x", None], "b": pa.array(["today!", "alone", None, None]).dictionary_encode()}
    )
    spec = NearDuplicatesSpec(columns=("a", "b"), min_characters=2)
    assert comparable_texts(table, spec).to_pylist() == ["big news today", "alone", None, None]


@specs
@PROPERTY
@given(
    texts=st.lists(
        st.text(st.sampled_from("abé𝒳 "), min_size=1, max_size=40).map(comparable).filter(bool), min_size=1, max_size=8
    )
)
def test_jaccard_is_that_of_sets(spec, texts):
    pairs = np.array(list(itertools.product(range(len(texts)), repeat=2)))
    found = jaccard(pa.array(texts, pa.large_string()), pairs, spec)
    assert found.tolist() == [similarity(texts[i], texts[j], spec) for i, j in pairs.tolist()]


def test_long_texts_are_compared_in_halves(monkeypatch):
    texts = pa.array(real_like_texts(12, seed=6, alike=0.8), pa.large_string())
    pairs = np.array(list(itertools.product(range(12), repeat=2)))
    whole = jaccard(texts, pairs, CHARACTERS)
    monkeypatch.setattr(near_duplicates, "_MAX_TEXT_BYTES", 500)
    assert jaccard(texts, pairs, CHARACTERS).tolist() == whole.tolist()


@specs
def test_shingles_do_not_reach_into_the_next_text(spec):
    together, starts = shingle_hashes(pa.array(["abcdefgh", "ab", "one two three", "x"]), spec)
    alone = [shingle_hashes(pa.array([text]), spec)[0].tolist() for text in ("abcdefgh", "ab", "one two three", "x")]
    assert [part.tolist() for part in np.split(together, starts[1:])] == alone


@specs
def test_sketches_estimate_the_similarity_without_bias(spec):
    """The share of equal numbers is a mean of P draws with the pair's similarity; 5 standard errors are allowed."""
    wide = spec.model_copy(update={"num_permutations": 1024})
    texts = real_like_texts(120, seed=1, alike=0.9)
    sketches = sketch(pa.array(texts), wide)
    errors, misses, pairs = [], 0, 0
    for i, j in itertools.combinations(range(len(texts)), 2):
        true = similarity(texts[i], texts[j], wide)
        estimate = (sketches[i] == sketches[j]).mean()
        errors.append(estimate - true)
        misses += abs(estimate - true) > 5 * np.sqrt(true * (1 - true) / 1024) + 1e-12
        pairs += 1
    assert abs(np.mean(errors)) < 0.003
    assert misses <= pairs / 1000


@specs
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_precision_is_one_and_recall_what_the_bands_promise(spec, seed):
    texts = real_like_texts(300, seed)
    removed = run(texts, spec)
    found, expected = to_clusters(removed), clusters_of([comparable(text) for text in texts], spec)
    together = lambda clusters: {pair for members in clusters for pair in itertools.combinations(sorted(members), 2)}  # noqa: E731
    assert len(expected) > 20
    assert together(found) <= together(expected), "every cluster lies within one of brute force"
    assert len(together(found)) >= 0.99 * len(together(expected))


@specs
@PROPERTY
@given(
    texts=st.lists(
        st.sampled_from(["the quick brown fox jumps over the lazy dog", "a", "b", "", "!!"])
        | st.text("ab ", max_size=12),
        max_size=12,
    )
)
def test_small_texts_against_brute_force(spec, texts):
    found = to_clusters(run(texts, spec))
    expected = clusters_of([comparable(text) for text in texts], spec)
    assert all(any(members <= whole for whole in expected) for members in found)
    equal = {}
    for i, text in enumerate(texts):
        if comparable(text):
            equal.setdefault(comparable(text), set()).add(i)
    assert all(any(same <= members for members in found) for same in equal.values() if len(same) > 1)


@specs
def test_neither_order_nor_blocks_change_what_is_removed(spec):
    texts = real_like_texts(300, seed=5)
    hashes = row_hashes(texts)
    removed = run(texts, spec)
    for row, kept in removed.items():
        assert tuple(hashes[kept]) < tuple(hashes[row]), "the least hash stays"
    assert run(texts, spec, blocks=7) == removed
    order = np.random.default_rng(0).permutation(len(texts))
    table = pa.table({"t": [texts[i] for i in order]})
    sketches = sketch_rows(table, spec)
    shuffled = find_near_duplicates(
        spec,
        sketches.keys,
        lambda band: sketches.bands[:, band],
        lambda positions: table.take(pa.array(positions)),
        hashes[order],
        sketches.has_text,
    )
    assert dict(zip(order[shuffled.removed].tolist(), order[shuffled.kept].tolist(), strict=True)) == removed


def test_the_same_in_every_process():
    code = (
        "import pyarrow as pa; from lepton_ray.data.minhash import sketch_rows; from lepton_ray.spec.clean import "
        "NearDuplicatesSpec; s = sketch_rows(pa.table({'t': ['the same text everywhere', 'und so weiter und so fort']}), "
        "NearDuplicatesSpec(columns='t')); print(s.keys.tolist(), s.bands.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    here = sketch_rows(pa.table({"t": ["the same text everywhere", "und so weiter und so fort"]}), CHARACTERS)
    assert done.stdout == f"{here.keys.tolist()} {here.bands.tolist()}\n"


def test_rows_that_take_no_part_stay_and_link_nothing():
    texts = ["the same long text of the rows"] * 4
    assert run(texts, CHARACTERS, is_in=np.zeros(4, bool)) == {}
    (kept,) = set(run(texts, CHARACTERS, is_in=np.array([True, True, False, True])).values())
    assert kept != 2
    assert run([None, "", "..."], CHARACTERS) == {}
    assert run([], CHARACTERS) == {}
    assert run(["one"], CHARACTERS) == {}


def test_a_chain_is_one_cluster():
    words = [f"word{i}" for i in range(200)]
    texts = [" ".join(words[start : start + 60]) for start in range(0, 60, 5)]
    spec = NearDuplicatesSpec(columns=("t",), shingle="words", ngram=1, similarity=0.8)
    assert similarity(texts[0], texts[-1], spec) < 0.1
    assert len(set(run(texts, spec).values())) == 1


def test_boilerplate_with_many_variants_is_one_cluster_without_comparing_every_pair():
    body = " ".join(real_like_texts(4, seed=9))
    texts = [f"{body} {i}" for i in range(2000)]
    fetched = []
    removed = run(texts, CHARACTERS, fetched=fetched)
    assert len(removed) == 1999
    assert sum(fetched) < 20 * len(texts), "2 million pairs would take minutes"


def test_one_very_long_text_among_short_ones():
    long = " ".join(real_like_texts(3000, seed=3, alike=0))
    texts = [long, long + " and more", "short text that is alone", *real_like_texts(10, seed=4, alike=0)]
    removed = run(texts, CHARACTERS)
    assert {frozenset((0, 1))} == to_clusters(removed)


def test_similarity_of_one_removes_equal_texts_only():
    spec = CHARACTERS.model_copy(update={"similarity": 1.0})
    assert spec.num_bands == 1
    texts = ["Some Text, again", "some text again!", "some text again x"]
    assert to_clusters(run(texts, spec)) == {frozenset((0, 1))}
