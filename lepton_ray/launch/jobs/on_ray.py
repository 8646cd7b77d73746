"""Jobs through Ray's Jobs API: sent, followed, listed, stopped. The only file that imports Ray's client of it."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError, LeptonError, SpecError
from lepton_ray.core.text import without_credentials
from lepton_ray.launch.jobs.package import Package
from lepton_ray.launch.jobs.request import JobRequest

_CONNECT_TIMEOUT_S = 10.0
_POLL_S = 0.5
_INTERRUPTED = 130  # what a local run exits with when it is told to stop
_KILLED = 128  # a shell adds the signal's number
_NAME = "lepton_ray.name"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Job:
    """What the cluster knows of a job."""

    id: str
    name: str
    """Of the run; empty for a job that was not submitted here."""
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_status: int | None
    """What the same run would have exited with on this machine; None while it runs."""
    started: datetime | None
    ended: datetime | None
    entrypoint: str
    message: str


class Jobs:
    """The jobs of one cluster.

    Every method raises EngineError when the cluster cannot be reached or refuses the token, LeptonError when there is no such job.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # it tells of each upload
        with self._explained():
            split = urlsplit(address)
            port = split.port or _DEFAULT_PORTS[split.scheme]
            socket.create_connection(
                (split.hostname, port), _CONNECT_TIMEOUT_S
            ).close()  # the client would wait for minutes
            self._client = JobSubmissionClient(address)

    def submit(self, request: JobRequest, package: Package) -> str:
        """Send the package, unless the cluster has it, and start the job; returns its id."""
        environment = {**request.runtime_env, "working_dir": str(package.path)}
        with self._explained():
            try:
                return str(
                    self._client.submit_job(
                        entrypoint=request.entrypoint, runtime_env=environment, metadata={_NAME: request.name}
                    )
                )
            except (TypeError, ValueError) as error:
                if isinstance(error, requests.RequestException):
                    raise
                raise SpecError(
                    [f"the runtime environment must be one that Ray takes, got: {error}"], "the job"
                ) from error

    def show(self, job: str) -> Job:
        """Return what is known of a job."""
        with self._explained(job):
            return _job(self._client.get_job_info(job))

    def history(self) -> list[Job]:
        """Return all submitted jobs that the cluster remembers, the newest first."""
        with self._explained():
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or datetime.min.replace(tzinfo=UTC), reverse=True)

    def logs(self, job: str) -> str:
        """Return what a job has written so far."""
        with self._explained(job):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> bool:
        """Tell a job to stop; returns whether it was running."""
        with self._explained(job):
            return bool(self._client.stop_job(job))

    def follow(self, job: str, tell: Callable[[str], None]) -> Job:
        """Tell what a job writes until it has ended, however often the connection breaks; returns how it ended."""
        told = 0
        while True:
            found = self.show(job)
            if found.exit_status is not None:
                try:
                    tell(self.logs(job)[told:])
                except EngineError as error:  # how it ended is known, though its node may be gone
                    tell(f"\nThe rest of the log cannot be had: {error}\n")
                return found
            told = asyncio.run(self._tail(job, tell, told))

    async def _tail(self, job: str, tell: Callable[[str], None], told: int) -> int:
        """Tell what comes after the first ``told`` characters; returns how many there are."""
        seen = 0
        # When the connection breaks, or the job has gone, what is known of the job says whether to go on.
        with contextlib.suppress(RuntimeError, aiohttp.ClientError):
            async for text in self._client.tail_job_logs(job):
                if text and seen + len(text) > told:
                    tell(text[max(0, told - seen) :])
                seen += len(text or "")
        await asyncio.sleep(_POLL_S)
        return max(seen, told)

    @contextlib.contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        where = without_credentials(self.address)
        try:
            yield
        except AuthenticationError as error:
            raise _refused(where) from error
        except RuntimeError as error:
            if job is not None and "status code 404" in str(error):
                raise LeptonError(
                    f"the job must be one that {where} knows, got {job!r}. See: lepton-ray jobs list --address {where}"
                ) from error
            raise EngineError(f"the Jobs API at {where} must answer, got: {str(error).splitlines()[0]}") from error
        except OSError as error:  # requests' errors too
            reason = without_credentials(str(error)).splitlines()[0]
            raise EngineError(
                f"Ray's dashboard must be reachable at {where}, got: {reason}. Check --address, which is that of the dashboard, and "
                "whether it listens on that interface or needs a tunnel: kubectl port-forward, ray dashboard, ssh -L",
                retryable=True,
            ) from error


def _refused(where: str) -> EngineError:
    has_token = settings.ray_token() is not None
    rule = "must get its token" if not has_token else "must get the right token"
    got = "none" if not has_token else "another one (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
    return EngineError(
        f"the cluster at {where} {rule}, got {got}. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it"
    )


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id or details.job_id or "",
        name=(details.metadata or {}).get(_NAME, ""),
        status=str(details.status.value),
        exit_status=_exit_status(str(details.status.value), details.driver_exit_code),
        started=_time(details.start_time),
        ended=_time(details.end_time),
        entrypoint=details.entrypoint,
        message=details.message or "",
    )


def _exit_status(status: str, code: int | None) -> int | None:
    match status, code:
        case "SUCCEEDED", _:
            return 0
        case "STOPPED", _:
            return _INTERRUPTED
        case "FAILED", None:  # it never ran: its environment could not be made, or its node was lost
            return 1
        case "FAILED", int():
            return code if code >= 0 else _KILLED - code
        case _:
            return None


def _time(ms: int | None) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None
