"""The demo: raw records to a live endpoint, a prediction over HTTP, the metrics it leaves; then everything stops.

python jobs/demo.py jobs/specs/medical_diagnosis.yaml [--serve]
"""

import argparse
import json
import signal
import threading
import time

from lepton_ray.cli.output import RichProgress
from lepton_ray.core.web import open_url
from lepton_ray.engine.session import close
from lepton_ray.pipeline import RunResult, run
from lepton_ray.spec import load_spec
from lepton_ray.stages.deploy import post_json

_METRICS_WAIT_S = 30.0
_SHOWN = ("ray_lepton_requests_total", "ray_lepton_rows_total", "ray_lepton_request_latency_ms_count")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec")
    parser.add_argument("--serve", action="store_true", help="keep the endpoint up until Ctrl-C")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    try:
        result = run(load_spec(arguments.spec, ["serve.port=0"]), progress=RichProgress())
        _ask(result)
        _show_metrics(result["deploy"].metrics_url)
        print(f"\nreport:  {result['evaluate'].folder / 'report.html'}")
        print(f"package: {result['export'].path}")
        print(f"all of it took {time.monotonic() - start:.0f} s")
        if arguments.serve:
            print(f"\nserving at {result['deploy'].url} until Ctrl-C", flush=True)
            threading.Event().wait()
        else:
            print("\nThe endpoint stops now. 'make demo SERVE=1' keeps it up for the curl above.")
    except KeyboardInterrupt:
        print("stopping")
    finally:
        close()


def _ask(result: RunResult) -> None:
    """Send one record as an application would."""
    golden = json.loads((result["export"].path / "golden_records.json").read_text(encoding="utf-8"))
    body = json.dumps({"records": golden["records"][:1]}).encode()
    url = f"{result['deploy'].url}/predict"
    print(f"\nPOST {url} -> 200\n{post_json(url, body).decode()}")  # any other status is an error


def _show_metrics(url: str) -> None:
    """Wait until Ray has exported the metrics of the requests, and print some."""
    deadline = time.monotonic() + _METRICS_WAIT_S
    lines: list[str] = []
    while time.monotonic() < deadline and not any(_SHOWN[0] in line for line in lines):
        time.sleep(0.5)
        with open_url(url, _METRICS_WAIT_S) as response:
            lines = response.read().decode().splitlines()
    print(f"\nGET {url}")
    for line in lines:
        if line.startswith(_SHOWN):
            print(line)


if __name__ == "__main__":
    main()
