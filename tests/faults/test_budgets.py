"""Budgets by day, task and tenant, spent over HTTP against a simulated frontier."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest

KEYS = {name: f"key-of-{name}-for-budgets" for name in ("web", "app", "admin")}
UNSURE = [f"{text} {number}" for number in range(40) for text in ("hmm", "what about tuesday", "is it raining")]


def hashed(name: str) -> str:
    return hashlib.sha256(KEYS[name].encode()).hexdigest()


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def config(url: str, budget: str) -> str:
    """Three tasks on one head, two tenants, an admin; dear enough that a few calls are a budget."""
    keys = "".join(f'[[auth.keys]]\ntenant = "{name}"\nsha256 = "{hashed(name)}"\n' for name in ("web", "app"))
    tasks = "".join(
        f'[tasks.{name}]\nhead = "banking77"\n[tasks.{name}.policy]\nthreshold = {threshold}\n'
        for name, threshold in (("banking", 1.0), ("cards", 1.0), ("easy", 0.0))
    )
    return f"""{tasks}
[providers.a]
kind = "anthropic"
model = "claude-haiku-5-5"
base_url = "{url}"
[providers.a.price]
input = 10
output = 50
{budget}
{keys}[auth]
admin = ["{hashed("admin")}"]
"""


def spent(service: Any, scope: str, name: str) -> int:
    with sqlite3.connect(service.state / "ledger.db") as books:
        (nano,) = books.execute(
            f"SELECT coalesce(sum(cost_nano), 0) FROM attempts WHERE {scope} = ?", (name,)
        ).fetchone()
    books.close()
    return int(nano)


def until_it_is_out(service: Any, **which: Any) -> list[dict[str, Any]]:
    """Answers, up to and with the first that was wanted of the frontier in vain."""
    answers = []
    for text in UNSURE:
        answers.append(service.classify(text, **which).json()["results"][0])
        if answers[-1]["degraded"] == "budget":
            return answers
    pytest.fail("the budget was never out")


def test_a_task_and_a_tenant_have_a_limit_each_and_others_are_answered_on(
    serve: Callable[..., Any], simulate: Callable[..., Any]
) -> None:
    """The frontier is not called once more for who is over; and each sees its own figures only."""
    frontier = simulate()
    limits = "[budget]\nusd_per_day = 5\ntasks = { banking = 0.5 }\ntenants = { app = 0.4 }\n"
    service = serve(config(frontier.url, limits))
    answers = until_it_is_out(service, headers=bearer("web"), task="banking")
    assert {answer["source"] for answer in answers[:-1]} == {"frontier"}
    assert (answers[-1]["source"], answers[-1]["label"] is None) == ("local", False)
    assert 0 < spent(service, "task", "banking") <= 500_000_000
    before = frontier.calls
    service.classify("and what else", headers=bearer("app"), task="banking")
    assert frontier.calls == before, "a task's limit is the same for every tenant"
    assert (
        service.classify("and what else", headers=bearer("web"), task="cards").json()["results"][0]["source"]
        == "frontier"
    )

    until_it_is_out(service, headers=bearer("app"), task="cards")
    assert 0 < spent(service, "tenant", "app") <= 400_000_000
    assert (
        service.classify("one more", headers=bearer("web"), task="cards").json()["results"][0]["source"] == "frontier"
    )

    def told(name: str) -> dict[str, Any]:
        return service.client.get("/v1/status", headers=bearer(name)).json()["budget"]

    everything = told("admin")
    assert everything["tasks"]["banking"] == {
        "usd_per_day": 0.5,
        "spent_today_usd": spent(service, "task", "banking") / 1e9,
    }
    assert everything["tenants"] == {
        "web": {"usd_per_day": None, "spent_today_usd": spent(service, "tenant", "web") / 1e9},
        "app": {"usd_per_day": 0.4, "spent_today_usd": spent(service, "tenant", "app") / 1e9},
    }
    assert set(told("web")["tenants"]) == {"web"}
    assert told("app")["tenants"] == {"app": everything["tenants"]["app"]}
    metrics = service.client.get("/metrics").text
    assert 'crossover_budget_used_ratio{scope="task",task="banking"}' in metrics
    assert 0.5 < service.metric('crossover_budget_used_ratio{scope="tenant",task=""}') <= 1
    assert '"app"' not in metrics and '"web"' not in metrics


def test_a_budget_that_is_out_refuses_where_that_is_configured(
    serve: Callable[..., Any], simulate: Callable[..., Any]
) -> None:
    """The error that `strict` gives, until midnight UTC, for that input alone. What costs nothing is answered on; a
    config without it makes labels of them again."""
    frontier = simulate()
    limits = 'usd_per_day = 0.4\nwhen_out = "refuse"\n'
    service = serve(config(frontier.url, f"[budget]\n{limits}"))
    web = bearer("web")
    paid = []
    for text in UNSURE:
        reply = service.classify(text, headers=web, task="banking")
        if reply.status_code != 200:
            break
        paid.append(text)
    assert paid
    assert reply.status_code == 503
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == "urn:crossover:problem:degraded"
    assert "budget" in reply.json()["detail"]
    wait = int(reply.headers["retry-after"])
    assert abs(wait - (86_400 - time.time() % 86_400)) < 60

    before = frontier.calls
    mixed = service.classify([paid[0], "hmm, something new"], headers=web, task="banking")
    assert mixed.status_code == 200
    hit, refused = mixed.json()["results"]
    assert (hit["source"], hit["answered_by"]) == ("cache", "frontier")
    assert refused["error"]["type"] == "urn:crossover:problem:degraded"
    assert service.classify("I lost my card", headers=web, task="easy").json()["results"][0]["source"] == "local"
    local = service.classify("hmm, something new", headers=web, task="banking", route="local").json()["results"][0]
    assert (local["source"], local["degraded"]) == ("local", None)
    assert frontier.calls == before
    assert service.metric('crossover_escalations_total{outcome="budget"') >= 2

    service.config.write_text(config(frontier.url, "[budget]\nusd_per_day = 0.4\n"))
    service.process.send_signal(1)
    service.wait_for(lambda: service.classify("hmm, something new", headers=web, task="banking").status_code == 200)
    answer = service.classify("hmm, something new", headers=web, task="banking").json()["results"][0]
    assert (answer["source"], answer["degraded"]) == ("local", "budget")
    assert frontier.calls == before
