"""Cache hits beside an endpoint that does nothing: what a hit costs.

    python bench/hits.py [--quick]

500 texts, each of which the cache knows, at 64 connections (closed loop) and at one. The router runs as in production:
API key, ledger, metrics and request log are on. Its hits come from the process's own memory, or (`memory_bytes = 0`)
from Redis; a reply counts if it is a hit of that tier. Beside it: an empty native Litestar route and a raw ASGI echo
(bench/native_server.py), the router without its ledger (bench/unrecorded_server.py), and LiteLLM's proxy with an answer
in its cache. Load generator and servers share the cores, so CPU seconds of the server (Redis included) stand beside
rates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import harness
import litellm_proxy
import load
from harness import ROOT, Bar
from load import Reply
from rounds import (
    AUTH,
    TASK,
    Contestant,
    Round,
    Rounds,
    as_router,
    middle,
    paired,
    parked,
    read_texts,
    rounded,
    row,
    show,
    timed,
)

NAME = "hits"
MEMORY, REDIS, NATIVE, RAW = "hits from memory", "hits from Redis", "empty native Litestar route", "raw ASGI echo"
UNRECORDED, LITELLM = "hits from memory, no ledger", "LiteLLM's proxy, cached mock"
TEXTS = 500
MISSED = 0.001  # a lookup that takes longer than `lookup_ms` is a miss: so many are let pass
LITELLM_TEXTS = 100  # its in-memory cache holds 200 answers, and it has no setting for that in its documentation
UNRECORDED_SERVER = str(ROOT / "bench" / "unrecorded_server.py")
#: LiteLLM as its documentation has it: its in-memory cache on; the answer is a mock, so nothing leaves the machine.
LITELLM_CONFIG = """\
model_list:
  - model_name: mock
    litellm_params: {model: openai/mock, api_key: none, mock_response: card_arrival}
litellm_settings:
  cache: true
  cache_params: {type: local}
"""


class Entrant(NamedTuple):
    """Who is measured, and which of its replies count."""

    who: Contestant
    accept: Callable[[Reply], bool]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cache hits beside an endpoint that does nothing.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: one round of a second each.")
    quick = parser.parse_args().quick
    texts, origin = read_texts()
    with tempfile.TemporaryDirectory(prefix="crossover-bench-") as name:
        rounds, not_run = run(Path(name), texts[:TEXTS], *((1, 1.0, 0.5) if quick else (5, 4.0, 2.0)))
    rows = [row(who, n, seen, redis_cpu_ms=redis_ms(seen)) for (who, n), seen in sorted(rounds.items(), key=by_size)]
    show(rows)
    notes = [
        *ratio_notes(rounds),
        *generator_notes(rounds),
        f"{TEXTS} texts, all in the cache: {origin}; closed loop, from bench/load.py",
        *(["a smoke test: the figures mean nothing"] if quick else []),
    ]
    return harness.finish(NAME, bars=bars(rounds), rows=rows, not_run=not_run, notes=notes)


def run(
    folder: Path, texts: Sequence[str], count: int, crowd_s: float, alone_s: float
) -> tuple[Rounds, dict[str, str]]:
    """Interleaved rounds of `crowd_s` seconds at 64 connections and `alone_s` at one; who could not run, and why."""
    out = harness.console()
    out.print(f"{count} rounds; starting the servers")
    rounds: Rounds = {}
    not_run: dict[str, str] = {}
    with ExitStack() as stack:
        entrants = [
            start_router(stack, folder, MEMORY, texts, tier=b"memory"),
            start_router(stack, folder, REDIS, texts, tier=b"redis"),
            start_native(stack, folder, NATIVE, "litestar", texts),
            start_native(stack, folder, RAW, "raw", texts),
            start_router(stack, folder, UNRECORDED, texts, tier=b"memory", program=[UNRECORDED_SERVER]),
        ]
        try:
            entrants.append(start_litellm(stack, folder, texts))
        except (OSError, SystemExit) as error:
            not_run[LITELLM] = str(error)
        # The others do nothing when nobody asks; the routers' memory would be out of date after a stop.
        idle = [each.who for each in entrants if each.who.name == LITELLM]
        for number in range(count):
            for connections, seconds in ((64, crowd_s), (1, alone_s)):
                for each in entrants if number % 2 else reversed(entrants):
                    with parked(other for other in idle if other is not each.who):
                        seen = timed(each.who, connections, seconds, accept=each.accept)
                    rounds.setdefault((each.who.name, connections), []).append(seen)
            latest = {each.who.name: rounds[each.who.name, 64][-1] for each in entrants}
            told = ", ".join(f"{who} {seen.per_second:.0f}/s" for who, seen in latest.items())
            out.print(f"  round {number + 1} of {count}: {told}")
    return rounds, not_run


def start_router(
    stack: ExitStack, folder: Path, name: str, texts: Sequence[str], *, tier: bytes, program: Sequence[str] = ()
) -> Entrant:
    """A router that has answered each text once, with a Redis of its own."""
    memory = "" if tier == b"memory" else "memory_bytes = 0\n"
    config = f"[cache]\n{memory}\n{AUTH}\n{TASK}"
    place = folder / name.replace(" ", "-").replace(",", "")
    server = stack.enter_context(harness.router(place, config, **({"program": program} if program else {})))
    who = as_router(server, texts, name=name)
    load.send(who.url, who.requests, connections=8)
    return Entrant(who, lambda reply: is_hit(reply.body, tier))


def is_hit(body: bytes, tier: bytes) -> bool:
    return b'"source":"cache"' in body and b'"cache_tier":"' + tier + b'"' in body


def start_native(stack: ExitStack, folder: Path, name: str, kind: str, texts: Sequence[str]) -> Entrant:
    log = folder / f"native-{kind}.log"
    command = [sys.executable, str(ROOT / "bench" / "native_server.py"), kind]
    process = stack.enter_context(harness.child(command, log))
    server = harness.wait_for(process, log, r"listening on (http://\S+)", "/schema")
    wanted = b'"label":"' if kind == "litestar" else b'{"input": "'
    return Entrant(as_router(server, texts, name=name), lambda reply: wanted in reply.body)


def start_litellm(stack: ExitStack, folder: Path, texts: Sequence[str]) -> Entrant:
    """Raises `OSError` or `SystemExit`: not installed, or it does not start."""
    proxy = stack.enter_context(litellm_proxy.running(folder, LITELLM_CONFIG))
    server, url = proxy.server, f"{proxy.server.url}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {proxy.key}"}
    requests = [
        load.request(url, {"model": "mock", "messages": [{"role": "user", "content": text}]}, headers)
        for text in texts[:LITELLM_TEXTS]
    ]
    replies = load.send(url, requests, connections=8)
    if refused := [reply for reply in replies if reply.status != 200]:
        raise OSError(f"LiteLLM answered {refused[0].status}: {refused[0].body[:200]!r}")
    ids = {answer_id(reply.body) for reply in replies}
    return Entrant(Contestant(LITELLM, server, url, requests), lambda reply: answer_id(reply.body) in ids)


def answer_id(body: bytes) -> bytes:
    """Of LiteLLM's answer; one from its cache has that of the first."""
    return body.partition(b'"id":"')[2].partition(b'"')[0]


