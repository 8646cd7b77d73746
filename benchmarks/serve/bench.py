"""Time what serves a model against what users would write instead. Writes its sections of RESULTS.md.

python benchmarks/serve/bench.py [all | table | haproxy | images | cnn | replica | replicas | overload] [--folder FOLDER] [--seconds 4]
    [--rounds 3] [--only NAME ...] [--dry]

All servers serve the same graph, on one core's worth of a replica or worker unless said, and are asked with the same bytes over
connections that are kept open, by ``wrk`` if it is on PATH, else by load.py, which takes more CPU from the server beside it. Each is a fresh
process, in turn, each round in another order. Peers run in environments of their own, made in FOLDER at their first use.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[1:1] = [str(HERE.parent), str(HERE.parent / "train")]

from results import write_sections  # noqa: E402
from servers import SERVERS  # noqa: E402  beside this file
from several import growth, one_more, overload  # noqa: E402
from single import batches, haproxy, images, small_table  # noqa: E402

SECTIONS = {
    "table": small_table,
    "haproxy": haproxy,
    "images": images,
    "cnn": batches,
    "replica": one_more,
    "replicas": growth,
    "overload": overload,
}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["all", *SECTIONS], default="all")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lepton_ray_bench")
    parser.add_argument("--seconds", type=int, default=4, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), metavar="NAME", help="servers of table and images")
    parser.add_argument("--dry", action="store_true", help="print the sections, do not write RESULTS.md")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does: with the servers that are running
    write_sections("serve", SECTIONS, arguments)


if __name__ == "__main__":
    main()
