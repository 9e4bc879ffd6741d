"""What the simulator's batches look like on the wire, damaged where that is ordered."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

ITEM_FAULTS = {
    "errored": "the provider says that it failed",
    "expired": "the provider says that its day was over",
    "missing": "it is answered and billed, and its line is missing",
    "twice": "its line comes twice",
    "unreadable": "its line is cut in the middle",
    "unknown": "its line has an id that nobody asked for",
    "long": "its line has three megabytes",
}


class Batch(msgspec.Struct):
    id: str
    requests: list[tuple[str, str, Any]]  # custom id, path, body
    made: float  # unix time
    file: str = ""
    metadata: dict[str, str] | None = None
    fate: str = "completed"  # or "failed", "expired"
    lines: list[tuple[str, bytes]] | None = None  # (what became of it, its line) once ended


def message_batch(batch: Batch) -> dict[str, Any]:
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    for state, _ in batch.lines or ():
        counts[state] += 1
    if batch.lines is None:
        counts["processing"] = len(batch.requests)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "in_progress" if batch.lines is None else "ended",
        "request_counts": counts,
        "created_at": datetime.fromtimestamp(batch.made, UTC).isoformat().replace("+00:00", "Z"),
        "ended_at": None,
        "results_url": None,
    }


def line(path: str, custom_id: str, state: str, reply: dict[str, Any]) -> bytes:
    line: dict[str, Any]
    if path == "/v1/messages":
        result: dict[str, Any] = {"type": state}
        if state == "succeeded":
            result["message"] = reply
        elif state == "errored":
            result["error"] = reply or error(400, "ordered")[1]
        line = {"custom_id": custom_id, "result": result}
    else:
        line = {"id": f"br_{custom_id}", "custom_id": custom_id, "response": None, "error": None}
        if state == "expired":
            line["error"] = {"code": "batch_expired", "message": "its day was over"}
        else:
            status = 200 if state == "succeeded" else 400
            line["response"] = {
                "status_code": status,
                "request_id": "req_simulated",
                "body": reply or error(400, "")[1],
            }
    return msgspec.json.encode(line)


def damaged(fault: str, line: bytes, custom_id: str) -> list[bytes]:
    match fault:
        case "missing":
            return []
        case "twice":
            return [line, line]
        case "unreadable":
            return [line[: len(line) // 2]]
        case "unknown":
            return [line.replace(f'"{custom_id}"'.encode(), b'"nobody-1"', 1)]
        case "long":
            return [line[:-1] + b" " * 3_000_000 + b"}"]
    return [line]


def error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    """In both formats at once."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"type": "error", "error": {"type": kind, "code": kind, "message": message, "param": None}}


def form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of multipart/form-data."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    fields = {}
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        assert name is not None
        fields[name[1].decode()] = content.removesuffix(b"\r\n")
    return fields
