"""Regular expressions of a spec: RE2's, which takes time in proportion to the text, whatever the expression.

pyarrow has RE2. It is imported with the first expression that is looked at: most specs have none.
"""

from collections.abc import Sequence


def whole(pattern: str) -> str:
    """Return the expression that matches texts which ``pattern`` matches from their beginning to their end."""
    return rf"\A(?:{pattern})\z"


def find_pattern_problem(pattern: str) -> str | None:
    """Return what RE2 says against a regular expression, such as one of Python's that looks ahead; else None."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        match_whole(pattern, [""])
    except pa.ArrowInvalid as error:
        return str(error).removeprefix("Invalid regular expression: ")
    return None


def match_whole(pattern: str, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether all of it matches a regular expression that has no problem."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    found: list[bool] = pc.match_substring_regex(pa.array(texts, pa.string()), whole(pattern)).to_pylist()
    return found
