"""Our server with all that it can do: tokens, limits, metrics, ids, access log.

python benchmarks/serve/ours.py PACKAGE PORT TOKENS [REPLICAS [WAITING]]

The replicas' listener is at the port after PORT, Ray Serve's own HTTP at PORT. The limits are there, and too high to bind.
"""

import signal
import sys
import threading

from lepton_ray.engine.session import close
from lepton_ray.spec.autoscaling import AutoscalingSpec
from lepton_ray.spec.release import AuthSpec, RateLimitSpec, ServeSpec
from lepton_ray.stages.deploy import locate_model, start_application

_LIMIT = RateLimitSpec(requests_per_second=1e6)


def deploy(package: str, port: int, tokens: str, replicas: int = 1, waiting: int = 1000) -> None:
    """Start the application, or give it another number of replicas."""
    ref, opened = locate_model(package, None)
    spec = ServeSpec(
        port=port,
        autoscaling=AutoscalingSpec(min_replicas=replicas, max_replicas=replicas),
        cpus_per_replica=0.25,  # what Ray counts: more replicas than cores must have room; each computes with one thread
        max_queued_requests=waiting,
        auth=AuthSpec(tokens_file=tokens, rate_limit_per_token=_LIMIT),
        rate_limit=_LIMIT,
    )
    start_application(ref, opened, spec, opened.name)


def main() -> None:
    """Serve until SIGTERM."""
    package, port, tokens, *rest = sys.argv[1:]
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    deploy(package, int(port), tokens, *map(int, rest))
    ended.wait()
    close()


if __name__ == "__main__":
    main()
