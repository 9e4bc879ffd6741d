"""Each fault of the simulator, on each of its formats: what a caller gets, and what the bill says of it. No SDK and no
adapter is between, so that what they are tested with is tested itself."""

from __future__ import annotations

import asyncio
import json
import zlib
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from providers.simulator import Simulator
from providers.simulator.faults import FAULTS

LABELS = ["lost_card", "exchange_rate"]
TEXT = "where is my lost card"
SCHEMA = {"properties": {"label": {"enum": LABELS}}}
SYSTEM = 'Classify.\n\nLabels:\n- "lost_card": it is gone\n- "exchange_rate"'
CHAT = {"model": "m", "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TEXT}]}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "model": "m",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": TEXT}],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
    "/v1/responses": {"model": "m", "input": TEXT, "text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "/v1/decisions": {
        "model": "m",
        "input": TEXT,
        "questions": [{"type": "choice", "instructions": "Choose.", "choices": [{"value": name} for name in LABELS]}],
    },
    "/v1/chat/completions": CHAT
    | {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}},
}

STATUSES = ["400", "401", "402", "403", "404", "408", "413", "422", "429", "500", "502", "503", "504", "529"]
REFUSED = {"redirect": 307, "no_schema": 400}
BROKEN = {
    "hang": TimeoutError,
    "slow_drip": TimeoutError,
    "reset": httpx.ReadError,
    "half_close": httpx.RemoteProtocolError,
}
NO_REPLY = ["malformed", "html", "empty", "nulls"]
NO_LABEL = ["out_of_set", "two_labels", "wrong_case", "homoglyph", "prose", "ignores_schema", "fenced", "empty_text"]
EARLY = ["refusal", "truncated"]
WRONG_USAGE = ["no_usage", "negative_usage", "absurd_usage", "string_usage", "cached_usage"]


@pytest.fixture(params=list(REQUESTS))
def path(request: pytest.FixtureRequest) -> str:
    """Of each format."""
    return str(request.param)


def client_of(sim: Simulator) -> httpx.AsyncClient:
    """Without reading certificates, which takes longer than a test."""
    return httpx.AsyncClient(base_url=sim.url, headers={"x-api-key": "k"}, verify=False)


def call(path: str, *faults: str, body: Any = None, **settings: Any) -> tuple[httpx.Response, Simulator]:
    """The reply, after those faults were ordered; and the simulator."""

    async def main() -> tuple[httpx.Response, Simulator]:
        async with Simulator(record=True, **settings) as sim:
            sim.fail_next(faults)
            async with client_of(sim) as http:
                return await http.post(path, json=body or REQUESTS[path]), sim

    return asyncio.run(main())


def said(path: str, reply: Any) -> str:
    """The label or the text of an answer, "" for none."""
    match path:
        case "/v1/messages":
            return "".join(block.get("text", "") for block in reply["content"])
        case "/v1/responses":
            return str(reply["output"][-1]["content"][0].get("text", ""))
        case "/v1/decisions":
            return json.dumps({"label": reply["answers"][0].get("choice", "")})
    return reply["choices"][0]["message"]["content"] or ""


def label(path: str, reply: Any) -> Any:
    return json.loads(said(path, reply))["label"]


def test_without_a_fault_a_label_of_the_set_is_answered_and_charged(path: str) -> None:
    reply, sim = call(path)
    assert label(path, reply.json()) == "lost_card"
    (item,) = sim.items
    assert (item.seen, item.batch, item.text, item.model) == (True, False, TEXT, "simulated/m")
    assert reply.json().get("id", item.reply_id) == item.reply_id == reply.headers["x-request-id"]
    assert "id" in reply.json() or path == "/v1/decisions"


def test_no_fault_is_left_out_here() -> None:
    assert {*REFUSED, *BROKEN, *NO_REPLY, "gzip_bomb", *NO_LABEL, *EARLY, *WRONG_USAGE} == set(FAULTS)


@pytest.mark.parametrize(("fault", "status"), [*((name, int(name)) for name in STATUSES), *REFUSED.items()])
def test_a_call_that_is_refused_costs_nothing(path: str, fault: str, status: int) -> None:
    reply, sim = call(path, fault)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]
    assert list(sim.items) == []
    assert [line["refused"] for line in sim.bill.values()] == [1]


@pytest.mark.parametrize("status", ["429", "503", "529"])
@pytest.mark.parametrize(
    ("asked", "header", "value"),
    [
        ("30", "retry-after", "30"),
        ("3600", "retry-after", "3600"),
        ("-1", "retry-after", "-1"),
        ("junk", "retry-after", "junk"),
        ("ms:1500", "retry-after-ms", "1500"),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"),
    ],
)
def test_a_refusal_says_when_to_come_back(path: str, status: str, asked: str, header: str, value: str) -> None:
    reply, _ = call(path, f"{status}@{asked}")
    assert (reply.status_code, reply.headers[header]) == (int(status), value)


