"""Sub-words of a vocabulary file, computed by standard operators: the longest known piece first, from the left of each word.

Legend: N texts, W words of the longest text, U distinct words, C characters of the longest word. Distinct words are cut once;
for each place in a word the longest piece that begins there is looked up, and a scan over the places then walks from piece to
piece. A word that the walk does not reach the end of is unknown.
"""

from typing import Literal

import numpy as np
from onnx import TensorProto, helper

from lepton_ray.core.frozen import Frozen, Ints, Texts
from lepton_ray.features.graph_builder import CONTRIB, REST, Graph
from lepton_ray.spec.tokenizer_file import TokenizerFile

_NOTHING = -1
_FLAT = [-1]


class SubwordState(Frozen):
    """Padded ids of the pieces of a text."""

    kind: Literal["subwords"] = "subwords"
    expression: str
    is_wordpiece: bool
    words: Texts
    """Pieces that begin a word."""
    word_ids: Ints
    pieces: Texts
    """Pieces that go on with a word, without their prefix."""
    piece_ids: Ints
    unknown_id: int
    pad_id: int
    max_word_length: int
    before: Ints
    after: Ints
    max_length: int

    @property
    def num_ids(self) -> int:
        """All ids are less than it."""
        own = (self.unknown_id, self.pad_id, *self.before, *self.after)
        return 1 + max(*own, *self.word_ids, *self.piece_ids)

    def names_of(self, name: str) -> list[str]:
        """Ids are no flat features."""
        return []

    def add(self, graph: Graph, text: str) -> str:
        """Add (N, max_length) int64."""
        words_NW = add_matches(graph, text, self.expression)
        if not self.is_wordpiece:
            known = graph.lookup(words_NW, ["", *self.words], [_NOTHING, *self.word_ids], self.unknown_id)
            return self._add_frame(graph, text, known)
        flat = graph.add("Reshape", words_NW, graph.constant(_FLAT))
        words_U, places = _add_unique(graph, flat)
        ids_UC = self._add_pieces(graph, words_U)
        ids = graph.add("Gather", ids_UC, places, axis=0)
        shape = graph.add("Concat", graph.add("Shape", text), graph.constant(_FLAT), axis=0)
        return self._add_frame(graph, text, graph.add("Reshape", ids, shape))

    def _add_pieces(self, graph: Graph, words_U: str) -> str:
        """Add the ids (U, C) of the pieces of words, ``_NOTHING`` at places where none begins."""
        characters = add_matches(graph, words_U, "(?s).", rows="words")
        characters = graph.slice(characters, 0, self.max_word_length + 1)
        nothing = graph.add("Expand", graph.texts([""]), _rows_by(graph, characters, 1))
        characters = graph.concat([characters, nothing])  # a scan needs a place
        is_character = _is_given(graph, characters)
        sizes = graph.add("ReduceSum", graph.cast(is_character, TensorProto.INT64), graph.constant([1]), keepdims=0)
        lengths, ids = self._add_longest(graph, characters)
        starts, ends = _add_walk(graph, lengths)
        is_reached = graph.add("Equal", ends, sizes)
        is_short = graph.add("LessOrEqual", sizes, graph.constant(np.int64(self.max_word_length)))
        is_known = graph.add("Unsqueeze", graph.add("And", is_reached, is_short), graph.constant([1]))
        no_id = graph.constant(np.int64(_NOTHING))
        known = graph.add("Where", starts, ids, no_id)
        unknown = graph.add(
            "Where", self._is_first(graph, is_character), graph.constant(np.int64(self.unknown_id)), no_id
        )
        return graph.add("Where", is_known, known, unknown)

    def _is_first(self, graph: Graph, is_character: str) -> str:
        """Mark the first place of each word that has characters."""
        count = graph.add("CumSum", graph.cast(is_character, TensorProto.INT64), graph.constant(np.int64(1)))
        return graph.add("And", is_character, graph.add("Equal", count, graph.constant(np.int64(1))))

    def _add_longest(self, graph: Graph, characters: str) -> tuple[str, str]:
        """Return length and id (U, C) of the longest piece that begins at each place; 0 and ``_NOTHING`` without one."""
        longest = max([1, *map(len, self.words), *map(len, self.pieces)])
        empty = graph.add("Expand", graph.texts([""]), _rows_by(graph, characters, longest - 1))
        padded = graph.concat([characters, empty])
        lengths = ids = text = ""
        for size in range(1, longest + 1):
            shifted = graph.slice(padded, size - 1, size - longest if size < longest else REST)
            text = graph.add("StringConcat", text, shifted) if text else shifted
            found = self._add_found(graph, text, size)
            is_found = graph.add("GreaterOrEqual", found, graph.constant(np.int64(0)))
            count = graph.constant(np.int64(size))
            before = graph.constant(np.int64(0))
            lengths = graph.add("Where", is_found, count, lengths or before)
            ids = graph.add("Where", is_found, found, ids) if ids else found
        return lengths, ids

    def _add_found(self, graph: Graph, text: str, size: int) -> str:
        """Add the ids (U, C) of pieces of a length; at the first place those that begin a word, behind it the others."""
        tables = ((self.words, self.word_ids), (self.pieces, self.piece_ids))
        parts = []
        for (pieces, ids), span in zip(tables, ((0, 1), (1, REST)), strict=True):
            chosen = [(piece, number) for piece, number in zip(pieces, ids, strict=True) if len(piece) == size]
            part = graph.slice(text, *span)
            parts.append(graph.lookup(part, [p for p, _ in chosen], [number for _, number in chosen], _NOTHING))
        return graph.concat(parts)

    def _add_frame(self, graph: Graph, text: str, ids: str) -> str:
        """Add (N, max_length): ids that are given, moved to the left, between those that begin and end every text."""
        room = self.max_length - len(self.before) - len(self.after)
        is_given = graph.add("GreaterOrEqual", ids, graph.constant(np.int64(0)))
        count = graph.add("CumSum", graph.cast(is_given, TensorProto.INT64), graph.constant(np.int64(1)))
        is_kept = graph.add("And", is_given, graph.add("LessOrEqual", count, graph.constant(np.int64(room))))
        kept = graph.add("Where", is_kept, ids, graph.constant(np.int64(_NOTHING)))
        pads = [graph.fill(text, number) for number in (self.pad_id, *self.before, *self.after)]
        framed = graph.concat([*pads[1 : len(self.before) + 1], kept, *pads[len(self.before) + 1 :]])
        is_set = graph.add("GreaterOrEqual", framed, graph.constant(np.int64(0)))
        place = graph.add("CumSum", graph.cast(is_set, TensorProto.INT64), graph.constant(np.int64(1)))
        behind = graph.constant(np.int64(self.max_length))  # a column that is cut off again
        target = graph.add("Where", is_set, graph.add("Sub", place, graph.constant(np.int64(1))), behind)
        shape = graph.constant(np.array([1, self.max_length + 1], np.int64))
        empty = graph.add("Expand", pads[0], shape)
        return graph.slice(graph.add("ScatterElements", empty, target, framed, axis=1), 0, self.max_length)


