"""Start the service beside this file: python server.py PACKAGE PORT."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Become its server."""
    package, port = sys.argv[1:]
    command = [sys.executable, "-m", "bentoml", "serve", "service:Service", "--host", "127.0.0.1", "--port", port]
    os.chdir(Path(__file__).parent)
    os.execve(sys.executable, command, {**os.environ, "PACKAGE": package, "BENTOML_DO_NOT_TRACK": "1"})


if __name__ == "__main__":
    main()
