"""A retraining job for an alert: a webhook of Alertmanager that runs a command, not too soon again and not too often.

What Alertmanager sends decides whether the command runs, never what it is.
"""

import hmac
import json
import logging
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lepton_ray.core.files import read_json, write_json

PATH = "/alerts"
_MAX_BODY_BYTES = 1 << 20
_RECEIVE_S = 10.0
_COMMAND_S = 600.0
_PERIOD_S = 7 * 86400.0
_FORGET_S = 2 * _PERIOD_S

_logger = logging.getLogger("lepton_ray.observe")


@dataclass(frozen=True)
class RetrainRule:
    """When an alert starts a job."""

    model: str
    """Label ``model`` that the alert must have."""
    alerts: tuple[str, ...]
    """Names of alerts, any of which starts it."""
    cooldown_s: float
    """From one start to the next, at least."""
    max_per_week: int
    """Starts within seven days."""

    def refuse(self, message: Any, starts: Sequence[float], now: float) -> str | None:
        """Return why a message of Alertmanager starts nothing, or None.

        Args:
            message: Its parsed body.
            starts: Unix times of earlier starts.
            now: Unix time.
        """
        alerts = message.get("alerts") if isinstance(message, dict) else None
        alerts = alerts if isinstance(alerts, list) else []
        if not any(self._is_meant(alert) for alert in alerts):
            return "no alert that is meant fires"
        starts = [start for start in starts if start <= now]  # others are of a clock that was set back
        if starts and now - max(starts) < self.cooldown_s:
            return f"the last start was {(now - max(starts)) / 3600:.1f} h ago"
        if sum(now - start < _PERIOD_S for start in starts) >= self.max_per_week:
            return f"there were {self.max_per_week} starts within a week"
        return None

    def _is_meant(self, alert: Any) -> bool:
        if not isinstance(alert, dict) or not isinstance(labels := alert.get("labels"), dict):
            return False
        is_named = labels.get("alertname") in self.alerts and labels.get("model") == self.model
        return is_named and alert.get("status") == "firing"


class Retrainer(ThreadingHTTPServer):
    """Listens on the loopback interface; takes one message after the other, and waits for no slow caller."""

    def __init__(self, port: int, token: str, rule: RetrainRule, command: Sequence[str], starts: Path) -> None:
        super().__init__(("127.0.0.1", port), _Answers)
        self._token = token.encode()
        self._rule = rule
        self._command = list(command)
        self._starts = starts
        self._one_at_a_time = threading.Lock()

    def is_known(self, authorization: str | None) -> bool:
        """Whether a caller has the token."""
        return hmac.compare_digest((authorization or "").encode(), b"Bearer " + self._token)

    def take(self, message: Any) -> dict[str, Any]:
        """Start the job if the rule lets it, and return what was done. A start counts also if its command fails."""
        with self._one_at_a_time:
            return self._take(message)

    def _take(self, message: Any) -> dict[str, Any]:
        starts = read_starts(self._starts)
        now = time.time()
        if reason := self._rule.refuse(message, starts, now):
            return {"started": False, "reason": reason}
        write_json(self._starts, [*(start for start in starts if now - start < _FORGET_S), now])
        try:
            done = subprocess.run(  # noqa: S603  the operator's own command; nothing of a message goes into it
                self._command, capture_output=True, text=True, errors="replace", timeout=_COMMAND_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _logger.error("the command could not be run: %s", error)
            return {"started": False, "reason": "the command could not be run; the log says why"}
        if done.returncode:
            _logger.error("the command failed with status %d: %s", done.returncode, (done.stdout + done.stderr)[-2000:])
            return {"started": False, "reason": f"the command failed with status {done.returncode}; the log says why"}
        _logger.warning("started: %s", done.stdout[-500:].strip())
        return {"started": True}


def read_starts(path: Path) -> list[float]:
    """Return the Unix times of earlier starts; none if there is no file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds something else.
    """
    starts = read_json(path) if path.is_file() else []
    if not isinstance(starts, list) or not all(isinstance(start, int | float) for start in starts):
        raise ValueError(f"{str(path)!r} is no list of Unix times")
    return starts


class _Answers(BaseHTTPRequestHandler):
    server: Retrainer
    timeout = _RECEIVE_S

    def do_POST(self) -> None:
        """Take a message."""
        length = self.headers.get("content-length", "")
        if not self.server.is_known(self.headers.get("authorization")):
            return self._answer(401, {"error": "a token is needed: Authorization: Bearer TOKEN"})
        if self.path != PATH:
            return self._answer(404, {"error": f"the path must be {PATH}"})
        if not (length.isascii() and length.isdigit()) or int(length) > _MAX_BODY_BYTES:
            return self._answer(413, {"error": f"the body must be at most {_MAX_BODY_BYTES} bytes"})
        try:
            message = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            return self._answer(400, {"error": "the body must be JSON, and not nested so deep"})
        try:
            return self._answer(200, self.server.take(message))
        except (OSError, ValueError) as error:  # the file of starts
            _logger.error("what was started before must be known, got: %s. Mend or remove the file", error)
            return self._answer(500, {"error": "what was started before is not known; the log says why"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log as the rest does."""
        _logger.info(format, *arguments)
