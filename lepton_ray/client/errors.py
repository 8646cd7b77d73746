"""What a call can end with besides an answer."""

from typing import Any

from lepton_ray.core.errors import LeptonError


class CallError(LeptonError):
    """Base of them; ``status`` is that of the last answer, if there was one, ``request_id`` what the server's logs have too."""

    def __init__(self, message: str, status: int | None, request_id: str) -> None:
        self.message = message
        self.status = status
        self.request_id = request_id
        super().__init__(f"{message} (status {status or 'none'}, request {request_id})")

    def __reduce__(self) -> tuple[type["CallError"], tuple[Any, ...]]:
        """Rebuild from the parts: the joined text is no argument of ``__init__``."""
        return type(self), (self.message, self.status, self.request_id)


class AnswerError(CallError):
    """The server refuses the request, or fails at it; sent again it would end the same."""


class UnavailableError(CallError):
    """No address has answered in as many tries as are allowed, or one that must not be trusted."""


class DeadlineError(CallError):
    """No answer within the call's time."""
