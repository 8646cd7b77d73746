"""A client of endpoints, for applications: ``Client`` waits, ``AsyncClient`` is awaited; both send as ``sending`` says."""

from lepton_ray.client.calls import AsyncClient, Job
from lepton_ray.client.errors import AnswerError, CallError, DeadlineError, UnavailableError
from lepton_ray.client.sending import Options
from lepton_ray.client.waiting import Client

__all__ = ["AnswerError", "AsyncClient", "CallError", "Client", "DeadlineError", "Job", "Options", "UnavailableError"]