def by_size(item: tuple[tuple[str, int], Any]) -> int:
    return item[0][1]


def redis_ms(rounds: Sequence[Round]) -> float | None:
    """Milliseconds of redis-server's CPU an answer, a part of the server's."""
    return rounded(statistics.median(seen.redis_seconds * 1000 / max(1, seen.load.served) for seen in rounds))


def compared(rounds: Rounds, one: str, other: str, compare: Callable[[Round, Round], float]) -> list[float]:
    """Of each round at 64 connections; empty where somebody answered nothing."""
    mine, theirs = rounds.get((one, 64), []), rounds.get((other, 64), [])
    return paired(mine, theirs, compare) if all(seen.load.answers for seen in (*mine, *theirs)) else []


def rate(one: Round, other: Round) -> float:
    return one.per_second / other.per_second


def thrift(one: Round, other: Round) -> float:
    """How many times `one`'s CPU time `other` uses for an answer."""
    return other.cpu_ms / one.cpu_ms


def bars(rounds: Rounds) -> list[Bar]:
    made = []
    for name, target in ((MEMORY, 1.2), (REDIS, 0.9)):
        for what, compare in (("answers/s over", rate), ("answers per CPU second over", thrift)):
            ratio = middle(compared(rounds, name, NATIVE, compare))
            holds = None if ratio is None else ratio >= target
            made.append(Bar(f"{name}: {what} an empty native route's", ratio, f">= {target:g}", "x", holds))
    for name in (MEMORY, REDIS):
        p50 = middle([seen.load.p50_ms for seen in rounds.get((name, 1), [])])
        made.append(Bar(f"{name}: p50 alone", p50, "<= 1", "ms", None if p50 is None else p50 <= 1))
    loads = [seen.load for (name, _), all_ in rounds.items() if name in (MEMORY, REDIS) for seen in all_]
    failures = sum(seen.failures for seen in loads)
    share = failures / max(1, failures + sum(seen.served for seen in loads))
    made.append(Bar("requests without a hit of the tier that was asked", share, f"<= {MISSED:g}", "", share <= MISSED))
    return made


def ratio_notes(rounds: Rounds) -> list[str]:
    """CPU of a hit, and the spread behind the bars."""
    notes = []
    for name in (MEMORY, UNRECORDED, REDIS):
        seen = rounds[name, 64]
        cpu = [one.cpu_ms * 1000 for one in seen]
        redis = (redis_ms(seen) or 0) * 1000
        notes.append(
            f"{name}: {statistics.median(cpu):.0f} CPU us an answer ({min(cpu):.0f} - {max(cpu):.0f}), "
            f"of which redis-server {redis:.0f}"
        )
        for what, compare in (("answers/s", rate), ("answers per CPU second", thrift)):
            for other in (NATIVE, RAW, LITELLM):
                if values := compared(rounds, name, other, compare):
                    middle_, low, high = statistics.median(values), min(values), max(values)
                    notes.append(f"{name}, {what} over {other}: {middle_:.2f} ({low:.2f} - {high:.2f})")
    return notes


def generator_notes(rounds: Rounds) -> list[str]:
    """Where the load generator is the limit, a rate says little; the CPU ratio does."""
    shares = {name: [one.load.generator_cores for one in seen] for (name, n), seen in rounds.items() if n == 64}
    busy = {name: statistics.median(cores) for name, cores in shares.items()}
    told = ", ".join(f"{cores:.2f} for {name}" for name, cores in busy.items())
    limited = [name for name, cores in busy.items() if cores > 0.9]
    if limited:
        verdict = f"it is the limit for {', '.join(limited)}: there only the CPU ratio means something"
    else:
        verdict = "it is no limit by itself, but takes part of the servers' time: the CPU ratio is the fairer one"
    return [f"the load generator used, in cores: {told}; {verdict}"]


if __name__ == "__main__":
    raise SystemExit(main())
