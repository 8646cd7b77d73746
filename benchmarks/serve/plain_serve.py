"""The package on Ray Serve as its documentation shows it: a class with ``__call__`` that awaits the request.

But for ``max_ongoing_requests``, which is ours: at its default of 5, 64 connections would measure how Ray Serve's router waits.

python benchmarks/serve/plain_serve.py PACKAGE PORT
"""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve

PEERS = str(Path(__file__).parent / "peers")


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
class Service:
    """Holds a session."""

    def __init__(self, folder: str) -> None:
        sys.path.insert(0, PEERS)
        from model import Model  # noqa: PLC0415  of the replica

        self.model = Model(folder)

    async def __call__(self, request: Any) -> Any:
        """Answer records, or raw pixels."""
        if request.url.path != "/predict":
            return {"ready": True}
        if request.headers["content-type"] == "application/octet-stream":
            tensor = self.model.read_raw(await request.body())
        else:
            tensor = self.model.read_records(await request.json())
        return {"predictions": self.model.predict(tensor)}


def main() -> None:
    """Serve until SIGTERM."""
    folder, port = sys.argv[1:]
    ended = threading.Event()
    ray.init(address="local", include_dashboard=False, object_store_memory=300 << 20, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after Ray, which sets one of its own
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config={"enable_access_log": False})
    serve.run(Service.bind(folder))
    ended.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
