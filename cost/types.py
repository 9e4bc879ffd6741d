"""The nouns of the books. Money is integer nano-USD everywhere; durations are integer microseconds."""

from __future__ import annotations

from typing import Literal

import msgspec

NANO_PER_USD = 1_000_000_000

Source = Literal["cache", "local", "frontier", "error"]
#: An attempt is `reserved` before the call is made. `settled`: usage is known (or bounded, `Usage.estimated`).
#: `unbilled`: the call failed in a way that providers do not charge for. `uncertain`: nobody knows (a crash, a timeout
#: after sending); it counts with its upper bound.
AttemptState = Literal["reserved", "settled", "unbilled", "uncertain"]


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one provider call, in disjoint buckets: their sum is what was billed, nothing is counted twice."""

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0  # thinking tokens included: providers bill them as output
    reasoning: int = 0  # of the output: what was thought before the answer. Told, not priced again
    estimated: bool = False  # the provider gave none, or nonsense: an upper bound of ours stands here


class InputRow(msgspec.Struct, frozen=True):
    """One input of one request, as it was answered. Holds no text, only a keyed digest of it."""

    request_id: str
    index: int
    at_us: int  # unix time, microseconds
    tenant: str
    task: str
    source: Source
    model: str = ""  # "banking@3f2a..." or the frontier model that answered
    label: str | None = None
    confidence: float | None = None
    answered_by: Literal["local", "frontier"] | None = None  # for a hit: who answered first
    cache_tier: str | None = None
    degraded: str | None = None
    error: str | None = None  # last part of the problem's URN
    truncated: bool = False
    coalesced: bool = False
    tokens: int = 0  # by the local tokenizer, 0 if it was not counted
    text_digest: bytes = b""
    cost_nano: int = 0  # what this input cost: local_nano + the frontier attempts made for it
    local_nano: int = 0  # marginal cost of the local model's device time
    saved_nano: int = 0  # for a hit on a frontier answer: what that answer had cost
    total_us: int = 0
    cache_us: int = 0
    queue_us: int = 0
    local_us: int = 0
    frontier_us: int = 0


class Limits(msgspec.Struct, frozen=True):
    """What a UTC day may cost, over all processes of the ledger: nano-USD, None for no limit."""

    day: int | None = None  # everything
    task: int | None = None  # this call's task
    tenant: int | None = None  # this call's tenant


class Budget(msgspec.Struct, frozen=True):
    """What a UTC day may cost at most: everything, each task, each tenant. nano-USD; None or absent: no limit."""

    day: int | None = None
    tasks: dict[str, int] = {}
    tenants: dict[str, int] = {}

    def limits(self, task: str, tenant: str) -> Limits:
        """Those that a call falls under."""
        return Limits(self.day, self.tasks.get(task), self.tenants.get(tenant))


class Spent(msgspec.Struct, frozen=True):
    """What a UTC day has cost so far, money set aside included: everything, by task, by tenant. nano-USD."""

    day: int = 0
    tasks: dict[str, int] = {}
    tenants: dict[str, int] = {}


class Intent(msgspec.Struct, frozen=True):
    """A paid call about to be made."""

    request_id: str
    index: int
    at_us: int
    tenant: str
    task: str
    provider: str  # name in the config
    model: str
    estimate_nano: int  # upper bound of what it can cost
    tokens: int = 0  # of the text, by the local tokenizer (0: not counted)
    limits: Limits = Limits()
    batch: bool = False  # through the provider's batch API, at its batch price


class Outcome(msgspec.Struct, frozen=True):
    """How a paid call ended."""

    state: Literal["settled", "unbilled", "uncertain"]
    model: str = ""  # the model that answered; "simulated/..." is priced as "..." and marked
    usage: Usage | None = None
    cost_nano: int = 0
    price_version: str = ""
    error: str | None = None  # class name of the provider error
    latency_us: int = 0
    reply_id: str = ""  # the provider's own name for its reply, to find it in the provider's books


class Machine(msgspec.Struct, frozen=True):
    """What the local model runs on. `local_us` of the rows is the time of one of its threads."""

    threads: int  # engine threads, of all worker processes on this ledger together
    device: str  # "cpu", "cuda:0"
    cores: int
    engine: str  # "onnx-int8", "torch-bf16"
    usd_per_hour: float | None = None  # None: nobody said


class LedgerError(Exception):
    """Base of what the ledger raises."""


class LedgerUnwritable(LedgerError):
    """The books can't be written: no paid call may be made."""


class BudgetExhausted(LedgerError):
    """The reservation would exceed a budget of the day; nothing was reserved."""
