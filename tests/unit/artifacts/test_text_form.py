"""Text forms: one text and Arrow arrays give the same for any Unicode; each step against an oracle of its own."""

import html
import time
import unicodedata
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.markup import read_markup
from lepton_ray.artifacts.text_form import TextForm, form
from lepton_ray.spec.data import CategoryColumn, TextColumn

_STEPS = ("nfc", "nfkc", "lower", "accents", "html", "urls", "spaces")
_PIECES = [
    *("\0", "\t", "\n", "\x1c", "\x85", "\xa0", "\u1680", "\u200b", "\u2028", "\u202e", "\u3000", "\ufeff", " ", "  "),
    *(
        "A",
        "z",
        "É",
        "e\u0301",
        "\u0301",
        "ß",
        "ẞ",
        "İ",
        "ı",
        "ŉ",
        "ﬁ",
        "Σ",
        "ς",
        "ⅷ",
        "가",
        "\u1100\u1161",
        "ﷺ",
        "שלום",
    ),
    *(
        "http://",
        "HTTPS://",
        "ftp://",
        "www.",
        "WwW.",
        "a.b",
        ".",
        ",",
        "(",
        ")",
        "URL",
        "😀",
        "\U0001f1e6",
        "\U0010ffff",
    ),
    *("<", ">", "</", "<b>", "</b>", "<p ", "<br/>", "<!--", "-->", "<script>", "</script >", '="', "='", '"', "&amp;"),
    *(
        "&",
        "&lt",
        "&#65;",
        "&#x41",
        "&#0;",
        "&#xd800;",
        "&#99999999999;",
        "&nbsp;",
        "&notit;",
        "<!",
        "<?",
        "\N{LATIN SMALL LETTER LONG S}",
    ),
]
_texts = st.lists(st.text(max_size=3) | st.sampled_from(_PIECES), max_size=8).map("".join)
_steps = st.lists(st.sampled_from(_STEPS), max_size=4).map(tuple)


def _form(*steps: Any, **replace: str) -> TextForm:
    return form(CategoryColumn(kind="category", normalise=steps, replace=replace))


@settings(max_examples=300, deadline=None)
@given(_steps, st.lists(st.none() | _texts, max_size=6), st.dictionaries(_texts, _texts, max_size=3))
@example(("lower",), ["İ", "ẞ", "A\u0301"], {})
@example(("spaces", "html"), ["&#32;a&nbsp;", "\x1c a\x1d"], {})
def test_arrays_and_single_texts_give_the_same(steps: Any, texts: list[str | None], replace: dict[str, str]) -> None:
    made = form(CategoryColumn(kind="category", normalise=steps, replace=replace))
    wanted = [None if text is None else made.apply(text) for text in texts]
    plain = pa.array(texts, pa.string())
    for array in (plain, plain.cast(pa.large_string()), plain.dictionary_encode()):
        got = made(array)
        assert got.to_pylist() == wanted
        if isinstance(got, pa.DictionaryArray):
            assert len(set(got.dictionary.to_pylist())) == len(got.dictionary)
    padded = pa.array(["<pad>", *texts, None], pa.string())
    assert made(padded.slice(1, len(texts))).to_pylist() == wanted
    assert made(padded.dictionary_encode().slice(1, len(texts))).to_pylist() == wanted


@pytest.mark.slow
def test_every_character_alone_and_between_letters() -> None:
    codes = [*range(0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200)]  # the planes with assigned characters
    characters = [chr(code) for code in codes]
    for steps in (("nfc",), ("nfkc",), ("lower",), ("accents",), ("spaces",), ("urls",)):
        made = _form(*steps)
        for texts in (characters, [f"www.e{character}\u0301 x" for character in characters]):
            assert made(pa.array(texts)).to_pylist() == [made.apply(text) for text in texts]


