"""The OpenAPI document: Litestar's own, plus the one operation that an ASGI handler can't describe by itself."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from router.problems import TABLE
from router.types import Answer, ClassifyRequest, ClassifyResponse, Failed, Problem

#: Statuses that `POST /v1/classify` answers with beside 200.
PROBLEM_STATUSES = sorted({status for status, _ in TABLE.values()})


class DocumentWithClassify(JsonRenderPlugin):
    """Serves /schema/openapi.json."""

    def __init__(self) -> None:
        super().__init__(path=["/openapi.json", "/"])
        self._rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002
        if self._rendered is None:
            self._rendered = msgspec.json.encode(with_classify(openapi_schema))
        return self._rendered


def with_classify(document: dict[str, Any]) -> dict[str, Any]:
    """A copy of `document` with the operation and its schemas."""
    _, schemas = msgspec.json.schema_components(
        [ClassifyRequest, Answer, Failed, Problem], ref_template="#/components/schemas/{name}"
    )
    reference = "#/components/schemas/"
    schemas["ClassifyResponse"] = {
        "type": "object",
        "required": list(ClassifyResponse.__struct_fields__),
        "properties": {
            "id": {"type": "string"},
            "task": {"type": "string"},
            "results": {
                "type": "array",
                "minItems": 1,
                "maxItems": 128,
                "items": {"anyOf": [{"$ref": f"{reference}Answer"}, {"$ref": f"{reference}Failed"}]},
            },
        },
    }
    operation = {
        "operationId": "Classify",
        "summary": "Classify one text, or up to 128",
        "description": "200 if any input succeeded; each entry of `results` is an answer or an error. Where a budget "
        "is out, an uncertain text gets the local label, marked `degraded: budget`; or, as the service is configured, "
        "the error `degraded` (503; if all inputs get it, with Retry-After until midnight UTC).",
        "tags": ["classify"],
        "parameters": [
            _header("X-Deadline-Ms", "Milliseconds to answer in; only lowers the configured deadline.", "integer"),
            _header("Cache-Control", "`no-cache`: compute afresh; `no-store`: and keep nothing.", "string"),
            _header(
                "X-Request-Id", "Sent back if it matches [A-Za-z0-9._-]{1,64}; else the server's own id.", "string"
            ),
        ],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"{reference}ClassifyRequest"},
                    "example": {"task": "banking", "input": "my card still hasn't arrived"},
                }
            },
        },
        "responses": {
            "200": {
                "description": "An answer or an error per input",
                "content": {"application/json": {"schema": {"$ref": f"{reference}ClassifyResponse"}}},
            },
            **{str(status): _problem(status) for status in PROBLEM_STATUSES},
        },
    }
    components = document.get("components", {})
    return {
        **document,
        "paths": {**document.get("paths", {}), "/v1/classify": {"post": operation}},
        "components": {
            **components,
            "schemas": {**components.get("schemas", {}), **schemas},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _problem(status: int) -> dict[str, Any]:
    answer = {
        "description": _titles(status),
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in (429, 503):
        seconds = {"type": "integer", "minimum": 1}
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "required": True, "schema": seconds}}
    return answer


def _header(name: str, description: str, kind: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": kind}}


def _titles(status: int) -> str:
    return "; ".join(title for code, title in TABLE.values() if code == status)
