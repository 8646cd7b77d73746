"""HTML as a person reads it: tags, comments, scripts and styles taken away, entities as the characters they stand for.

One pass from left to right, linear in the length of any text: what is looked for in vain is looked for once. (The parser of
the standard library takes quadratic time on some texts, and reads broken ones differently from release to release.)
"""

import re
from collections.abc import Iterator
from html import unescape

# with the end of a tag that has no value
_START = re.compile(r"<(?:!--|[!?]|/?([a-zA-Z][a-zA-Z0-9:-]{0,30})([^<>=]*>)?)")
_QUOTE_OR_END = re.compile(r"=[ \t\n\f\r]*[\"']|>")
_LEADING_ZEROS = re.compile(r"&#0+(?=[0-9])")
_LONG_NUMBER = re.compile(r"&#[1-9][0-9]{7,};?")  # beyond Unicode; int() refuses more than 4300 digits
_UNSEEN = {name: re.compile(rf"</{name}(?=[ \t\n\f\r/>])", re.IGNORECASE | re.ASCII) for name in ("script", "style")}
_BLOCKS = re.compile(
    "address|article|aside|blockquote|body|br|caption|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6r]|head"
    "|header|html|legend|li|main|nav|ol|option|p|pre|section|summary|table|tbody|td|tfoot|th|thead|title|tr|ul"
)


def read_markup(markup: str) -> str:
    """Return the text that HTML shows.

    A tag that starts or ends a block or a line leaves a space, so that words stay apart. What is never closed is text; only
    the content of a script or style that is never closed reaches to the end.
    """
    pieces: list[str] = []
    position = 0
    for start, end, name in _find_markup(markup):
        pieces.append(_read_entities(markup[position:start]))
        if _BLOCKS.fullmatch(name):
            pieces.append(" ")
        position = end
    pieces.append(_read_entities(markup[position:]))
    return "".join(pieces)


def _read_entities(text: str) -> str:
    if "&#" in text:
        text = _LONG_NUMBER.sub("\ufffd", _LEADING_ZEROS.sub("&#", text))
    return unescape(text)


def _find_markup(markup: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and tag name (blank for a comment) of each piece that is not shown."""
    ends = _Ends(markup)
    position = 0
    while match := _START.search(markup, position):
        name = (match[1] or "").lower()
        end = ends.of(match)
        if end is None:
            position = match.start() + 1
            continue
        if name in _UNSEEN and markup[match.start() + 1] != "/":
            end = ends.of_content(name, end)
        yield match.start(), end, name
        position = end


class _Ends:
    """Finds where pieces of markup end; asked from left to right."""

    def __init__(self, markup: str) -> None:
        self._markup = markup
        self._found: dict[str, int] = {}
        self._are_quotes_closed = True

    def of(self, start: re.Match[str]) -> int | None:
        """Return where the comment or tag ends that starts here; None if it never does."""
        if start[2]:
            return start.end()
        if (end := self._find(">", start.end())) is None:
            return None
        if start[0] == "<!--":
            close = self._find("-->", start.start() + 2)  # a comment may be no more than <!-->
            return None if close is None else close + 3
        if start[1] is None:
            return end + 1
        return self._of_tag(start.end()) or end + 1

    def of_content(self, name: str, position: int) -> int:
        """Return where the content of an element ends whose start tag ends at ``position``."""
        close = _UNSEEN[name].search(self._markup, position)
        return close.start() if close else len(self._markup)

    def _of_tag(self, position: int) -> int | None:
        """Return the end of a tag, passing over the ``>`` in its quoted values; None if its quotes are broken."""
        while self._are_quotes_closed and (match := _QUOTE_OR_END.search(self._markup, position)):
            if match[0] == ">":
                return match.end()
            position = self._markup.find(match[0][-1], match.end()) + 1
            self._are_quotes_closed = position > 0
        # This took a look at all that follows; it is not taken again.
        self._are_quotes_closed = False
        return None

    def _find(self, mark: str, position: int) -> int | None:
        """Return the first place of a mark from ``position`` on."""
        found = self._found.get(mark, 0)
        if 0 <= found < position or mark not in self._found:
            found = self._found[mark] = self._markup.find(mark, position)
        return None if found < 0 else found
