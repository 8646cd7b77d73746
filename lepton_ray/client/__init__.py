"""A client of endpoints, for applications: ``Client`` waits, ``AsyncClient`` is awaited; both send as ``sending`` says."""

from lepton_ray.core.extras import explain

try:
    from lepton_ray.client.answers import Job, Outputs, Predictions
    from lepton_ray.client.calls import AsyncClient
    from lepton_ray.client.errors import AnswerError, CallError, DeadlineError, UnavailableError
    from lepton_ray.client.sending import Options
    from lepton_ray.client.waiting import Client
except ModuleNotFoundError as error:
    if explained := explain(error, "the client"):
        raise explained from error
    raise

__all__ = [
    "AnswerError",
    "AsyncClient",
    "CallError",
    "Client",
    "DeadlineError",
    "Job",
    "Options",
    "Outputs",
    "Predictions",
    "UnavailableError",
]
