"""The listener alone, in a process of its own: python benchmarks/serve/without_ray.py PACKAGE PORT."""

import asyncio
import socket
import sys
from pathlib import Path

import uvloop

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve.batching import Batcher, measure
from lepton_ray.serve.connection import ConnectionLimits
from lepton_ray.serve.endpoint import Endpoint, Limits, NoMeter
from lepton_ray.serve.front import Front, Variant
from lepton_ray.serve.listener import Listener


async def main() -> None:
    """Serve for ever."""
    folder, port = sys.argv[1:]
    predictor = Predictor(open_package(Path(folder)))
    endpoint = Endpoint(predictor, "bench", Limits(), NoMeter())
    front = Front.of(Variant(endpoint, Batcher(endpoint, measure(predictor), 1000)))
    listener = Listener(front, ConnectionLimits())
    with socket.create_server(("127.0.0.1", int(port)), backlog=1024) as listening:
        listening.setblocking(False)
        listener.start(listening)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
