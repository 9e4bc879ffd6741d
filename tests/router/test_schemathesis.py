"""The OpenAPI document against the running service: no 5xx, every response as documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)


def no_server_error(ctx: Any, response: Any, case: Any) -> None:
    """Below 500, but for what the request itself asked for: a deadline, or `strict` where no frontier is configured."""
    if response.status_code < 500:
        return
    kind = response.json()["type"].rsplit(":", 1)[-1]
    in_a_hurry = any(name.lower() == "x-deadline-ms" for name in case.headers or {})
    strict = isinstance(case.body, dict) and case.body.get("strict") is True
    assert (kind == "deadline" and in_a_hurry) or (kind == "degraded" and strict), response.text


CHECKS = [
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
OPERATIONS = [
    "POST /v1/classify",
    "GET /health",
    "GET /ready",
    "GET /metrics",
    "GET /v1/tasks",
    "GET /v1/status",
    "GET /report",
    "GET /v1/cache/stats",
    "GET /v1/cache/entries",
    "POST /v1/cache/entry",
    "POST /v1/cache/purge",
]


@pytest.fixture(scope="module")
def operations(serve: Callable[..., Any], banking: str) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{serve(banking).url}/schema/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_no_operation_is_left_out(operations: dict[str, Any]) -> None:
    """The list above is the document's."""
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_response_conforms(operations: dict[str, Any], name: str, mode: GenerationMode) -> None:
    """Generated requests, valid ones and others."""
    operation = operations[name]
    if mode is GenerationMode.NEGATIVE and not any((operation.query, operation.headers, operation.body)):
        pytest.skip("takes no input: nothing about it can be wrong")

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()
