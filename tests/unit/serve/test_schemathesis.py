"""Schemathesis at the listener: it asks what the OpenAPI document allows, and what it does not, of all paths."""

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.serve.endpoint import Limits

from .conftest import Running

needs_schemathesis = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
"""Not those that want all that the document allows accepted, and all else refused: of CSV or tensors it cannot say enough, and
more is understood than it says."""
_HANG_S, _RUN_TIMEOUT_S = 30, 280


@pytest.fixture
def new_loop() -> Callable[[], Any]:
    return asyncio.new_event_loop


@pytest.mark.slow
@needs_schemathesis
@pytest.mark.parametrize("kind", ["mixed_package", "picture_package"])
def test_no_path_fails_hangs_or_answers_otherwise_than_the_document_says(
    listen: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    check(listen(request.getfixturevalue(kind), limits=Limits(max_rows=100)), tmp_path)


def check(running: Running, folder: Path) -> None:
    """Let schemathesis ask a listener what its document allows, and what it does not."""
    url = f"http://127.0.0.1:{running.port}/openapi.json"
    options = [
        "--request-timeout",
        str(_HANG_S),
        "--max-examples",
        "40",
        "--seed",
        "1",
        "--generation-database",
        "none",
    ]
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", ",".join(_CHECKS), *options]
    command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color", "--warnings", "off"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_RUN_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert {code for _, code in running.meter.calls} >= {200, 400}
    assert not any(code >= 500 for _, code in running.meter.calls)
    assert running.listener.buffered_bytes == 0
