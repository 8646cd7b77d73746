"""RESULTS.md: one section for each benchmark, between markers, so that each replaces its own and leaves the others alone."""

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATH = Path(__file__).parent / "RESULTS.md"


Section = Callable[[argparse.Namespace], str]


def write_sections(group: str, sections: Mapping[str, Section], arguments: argparse.Namespace) -> None:
    """Measure ``arguments.what``, one of the sections or all of them, print each and write it unless ``arguments.dry``.

    ``{load}`` in a section becomes the machine's load before and after it.
    """
    for name in sections if arguments.what == "all" else [arguments.what]:
        before = os.getloadavg()[0]
        print(f"load before the run: {before:.2f}", flush=True)
        section = sections[name](arguments)
        section = section.replace("{load}", f"{before:.1f} before and {os.getloadavg()[0]:.1f} after")
        print(section, flush=True)
        if not arguments.dry:
            replace_section(f"{group} {name}", section)
            print(f"wrote {PATH}", flush=True)


def replace_section(name: str, body: str, path: Path = PATH) -> None:
    """Write the section ``name``, in its old place or at the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}\n"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    found = re.search(f"{re.escape(begin)}\n.*?{re.escape(end)}\n", text, re.DOTALL)
    before, after = (text[: found.start()], text[found.end() :]) if found else (f"{text.rstrip()}\n\n", "")
    path.write_text(before + section + after, encoding="utf-8")


def describe_machine(*packages: str) -> str:
    """One line on the machine, the Python and the versions of packages."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = "".join(f", {package} {importlib.metadata.version(package)}" for package in packages)
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}, Python {platform.python_version()}, "
        f"no GPU{versions}."
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