def state_of(file: TokenizerFile, max_length: int) -> SubwordState:
    """Return the state of a vocabulary file; nothing is learnt."""
    prefix = file.continuing_prefix if file.is_wordpiece else ""
    pieces = {
        t[len(prefix) :]: n for t, n in file.vocabulary.items() if prefix and t.startswith(prefix) and t != prefix
    }
    words = {token: number for token, number in file.vocabulary.items() if token}
    if file.is_wordpiece and not prefix:
        pieces = words
    return SubwordState(
        expression=file.expression,
        is_wordpiece=file.is_wordpiece,
        words=tuple(words),
        word_ids=tuple(words.values()),
        pieces=tuple(pieces),
        piece_ids=tuple(pieces.values()),
        unknown_id=file.unknown_id,
        pad_id=file.pad_id,
        max_word_length=file.max_word_length,
        before=file.before,
        after=file.after,
        max_length=max_length,
    )


def add_matches(graph: Graph, text: str, expression: str, rows: str = "batch") -> str:
    """Add (rows, most matches in a text) texts: what matches an expression (RE2), "" where a text has fewer."""
    matched = graph.add("Tokenizer", text, domain=CONTRIB, mark=0, pad_value="", mincharnum=1, tokenexp=expression)
    return graph.describe(matched, TensorProto.STRING, rows, None)


def _is_given(graph: Graph, texts: str) -> str:
    return graph.add("Not", graph.add("Equal", texts, graph.texts([""])))


def _rows_by(graph: Graph, matrix: str, width: int) -> str:
    """Add the shape [rows of the matrix, width]."""
    rows = graph.add("Shape", matrix, start=0, end=1)
    return graph.add("Concat", rows, graph.constant([width]), axis=0)


def _add_unique(graph: Graph, flat: str) -> tuple[str, str]:
    """Return distinct texts, "" among them so that there is one, and the place of each text."""
    values, places = graph.name("unique"), graph.name("places")
    more = graph.add("Concat", flat, graph.texts([""]), axis=0)
    graph.nodes.append(helper.make_node("Unique", [more], [values, "", places], sorted=0))
    bounds = [graph.constant(np.array([n], np.int64)) for n in (0, -1)]
    return values, graph.add("Slice", places, *bounds)


def _add_walk(graph: Graph, lengths_UC: str) -> tuple[str, str]:
    """Return at which places (U, C) a walk stands that moves on by the length at each, and where it ends (U,)."""
    place, at = (helper.make_tensor_value_info(n, TensorProto.INT64, s) for n, s in (("place", ["words"]), ("at", [])))
    length = helper.make_tensor_value_info("length", TensorProto.INT64, ["words"])
    outputs = [
        helper.make_tensor_value_info("next_place", TensorProto.INT64, ["words"]),
        helper.make_tensor_value_info("next_at", TensorProto.INT64, []),
        helper.make_tensor_value_info("stands", TensorProto.BOOL, ["words"]),
    ]
    nodes = [
        helper.make_node("Equal", ["place", "at"], ["stands"]),
        helper.make_node("Add", ["place", "length"], ["moved"]),
        helper.make_node("Where", ["stands", "moved", "place"], ["next_place"]),
        helper.make_node("Constant", [], ["one"], value_int=1),
        helper.make_node("Add", ["at", "one"], ["next_at"]),
    ]
    body = helper.make_graph(nodes, "walk", [place, at, length], outputs)
    zeros = graph.add(
        "ReduceSum", graph.add("Mul", lengths_UC, graph.constant(np.int64(0))), graph.constant([1]), keepdims=0
    )
    ends, stands = graph.name("ends"), graph.name("stands")
    graph.nodes.append(
        helper.make_node(
            "Scan",
            [zeros, graph.constant(np.int64(0)), lengths_UC],
            [ends, graph.name("steps"), stands],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
        )
    )
    return stands, ends
