"""The configuration: one frozen object, read whole at start and at reload. `crossover.toml` explains every key.

Environment variables override the file: `CROSSOVER_CACHE__URL=redis://...` sets `url` in `[cache]`.
`router.config_file` reads and checks; this module only says what there is, with units, defaults and bounds.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from providers import platforms
from providers.settings import DECISIONS, Effort, Kind, Settings, Structured, Via

Name = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.\-]{1,64}$", description="1 to 64 letters, digits and signs of _ . -")
]
Milliseconds = Annotated[int, Meta(ge=1, le=600_000)]
Seconds = Annotated[float, Meta(ge=0.0, le=86_400.0)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Usd = Annotated[float, Meta(ge=0.0, le=1_000_000.0)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", description="a SHA-256: 64 of the digits 0-9 and a-f")]
Text = Annotated[str, Meta(min_length=1)]
Escalate = Literal["auto", "never"]
OverLength = Literal["escalate", "truncate", "reject"]

#: Without configured keys there is one tenant, and only this machine can connect. It is the command line's, too.
LOCAL_TENANT = "local"
#: What a day may cost until somebody sets `budget.usd_per_day`.
DEFAULT_BUDGET_USD = 1.0


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    deadline_ms: Milliseconds = 10_000
    local_deadline_ms: Milliseconds = 1_000
    body_deadline_ms: Milliseconds = 5_000
    max_body_bytes: Annotated[int, Meta(ge=1_024, le=64 * 1024 * 1024)] = 1024 * 1024
    max_concurrent: Annotated[int, Meta(ge=1, le=100_000)] = 512
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    leave_s: Annotated[int, Meta(ge=0, le=600)] = 0
    drain_s: Annotated[int, Meta(ge=0, le=600)] = 10


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`sha256` is the hash of the key, in hex; the key itself is nowhere in the config."""

    tenant: Name
    sha256: Sha256
    escalate: Escalate = "auto"


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a tenant, whatever key it comes with."""

    rate: Annotated[float, Meta(ge=0.001, le=1_000_000.0)]  # requests a second
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class Auth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[Key, ...] = ()
    limits: dict[Name, Limit] = {}
    admin: tuple[Sha256, ...] = ()


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: Annotated[
        str,
        Meta(
            pattern=r"^(embedded|off|(redis|rediss|unix)://.+)$",
            description='"embedded", "off", "redis://localhost:6379/0", "rediss://…" or "unix:///run/redis.sock"',
        ),
    ] = "embedded"
    ttl_s: Annotated[int, Meta(ge=1, le=366 * 86_400)] = 7 * 86_400
    lookup_ms: Milliseconds = 10
    memory_mb: Annotated[int, Meta(ge=4, le=1_000_000)] = 128
    memory_bytes: Annotated[int, Meta(ge=0, le=64 * 1024**3)] = 64 * 1024**2
    store_preview: bool = False
    secret: str = ""


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Text = "all-MiniLM-L6-v2"
    revision: Text | None = None
    engine: Literal["auto", "onnx", "torch"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "int8", "fp8"] = "auto"
    device: Annotated[
        str, Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda or cuda:N")
    ] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    optimize: Literal["latency", "throughput"] = "latency"
    queue_tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    max_tokens: Annotated[int, Meta(ge=8, le=65_536)] | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: Probability = 0.8
    labels: dict[str, Probability] = {}
    escalate: Escalate = "auto"


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: Annotated[str, Meta(min_length=1, max_length=4_000)]
    label: Text


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    head: Text | None = None
    model: Text | None = None
    revision: Text | None = None
    over_length: OverLength | None = None
    instructions: Annotated[str, Meta(max_length=4_000)] = ""
    descriptions: dict[str, str] = {}
    examples: Annotated[tuple[Example, ...], Meta(max_length=64)] = ()
    policy: Policy = Policy()


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Dollars per million tokens; `since`: the first day (UTC) that they hold."""

    input: Usd
    output: Usd
    cache_read: Usd | None = None
    cache_write: Usd | None = None
    batch_input: Usd | None = None
    batch_output: Usd | None = None
    since: date | None = None
    source: Text = "the config"


class Price(Rates, frozen=True, forbid_unknown_fields=True):
    """For a model that the price table lacks or that you pay another price for; `earlier`: what it was before."""

    earlier: tuple[Rates, ...] = ()


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Kind
    model: Annotated[str, Meta(min_length=1, max_length=200)]
    api_key_env: (
        Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the name of an environment variable")]
        | None
    ) = None
    base_url: Annotated[str, Meta(pattern=r"^https?://.+", description='a URL like "https://HOST/v1"')] | None = None
    via: Via | None = None
    region: Text | None = None
    project: Text | None = None
    api_version: Text | None = None
    effort: Effort | None = None
    thinking_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    structured: Structured = "auto"
    max_in_flight: Annotated[int, Meta(ge=1, le=10_000)] = 16
    price: Price | None = None
    usd_per_hour: Usd | None = None

    @property
    def priced_as(self) -> str:
        """The model's name in the price table: an endpoint with prices of its own is a model of its own."""
        return self.model.removesuffix(DECISIONS) + DECISIONS if self.kind == "openai-decisions" else self.model

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key; empty: only a cloud's own credentials."""
        return self.api_key_env or platforms.key_variable(self.kind, self.via)

    @property
    def settings(self) -> Settings:
        """What the adapters know of all this."""
        return msgspec.convert(self, Settings, from_attributes=True)


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    usd_per_day: Usd | None = None
    tasks: dict[Name, Usd] = {}
    tenants: dict[Name, Usd] = {}
    when_out: Literal["local", "refuse"] = "local"


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Text | None = None
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 90


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    usd_per_hour: Usd
    requests_per_second: Annotated[float, Meta(gt=0.0)] | None = None
    billing: Literal["always_on", "autoscaled"] = "always_on"
    min_replicas: Annotated[int, Meta(ge=0, le=1_000)] | None = None
    cold_start_s: Seconds | None = None
    idle_s: Seconds | None = None
    source: Text = "from the config"
    this_machine: bool = False


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: Server = Server()
    auth: Auth = Auth()
    cache: Cache = Cache()
    model: Model = Model()
    tasks: dict[Name, Task] = {}
    providers: dict[Name, Provider] = {}
    budget: Budget = Budget()
    ledger: Ledger = Ledger()
    hardware: dict[Name, Hardware] = {}

    @property
    def tenants(self) -> list[str]:
        """Who may spend something: the keys' tenants; without keys only one."""
        return list(dict.fromkeys([*(key.tenant for key in self.auth.keys), *self.budget.tenants])) or [LOCAL_TENANT]

    @property
    def budget_usd(self) -> float:
        """Dollars a UTC day."""
        return DEFAULT_BUDGET_USD if self.budget.usd_per_day is None else self.budget.usd_per_day
