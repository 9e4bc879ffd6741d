"""Every error a caller can get, in one table (RFC 9457). Types are stable; load never makes a 500."""

from __future__ import annotations

from router.types import Problem

URN = "urn:crossover:problem:"

#: type -> (status, title)
TABLE: dict[str, tuple[int, str]] = {
    "bad-http": (400, "The request can not be parsed"),
    "malformed": (400, "The body is not valid JSON"),
    "unauthorized": (401, "A valid API key is required"),
    "not-found": (404, "There is nothing here"),
    "unknown-task": (404, "No such task"),
    "method-not-allowed": (405, "Method not allowed"),
    "slow-head": (408, "The request took too long to arrive"),
    "slow-body": (408, "The body took too long to arrive"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "Only uncompressed application/json is read"),
    "invalid": (422, "The request does not fit the schema"),
    "empty": (422, "The text is empty"),
    "over-length": (422, "The text is longer than the model reads"),
    "head-too-large": (431, "The request's head is too large"),
    "rate": (429, "You are over your rate"),
    "overloaded": (429, "Too many requests at once"),
    "cache-unavailable": (503, "The cache can not be looked into"),
    "degraded": (503, "No frontier answer can be had"),
    "model-failed": (503, "The local model failed"),
    "warming": (503, "The model is being loaded"),
    "draining": (503, "The service is shutting down"),
    "deadline": (504, "The deadline passed"),
    "internal": (500, "Something is wrong with the service"),
}


class ProblemError(Exception):
    """A problem on its way to the caller; fails the whole request when it is raised outside one input."""

    def __init__(self, kind: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        return TABLE[self.kind][0]

    def problem(self) -> Problem:
        status, title = TABLE[self.kind]
        return Problem(URN + self.kind, title, status, str(self))