@settings(deadline=None)
@given(_texts)
def test_steps_are_what_unicode_says(text: str) -> None:
    assert _form("nfc").apply(text) == unicodedata.normalize("NFC", text).strip()
    assert _form("nfkc", "lower").apply(text) == unicodedata.normalize("NFKC", text).casefold().strip()
    assert not any(unicodedata.category(sign) == "Mn" for sign in _form("accents").apply(text))
    words = [""]
    for character in text:
        if character.isspace():
            words.append("")
        else:
            words[-1] += character
    assert _form("spaces").apply(text) == " ".join(word for word in words if word)
    assert _form().apply(text) == text.strip()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("see http://a.b/c?d=1#e.", "see URL."),
        ("(https://a.b/(x))", "(URL))"),
        ("HTTP://A.B,ftp://c www.d.e!", "URL URL!"),  # a comma may stand within an address
        ("WWW.a.b\u3000www.", "URL\u3000www."),
        ("http://", "http://"),
        ("http://....", "http://...."),
        ("<http://a.b>", "<URL>"),
        ('"http://ä.ö/ü"', '"URL"'),
        ("mailto:a@b.c a.b", "mailto:a@b.c a.b"),
    ],
)
def test_addresses_become_one_word(text: str, wanted: str) -> None:
    assert _form("urls").apply(text) == wanted
    assert _form("urls")(pa.array([text])).to_pylist() == [wanted]


def test_replace_knows_a_spelling_after_the_steps() -> None:
    made = _form("lower", "spaces", **{"NYC": "New York", "x": ""})
    texts = ["nyc", " NyC ", "NEW   YORK", "X", "Boston"]
    wanted = ["New York", "New York", "New York", "", "boston"]
    assert [made.apply(text) for text in texts] == made(pa.array(texts)).to_pylist() == wanted
    assert [made.apply(text) for text in wanted] == wanted


def test_allowed_categories_are_known_after_the_steps() -> None:
    made = form(CategoryColumn(kind="category", normalise=("lower",), replace={"R": "Red"}, allowed=("Red", "BLUE")))
    assert [made.apply(text) for text in ("r", "RED", "blue", "Blue", "Green")] == [
        "Red",
        "Red",
        "BLUE",
        "BLUE",
        "green",
    ]
    swapped = form(CategoryColumn(kind="category", normalise=("spaces",), replace={"1": "0", "2": "1"}))
    assert [swapped.apply(text) for text in "0123"] == ["0", "0", "1", "3"]


@settings(deadline=None)
@given(_steps, _texts, st.dictionaries(st.sampled_from("ab0"), st.sampled_from("ab1 "), max_size=3))
def test_inverting_gives_a_text_of_the_same_form_or_the_value(steps: Any, text: str, replace: dict[str, str]) -> None:
    made = form(CategoryColumn(kind="category", normalise=steps, replace=replace))
    value = made.apply(text)
    assert made.apply(made.invert(value)) == value or made.invert(value) == value


@pytest.mark.parametrize(
    ("form_", "text"),
    [(_form(**{"1": "0", "2": "1"}), "2"), (_form("html"), "a &lt;b&gt;"), (_form("html"), "&amp;amp;")],
)
def test_what_would_change_twice_is_inverted(form_: TextForm, text: str) -> None:
    value = form_.apply(text)
    assert form_.apply(value) != value
    assert form_.apply(form_.invert(value)) == value


# --- markup ---


@pytest.mark.parametrize(
    ("markup", "wanted"),
    [
        ("a<b>c</b>d", "acd"),
        ("<p>a</p><p>b</p>c<br>d", " a  b c d"),
        ("a<td>b<TD>c", "a b c"),
        ("<a href=\"x>y\" title='>'>z</a>", "z"),
        ("<p don't>a", " a"),
        ("a<!-- <b> -- > -->b<!-->c<!--->d", "abcd"),
        ("a<!doctype html><?php x ?>b", "ab"),
        ("a<script>if (a < b) '</b>'</script >b<STYLE>p{}</sTyLe>c", "abc"),
        ("a<script>var x", "a"),
        ("a<scripty>b", "ab"),
        ("1 < 2 & 3 > 2", "1 < 2 & 3 > 2"),
        ("a <3 b <- c <", "a <3 b <- c <"),
        ("a <b and c", "a <b and c"),
        ("a <!-- b > c", "a <!-- b > c"),
        ("&lt;b&gt; &amp;amp; &eacute;&#233;&#xe9; &notit; &copy", "<b> &amp; ééé ¬it; ©"),
        ("&#0; &#xD800; &#1114112; &#000000000065; &#x0041;", "\ufffd \ufffd \ufffd A A"),
        ("&l<b>t;", "&lt;"),
        ('<a title="x>y', "y"),  # a quote that is never closed is none
        ("x\0<b\0>y", "x\0y"),
        ("", ""),
    ],
)
def test_markup_is_read_as_a_person_reads_it(markup: str, wanted: str) -> None:
    assert read_markup(markup) == wanted


