"""``lepton-ray``, which ``python -m lepton_ray`` is too."""

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command; Ctrl-C ends it in one line while it is still being loaded too."""
    try:
        from lepton_ray.cli.app import main as run  # noqa: PLC0415  Ctrl-C comes in between

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
