"""The simulator's batch endpoints: Anthropic's Message Batches, and OpenAI's files and batches.

    POST /_sim/batches {"delay_s": 5, "finish": true, "items": [...], "batches": [...]}   all are optional
    GET  /_sim/batches                                                                    how many there are

A batch ends `delay_s` after it was made (null: when it is told to finish). Its requests are answered as single calls
are, with the same faults, and billed as batched. Results come in another order than the requests. `items` orders what
becomes of the next requests, in the order of submission (`batch_wire.ITEM_FAULTS`); `batches` what becomes of
the next batches: "failed", "expired".
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from providers.simulator import batch_wire as wire
from providers.simulator.batch_wire import Batch

if TYPE_CHECKING:
    from providers.simulator.server import Simulator

_LIMITS = {"anthropic": (100_000, 256 * 1024 * 1024), "openai": (50_000, 200 * 1024 * 1024)}
_DELAY_S = 0.0

Reply = tuple[int, Any]


class _Orders(msgspec.Struct, forbid_unknown_fields=True):
    delay_s: float | msgspec.UnsetType | None = msgspec.UNSET
    finish: bool = False
    items: list[str] = []
    batches: list[str] = []


class Batches:
    """`at(point)` is awaited at "upload", "create", "created" (made, not yet told), "status", "list" and "results": a
    test can hold a caller there."""

    def __init__(self, sim: Simulator) -> None:
        self.made: list[Batch] = []
        self.files: dict[str, bytes] = {}
        self.delay_s: float | None = _DELAY_S
        self.fail_next: deque[int] = deque()  # statuses for the next calls of any of the endpoints; 0 lets one through
        self.at: Callable[[str], Awaitable[None]] = _nothing
        self._sim = sim
        self._items: deque[str] = deque()
        self._fates: deque[str] = deque()
        self._numbers = itertools.count(1)
        self._random = random.Random(0)

    def order(self, items: Sequence[str] = (), batches: Sequence[str] = ()) -> None:
        """Raises `ValueError`."""
        if unknown := {*items} - {*wire.ITEM_FAULTS, "ok"} | {*batches} - {"ok", "failed", "expired"}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(wire.ITEM_FAULTS)}")
        self._items.extend(items)
        self._fates.extend(batches)

    def finish(self) -> None:
        """All that run."""
        for batch in self.made:
            if batch.lines is None:
                self._end(batch)

    async def handle(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Reply | None:
        """(status, body); None for a path that is none of these."""
        if path == "/_sim/batches":
            return self._control(method, body)
        anthropic = re.fullmatch(r"/v1/messages/batches(?:/([^/]+))?(?:/(results|cancel))?", path)
        openai = re.fullmatch(r"/v1/(files|batches)(?:/([^/]+))?(?:/(content|cancel))?", path)
        if not anthropic and not openai:
            return None
        if "authorization" not in headers and "x-api-key" not in headers:
            return wire.error(401, "the simulator wants a key; any will do")
        if self.fail_next and (status := self.fail_next.popleft()):
            return wire.error(status, "ordered from the simulator")
        given = {name: values[-1] for name, values in parse_qs(query).items()}
        try:
            if anthropic:
                return await self._anthropic(method, anthropic[1], anthropic[2], given, body)
            assert openai is not None
            if openai[1] == "files":
                return await self._files(method, openai[2], openai[3], headers, body)
            return await self._openai(method, openai[2], given, body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return wire.error(400, f"the simulator can't read this request: {error!r}")

    # --- Anthropic

    async def _anthropic(
        self, method: str, batch_id: str | None, part: str | None, given: dict[str, str], body: bytes
    ) -> Reply:
        if method == "POST" and batch_id is None:
            requests = [(r["custom_id"], "/v1/messages", r["params"]) for r in msgspec.json.decode(body)["requests"]]
            for custom_id, _, _ in requests:
                if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", custom_id):
                    raise ValueError(custom_id)
            batch = await self._make("msgbatch", "anthropic", requests, len(body))
            return 200, wire.message_batch(batch)
        if batch_id is None:
            await self.at("list")
            page, more = self._page(given.get("after_id"), int(given.get("limit", 20)), "msgbatch")
            ids: list[str | None] = [batch.id for batch in page] or [None]
            listed = [wire.message_batch(batch) for batch in page]
            return 200, {"data": listed, "has_more": more, "first_id": ids[0], "last_id": ids[-1]}
        batch = self._batch(batch_id)
        if part != "results":
            await self.at("status")
            return 200, wire.message_batch(self._now(batch))
        await self.at("results")
        if batch.lines is None:
            return wire.error(404, "this batch has not ended")
        return 200, b"".join(line + b"\n" for _, line in batch.lines)

    # --- OpenAI

    async def _files(
        self, method: str, file_id: str | None, part: str | None, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        if method == "POST" and file_id is None:
            await self.at("upload")
            form = wire.form(headers["content-type"], body)
            if form["purpose"] != b"batch":
                raise ValueError("purpose")
            file_id = f"file-{next(self._numbers):06d}"
            self.files[file_id] = form["file"]
            return 200, {"id": file_id, "object": "file", "bytes": len(form["file"]), "purpose": "batch"}
        if part != "content" or file_id not in self.files:
            return wire.error(404, "no such file")
        await self.at("results")
        return 200, self.files[file_id]

    async def _openai(self, method: str, batch_id: str | None, given: dict[str, str], body: bytes) -> Reply:
        if method == "POST" and batch_id is None:
            asked = msgspec.json.decode(body)
            file = self.files[asked["input_file_id"]]
            requests = []
            for line in file.splitlines():
                request = msgspec.json.decode(line)
                if (request["method"], request["url"]) != ("POST", asked["endpoint"]):
                    raise ValueError(request["url"])
                requests.append((request["custom_id"], request["url"], request["body"]))
            batch = await self._make(
                "batch", "openai", requests, len(file), asked.get("metadata"), asked["input_file_id"]
            )
            return 200, self._openai_batch(batch)
        if batch_id is None:
            await self.at("list")
            page, more = self._page(given.get("after"), int(given.get("limit", 20)), "batch")
            return 200, {"object": "list", "data": [self._openai_batch(batch) for batch in page], "has_more": more}
        await self.at("status")
        return 200, self._openai_batch(self._now(self._batch(batch_id)))

    def _openai_batch(self, batch: Batch) -> dict[str, Any]:
        told: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.requests[0][1],
            "input_file_id": batch.file,
            "completion_window": "24h",
            "created_at": int(batch.made),
            "metadata": batch.metadata,
            "status": "in_progress",
            "request_counts": {"total": len(batch.requests), "completed": 0, "failed": 0},
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
        }
        if batch.fate == "failed":
            told["status"] = "failed"
            told["errors"] = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "ordered"}]}
        elif batch.lines is not None:
            good = [line for state, line in batch.lines if state == "succeeded"]
            bad = [line for state, line in batch.lines if state != "succeeded"]
            told["status"] = batch.fate
            told["request_counts"] |= {"completed": len(good), "failed": len(bad)}
            for name, found in (("output_file_id", good), ("error_file_id", bad)):
                if found:
                    told[name] = f"file-{name}-{batch.id}"
                    self.files[told[name]] = b"".join(line + b"\n" for line in found)
        return told

    # --- both

    async def _make(
        self,
        prefix: str,
        style: str,
        requests: list[tuple[str, str, Any]],
        size: int,
        metadata: dict[str, str] | None = None,
        file: str = "",
    ) -> Batch:
        await self.at("create")
        most, largest = _LIMITS[style]
        ids = {custom_id for custom_id, _, _ in requests}
        if not 1 <= len(requests) <= most or size > largest or len(ids) < len(requests):
            raise ValueError(f"{len(requests)} requests, {size} bytes, {len(ids)} different ids")
        fate = self._fates.popleft() if self._fates else "ok"
        batch = Batch(f"{prefix}_sim_{next(self._numbers):06d}", requests, time.time(), file, metadata)
        batch.fate = "completed" if fate == "ok" else fate
        self.made.append(batch)
        await self.at("created")
        return batch

    def _batch(self, batch_id: str) -> Batch:
        return {batch.id: batch for batch in self.made}[batch_id]

    def _now(self, batch: Batch) -> Batch:
        due = self.delay_s is not None and time.time() >= batch.made + self.delay_s
        if batch.lines is None and due:
            self._end(batch)
        return batch

    def _end(self, batch: Batch) -> None:
        batch.lines = []
        for custom_id, path, body in batch.requests if batch.fate != "failed" else ():
            fault = self._items.popleft() if self._items else "ok"
            if batch.fate == "expired" or fault in ("errored", "expired"):
                state = "expired" if batch.fate == "expired" else fault
                batch.lines.append((state, wire.line(path, custom_id, state, {})))
                continue
            status, reply = self._sim.answered(path, body, batch=True)
            state = "succeeded" if status == 200 else "errored"
            line = wire.line(path, custom_id, state, reply)
            batch.lines += [(state, changed) for changed in wire.damaged(fault, line, custom_id)]
        self._random.shuffle(batch.lines)

    def _page(self, after: str | None, limit: int, prefix: str) -> tuple[list[Batch], bool]:
        """The newest first."""
        found = [batch for batch in reversed(self.made) if batch.id.startswith(f"{prefix}_")]
        if after is not None:
            found = found[[batch.id for batch in found].index(after) + 1 :]
        return [self._now(batch) for batch in found[:limit]], len(found) > limit

    def _control(self, method: str, body: bytes) -> Reply:
        if method == "POST":
            try:
                orders = msgspec.json.decode(body, type=_Orders)
                self.order(orders.items, orders.batches)
            except ValueError as error:
                return 400, {"error": f'send {{"delay_s": 5, "finish": true, "items": ["errored"]}}: {error}'}
            if orders.delay_s is not msgspec.UNSET:
                self.delay_s = orders.delay_s
            if orders.finish:
                self.finish()
        running = sum(batch.lines is None for batch in self.made)
        return 200, {"simulated": True, "batches": len(self.made), "running": running}


async def _nothing(_point: str) -> None:
    pass