_words = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\r\n"), max_size=5)
_inline = st.sampled_from(["b", "i", "span", "a", "em", "x-y"])
_attributes = st.lists(st.tuples(st.sampled_from(["id", "title", "data-x"]), _words), max_size=2)


def _write_tag(name: str, attributes: list[tuple[str, str]]) -> str:
    return f"<{name}" + "".join(f' {key}="{html.escape(value)}"' for key, value in attributes) + ">"


_leaf = _words.map(lambda text: (html.escape(text), text))
_hidden = st.builds(
    lambda name, text: (f"<{name}>{text}</{name}>", ""),
    st.sampled_from(["script", "style"]),
    _words.filter(lambda text: "<" not in text),
) | _words.filter(lambda text: ">" not in text and "-" not in text).map(lambda text: (f"<!--{text}-->", ""))
_nodes = st.recursive(
    _leaf | _hidden,
    lambda inner: st.builds(
        lambda name, attributes, parts: (
            _write_tag(name, attributes) + "".join(part[0] for part in parts) + f"</{name}>",
            "".join(part[1] for part in parts),
        ),
        _inline,
        _attributes,
        st.lists(inner, max_size=3),
    ),
    max_leaves=8,
)


class _Text(HTMLParser):
    """The standard library's reading, which is right on well-formed documents."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self._hidden = "", 0
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


@settings(max_examples=150, deadline=None)
@given(st.lists(_nodes, max_size=4))
def test_a_document_shows_the_text_that_was_put_in(nodes: list[tuple[str, str]]) -> None:
    markup, text = ("".join(part[index] for part in nodes) for index in (0, 1))
    assert read_markup(markup) == text == _Text(markup).text


@settings(max_examples=300, deadline=None)
@given(_texts)
def test_any_markup_is_read(markup: str) -> None:
    text = read_markup(markup)
    text.encode()  # no half of a surrogate pair
    assert read_markup(html.escape(markup)) == markup


_HOSTILE = [
    *(
        "<",
        "<a",
        "<a ",
        "<a<",
        "<!--",
        "<!",
        "</",
        "</a",
        "<script",
        "<script>",
        "</script",
        "<a '",
        '<a "',
        '<a b="',
        "<a b='\"",
    ),
    *(
        '<a b=">',
        "<a b=\"'>",
        "<!-->",
        "&",
        "&#",
        "&#0",
        "&#9",
        "&#x",
        "&lt",
        "=",
        "= ",
        '="',
        "http://",
        "http://.",
        "www.",
        "www..",
    ),
    *(" ", "\x1c", "\u0301", "e\u0301", "ﷺ", "İ", "-->", "<!--<script>", "<style></", "\0"),
]


@pytest.mark.parametrize("piece", _HOSTILE)
def test_hostile_texts_take_linear_time(piece: str) -> None:
    made = form(TextColumn(kind="text", normalise=("html", "urls", "nfkc", "lower", "spaces")))
    size = 10**6 if piece == "<" else 2 * 10**5
    for text in (piece * (size // len(piece)), piece * (size // len(piece)) + ">"):
        start = time.process_time()
        made.apply(text)
        assert time.process_time() - start < 5  # about 0.1 s; quadratic time takes a minute


def test_entities_of_any_length_are_read() -> None:
    assert read_markup("&#" + "9" * 10**6 + ";x") == "\ufffdx"
    assert read_markup("&#" + "0" * 10**6 + "65;") == "A"
    assert read_markup("&#x" + "f" * 10**6 + ";") == "\ufffd"


@pytest.mark.parametrize("step", ["nfc", "nfkc", "accents"])
def test_marks_without_end_are_cut_and_others_are_not(step: Any) -> None:
    """Marks are sorted, by the square of how many there are."""
    column = TextColumn(kind="text", normalise=(step,))
    marks = "\u0315\u0300" * 200_000
    began = time.process_time()
    got = form(column).apply("a" + marks + "b")
    assert time.process_time() - began < 10
    assert len(got) <= 32
    assert form(column)(pa.array(["a" + marks + "b"])).to_pylist() == [got]
    letters = "e\u0301\u0323" * 1_000
    plain = unicodedata.normalize({"nfkc": "NFKC"}.get(step, "NFC"), letters)
    assert form(column).apply(letters) == ("e" * 1_000 if step == "accents" else plain)