def test_the_date_to_come_back_at_is_told_from_now_on() -> None:
    replies = [call("/v1/messages", f"429@date:{seconds}")[0] for seconds in (-60, 60)]
    past, future = (parsedate_to_datetime(reply.headers["retry-after"]) for reply in replies)
    assert 115 <= (future - past).total_seconds() <= 125


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_call_that_breaks_on_the_wire_is_charged_and_nobody_has_seen_it(path: str, fault: str) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            sim.fail_next([fault])
            async with client_of(sim) as http:
                with pytest.raises(BROKEN[fault]):
                    async with asyncio.timeout(0.2):  # a time-out of httpx is for each byte
                        await http.post(path, json=REQUESTS[path])
            if BROKEN[fault] is TimeoutError:
                await sim.wait_for(gone=1)
            assert [item.seen for item in sim.items] == [False]

    asyncio.run(main())


@pytest.mark.parametrize("fault", NO_REPLY)
def test_a_reply_that_is_none_is_charged_and_says_nothing_of_it(path: str, fault: str) -> None:
    reply, sim = call(path, fault)
    assert reply.status_code == 200
    try:
        assert not any(reply.json().values())
    except ValueError:
        assert fault in ("malformed", "html")
    assert [item.seen for item in sim.items] == [False]


def test_a_gzip_bomb_is_50_megabytes_in_50_kilobytes_and_still_an_answer(path: str) -> None:
    async def main() -> bytes:
        async with Simulator() as sim:
            sim.fail_next(["gzip_bomb"])
            http = client_of(sim)
            async with http, http.stream("POST", path, json=REQUESTS[path]) as reply:
                assert reply.headers["content-encoding"] == "gzip"
                return b"".join([part async for part in reply.aiter_raw()])

    packed = asyncio.run(main())
    assert len(packed) < 60_000
    data = zlib.decompress(packed, wbits=31)
    assert len(data) > 50_000_000
    assert label(path, json.loads(data)) == "lost_card"


@pytest.mark.parametrize("fault", NO_LABEL)
def test_an_answer_that_is_no_label_is_charged_as_told(path: str, fault: str) -> None:
    reply, sim = call(path, fault)
    try:
        assert label(path, reply.json()) not in LABELS
    except ValueError:
        assert path != "/v1/decisions"
        assert fault in ("two_labels", "prose", "ignores_schema", "fenced", "empty_text")
    (item,) = sim.items
    assert item.seen
    usage = reply.json()["usage"]
    assert usage.get("output_tokens", usage.get("completion_tokens")) == item.usage.output


@pytest.mark.parametrize("fault", EARLY)
def test_a_model_that_stops_early_says_so_as_its_format_does(path: str, fault: str) -> None:
    reply, sim = call(path, fault)
    body = reply.json()
    told, wanted = {
        "/v1/messages": (body.get("stop_reason"), {"refusal": "refusal", "truncated": "max_tokens"}),
        "/v1/responses": (body.get("status"), {"refusal": "completed", "truncated": "incomplete"}),
        "/v1/decisions": (
            body.get("answers", [{}])[0].get("type"),
            {"refusal": "refusal", "truncated": "choice"},  # it has no way to say that it was cut
        ),
        "/v1/chat/completions": (
            body.get("choices", [{}])[0].get("finish_reason"),
            {"refusal": "stop", "truncated": "length"},
        ),
    }[path]
    assert told == wanted[fault]
    if fault == "refusal":
        assert '"refusal"' in reply.text
    assert [item.seen for item in sim.items] == [True]


@pytest.mark.parametrize("fault", WRONG_USAGE)
def test_a_usage_that_is_wrong_is_told_and_the_true_one_charged(path: str, fault: str) -> None:
    true, before = call(path)
    wrong, sim = call(path, fault)
    assert label(path, wrong.json()) == "lost_card"
    assert wrong.json()["usage"] != true.json()["usage"]
    assert [item.usage for item in sim.items] == [item.usage for item in before.items]
    assert [item.seen for item in sim.items] == [False]


@pytest.mark.parametrize("unknown", ["bogus", "600", "200", "ok-not", "429@date:soon"])
def test_an_unknown_fault_is_refused(unknown: str) -> None:
    with pytest.raises(ValueError, match=r"unknown fault|seconds from now"):
        Simulator().fail_next([unknown])


@pytest.mark.parametrize(
    ("structured", "asked", "status"),
    [
        ("schema", {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, 200),
        ("json", {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, 400),
        ("none", {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, 400),
        ("json", {"type": "json_object"}, 200),
        ("none", {"type": "json_object"}, 400),
        ("none", {"type": "text"}, 200),
    ],
)
def test_a_chat_server_knows_strict_schemas_or_any_json_or_nothing(structured: Any, asked: Any, status: int) -> None:
    path = "/v1/chat/completions"
    reply, sim = call(path, body=CHAT | {"response_format": asked}, structured=structured)
    assert reply.status_code == status
    if status == 200:  # the labels are in the system message
        assert label(path, reply.json()) == "lost_card"
    else:
        assert reply.json()["error"]["param"] == "response_format"
        assert list(sim.items) == []


def test_faults_are_ordered_for_a_text_and_go_before_those_for_all(path: str) -> None:
    async def main() -> list[int]:
        async with Simulator() as sim, client_of(sim) as http:
            orders = {"for": {TEXT: ["500", "ok"], "another text": ["404"]}, "next": ["503"]}
            assert (await http.post("/_sim/faults", json=orders)).json()["ordered"] == 4
            return [(await http.post(path, json=REQUESTS[path])).status_code for _ in range(4)]

    assert asyncio.run(main()) == [500, 200, 503, 200]
