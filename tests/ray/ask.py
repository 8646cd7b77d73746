"""Asks addresses until a file appears: ``ask.py RECORDS STOP RESULT URL...``; writes what was answered, by address."""

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

_TIMEOUT_S = 60


def ask(url: str, body: bytes, stop: Path, told: dict[str, Any]) -> None:
    while not stop.exists():
        start = time.monotonic()
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        told["num"] += 1
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                told["last"] = json.loads(response.read())
        except (OSError, ValueError) as error:
            told["failures"].append(f"request {told['num']}: {type(error).__name__}: {error}")
        told["slowest_s"] = max(told["slowest_s"], time.monotonic() - start)
        time.sleep(0.05)


def main() -> None:
    records, stop, result, *urls = sys.argv[1:]
    body = Path(records).read_bytes()
    told: dict[str, dict[str, Any]] = {url: {"num": 0, "failures": [], "slowest_s": 0.0, "last": None} for url in urls}
    threads = [threading.Thread(target=ask, args=(url, body, Path(stop), told[url])) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path(result).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
