"""HTTP APIs that answer with JSON, page after page; a block is a page, so that memory holds one at a time."""

import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from lepton_ray.core import settings
from lepton_ray.core.errors import DataError
from lepton_ray.core.text import show, without_credentials
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.http_client import Answer, Client, Limits, NotFoundError
from lepton_ray.data.connectors.records import Gathered, is_rounded, parse_anew, strip, to_json
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import CursorPages, HttpSource, LinkPages, NextPages, NumberedPages, OffsetPages

_LINK = re.compile(r"<([^>]*)>([^<]*)")
_JSON_TRIES = 3
_PAGE_SIZE = 100


@dataclass(frozen=True)
class HttpConnector:
    """Reads an API; its pages hang together, so they are one part."""

    data: DataSpec

    def columns(self) -> None:
        """Not known: each record has its own keys."""
        return

    def parts(self) -> list[Part]:
        """All pages."""
        return [Part({"pages": "all"})]

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield a block for each page that holds records."""
        source = self._source
        client = Client(settings.expand(source.uri), _expanded(source.headers), _limits(source), (source.uri,))
        url: str | None = _first_url(source, client.first_url)
        asked: set[str] = set()
        last: bytes | None = None
        line = 1
        while url is not None:
            if len(asked) >= source.max_pages:
                raise DataError(
                    f"{client.shown(url)} must end within {source.max_pages} pages, got more. Raise data.source.max_pages"
                )
            is_first = not asked
            asked.add(url)
            try:
                answer, content = _get_json(client, url)
            except NotFoundError:
                if is_first or not isinstance(source.pages, NumberedPages):
                    raise
                return
            records = _records(content, source, answer, is_first)
            if any(is_rounded(record, self.data.columns) for record in records):
                records = _records(parse_anew(content, answer.body), source, answer, is_first)
            if records and answer.body == last:
                raise DataError(
                    f"{client.shown(url)} must give another page for another request, got the same again. Check data.source.pages"
                )
            if records:
                yield self._block(records, line)
            line, last = line + len(records), answer.body
            url = _next_url(source, answer, content, len(records), line - 1)
            if url in asked:
                raise DataError(
                    f"{client.shown(url)} must come once, got it as next page again. Check data.source.pages"
                )

    def size_bytes(self) -> None:
        """Not known."""
        return

    def fingerprint(self) -> None:
        """Not known: ``--from ingest`` asks again."""
        return

    @property
    def _source(self) -> HttpSource:
        return source_as(self.data, HttpSource)

    def _block(self, records: list[Any], first_line: int) -> RawBlock:
        gathered = Gathered(self.data.columns)
        for line, record in enumerate(records, first_line):
            gathered.add(line, record, to_json(record))
        return gathered.block(without_credentials(self._source.uri))


def _expanded(headers: dict[str, str]) -> dict[str, str]:
    return {name: settings.expand(value) for name, value in headers.items()}


def _limits(source: HttpSource) -> Limits:
    return Limits(source.requests_per_s, source.timeout_s, source.deadline_s, source.max_tries, source.max_page_bytes)


def _get_json(client: Client, url: str) -> tuple[Answer, Any]:
    """Return the answer and its JSON; one that is cut off without a word is asked for again."""
    for is_last in (*[False] * (_JSON_TRIES - 1), True):
        answer = client.get(url)
        try:
            return answer, orjson.loads(strip(answer.body))
        except orjson.JSONDecodeError as error:
            if is_last:
                raise DataError(
                    f"{client.shown(url)} must answer with JSON, got {show(answer.body[:40])} ({error.args[0]}). Check data.source.uri"
                ) from error
    raise AssertionError("the last try returns or raises")


def _records(content: Any, source: HttpSource, answer: Answer, is_first: bool) -> list[Any]:
    """Return the records of an answer; null in their place is none, behind the first page."""
    found = _look_up(content, source.records) if source.records else content
    is_there = not source.records or _look_up(content, source.records, missing=()) is None
    if found is None and not is_first and is_there:
        return []
    if not isinstance(found, list):
        keys = f", which has {', '.join(list(content)[:20])}" if isinstance(content, dict) else ""
        where = repr(source.records) if source.records else "the answer itself"
        raise DataError(
            f"data.source.records must lead to a list in the answer of {answer.shown}{keys}, got {where}: "
            f"{type(found).__name__}. Name the keys that lead to it, joined by dots"
        )
    return found


def _look_up(content: Any, path: str, missing: Any = None) -> Any:
    """Return the value at keys joined by dots, ``missing`` where a key is not there; a key may hold dots itself."""
    if isinstance(content, dict) and path in content:
        return content[path]
    for key in path.split("."):
        content = content.get(key, missing) if isinstance(content, dict) else missing
    return content


def _first_url(source: HttpSource, url: str) -> str:
    if isinstance(source.pages, OffsetPages | NumberedPages):
        return _page_url(source.pages, url, 0, 0)
    return url


def _next_url(source: HttpSource, answer: Answer, content: Any, on_page: int, so_far: int) -> str | None:
    pages = source.pages
    if isinstance(pages, LinkPages):
        return _join(answer, _linked(answer.headers.get_all("Link") or []))  # type: ignore[attr-defined]
    if isinstance(pages, NextPages):
        return _join(answer, _text_at(content, pages.path, answer))
    if isinstance(pages, CursorPages):
        cursor = _text_at(content, pages.path, answer)
        return None if cursor is None else _with_query(answer.url, {pages.parameter: cursor})
    if isinstance(pages, OffsetPages | NumberedPages) and on_page:
        return _page_url(pages, answer.url, so_far, _number_of(answer.url, pages) + 1)
    return None


def _page_url(pages: OffsetPages | NumberedPages, url: str, so_far: int, number: int) -> str:
    if isinstance(pages, OffsetPages):
        return _with_query(url, {pages.parameter: str(so_far), pages.limit_parameter: str(pages.limit)})
    size = {pages.size_parameter: str(pages.size or _PAGE_SIZE)} if pages.size_parameter else {}
    return _with_query(url, {pages.parameter: str(max(number, pages.start)), **size})


def _number_of(url: str, pages: OffsetPages | NumberedPages) -> int:
    values = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query).get(pages.parameter, ["0"])
    return int(values[-1]) if values[-1].isascii() and values[-1].isdecimal() else 0


def _text_at(content: Any, path: str, answer: Answer) -> str | None:
    value = _look_up(content, path)
    if value is None or value == "" or value == 0:  # as it is where there are no more
        return None
    if not isinstance(value, str | int):
        raise DataError(
            f"data.source.pages.path must lead to a text in the answer of {answer.shown}, got {path!r}: {show(value)}. "
            "Name the keys that lead to it"
        )
    return str(value)


def _linked(headers: list[str]) -> str | None:
    """Return the address that ``Link`` headers give for ``next``."""
    for target, attributes in (match for header in headers for match in _LINK.findall(header)):
        for attribute in attributes.split(";"):
            name, _, value = attribute.strip().rstrip(",").partition("=")
            if name.strip().lower() == "rel" and "next" in value.strip().strip('"').lower().split():
                return str(target)
    return None


def _join(answer: Answer, target: str | None) -> str | None:
    try:
        return None if target is None else urllib.parse.urljoin(answer.url, target)
    except ValueError as error:
        raise DataError(
            f"{answer.shown} must name its next page by an address, got {show(target)} ({error}). Check data.source.pages"
        ) from error


def _with_query(url: str, changes: dict[str, str]) -> str:
    """Return an address with other values of some parameters; the rest of its query stays to the byte, in whatever encoding."""
    parts = urllib.parse.urlsplit(url)
    pieces = [piece for piece in parts.query.split("&") if piece]
    kept = [piece for piece in pieces if urllib.parse.unquote_plus(piece.partition("=")[0]) not in changes]
    return urllib.parse.urlunsplit(parts._replace(query="&".join([*kept, urllib.parse.urlencode(changes)])))
