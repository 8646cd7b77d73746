"""Tables for people on the terminal."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 1000  # characters: a line of a table stays a line for grep
_LEAST_TEXT = 16  # characters of a text column that may be folded
_GAP = 2  # characters between columns
_SPACES = "\t\n "


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]], num_text_columns: int = 1) -> None:
    """Print a table to standard output; the columns after the first ones are numbers."""
    cells = [[show_cell(value) for value in row] for row in rows]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    if console.width < _least_width(head, cells, num_text_columns):
        _print_records(console, head, cells)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(head):
        is_number = index >= num_text_columns
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _least_width(head: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int) -> int:
    """Return the characters below which a table is no longer one that can be read."""
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    texts = [min(width, _LEAST_TEXT) for width in widths[:num_text_columns]]
    return sum(texts) + sum(widths[num_text_columns:]) + _GAP * (len(widths) - 1)


def _print_records(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as a paragraph: the first cell, then a line for each other one that has something."""
    for first, *rest in rows:
        console.print(Text(first, "bold"))
        named = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
        for name, cell in zip(head[1:], rest, strict=True):
            if cell:
                named.add_row(Text(f"  {name}"), Text(cell))
        console.print(named)


def show_cell(value: Any) -> str:
    """Return a value as text that cannot steer the terminal."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return " " if character in _SPACES else character.encode("unicode_escape", "surrogatepass").decode()


def show_bytes(size: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} B"
