"""What Ray's errors say, in one line: they carry the tracebacks of other processes, coloured for a terminal."""

import re

_WRAPPED = "The above exception was the direct cause"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def last_line(error: BaseException) -> str:
    """Return the line that says what went wrong: the last one of a traceback."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def last_line_of_data(error: BaseException) -> str:
    """Return that line of an error that Ray Data raised: behind it stands its advice on retries."""
    return last_line(RuntimeError(str(error).partition(_WRAPPED)[0]))
