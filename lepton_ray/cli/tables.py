"""Tables for people on the terminal."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 1000  # characters: a line of a table stays a line for grep
_SPACES = "\t\n "


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]], num_text_columns: int = 1) -> None:
    """Print a table to standard output; the columns after the first ones are numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(head):
        is_number = index >= num_text_columns
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        table.add_row(*(Text(show_cell(value)) for value in row))
    is_terminal = sys.stdout.isatty()
    Console(highlight=False, width=None if is_terminal else _PIPE_WIDTH).print(table)


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
