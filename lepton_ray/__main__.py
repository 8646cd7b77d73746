"""``lepton-ray``, which ``python -m lepton_ray`` is too."""

import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command as ``cli.app.main`` does; Ctrl-C ends it in one line while it is still being loaded too."""
    try:
        from lepton_ray.cli.app import main as run  # noqa: PLC0415  Ctrl-C comes in between

        run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
