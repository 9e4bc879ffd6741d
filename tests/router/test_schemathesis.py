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


CHECKS = [no_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = ["/v1/classify", "/health", "/ready", "/metrics", "/v1/tasks", "/v1/status", "/report"]


@pytest.fixture(scope="module")
def operations(serve: Callable[..., Any], banking: str) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{serve(banking).url}/schema/openapi.json")
    return {result.ok().path: result.ok() for result in schema.get_all_operations()}


def test_no_operation_is_left_out(operations: dict[str, Any]) -> None:
    """The list below is the document's."""
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", OPERATIONS)
def test_every_response_conforms(operations: dict[str, Any], path: str, mode: GenerationMode) -> None:
    """Generated requests, valid ones and others."""

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operations[path].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    if mode is GenerationMode.NEGATIVE and path not in ("/v1/classify", "/report"):
        pytest.skip("takes no input: nothing about it can be wrong")
    check()
