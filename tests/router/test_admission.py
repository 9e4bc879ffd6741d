"""Who comes in: keys, rates, places, bodies. No server, no clock but the test's."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import admission
from router.admission import FrontDoor, Places
from router.config import Auth, Config, Key, Limit, Server
from router.problems import ProblemError
from router.rates import Rates

SECOND = 1_000_000_000


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def door(*, limits: dict[str, Limit] | None = None, rates: Path | None = None, **server: Any) -> FrontDoor:
    """Tenants a (with two keys) and b."""
    keys = (Key("a", hashed("a1")), Key("a", hashed("a2")), Key("b", hashed("b1")))
    return FrontDoor(Config(auth=Auth(keys=keys, limits=limits or {}), server=Server(**server)), rates=rates)


def headers(key: str, **more: bytes) -> dict[bytes, bytes]:
    return {b"x-api-key": key.encode(), b"content-type": b"application/json"} | {
        name.replace("_", "-").encode(): value for name, value in more.items()
    }


def refusal(call: Any, *arguments: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        call(*arguments)
    return caught.value


# rates ----------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 123 * SECOND

    def __call__(self) -> int:
        return self.now


def let_in(rates: Rates, tenant: str = "a") -> bool:
    try:
        rates.spend(tenant)
    except ProblemError:
        return False
    return True


rates_and_bursts = st.tuples(st.floats(0.01, 10_000), st.integers(1, 50))


@given(limit=rates_and_bursts, pauses=st.lists(st.integers(0, 3 * SECOND), max_size=150))
def test_in_no_window_do_more_come_in_than_the_burst_and_the_rate_allow(
    limit: tuple[float, int], pauses: list[int]
) -> None:
    """For every pair of requests that were let in: the number between them, both counted."""
    rate, burst = limit
    clock = Clock()
    rates = Rates(clock=clock)
    rates.load({"a": Limit(rate, burst)})
    times = []
    for pause in pauses:
        clock.now += pause
        if let_in(rates):
            times.append(clock.now)
    step = round(SECOND / rate)
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + (times[last] - start) / step


@given(limit=rates_and_bursts, slack=st.lists(st.integers(0, SECOND), min_size=1, max_size=100))
def test_who_keeps_to_the_rate_is_never_refused(limit: tuple[float, int], slack: list[int]) -> None:
    """At least a step between two requests, after a whole burst at the start."""
    rate, burst = limit
    clock = Clock()
    rates = Rates(clock=clock)
    rates.load({"a": Limit(rate, burst)})
    assert all(let_in(rates) for _ in range(burst))
    assert not let_in(rates)
    for extra in slack:
        clock.now += round(SECOND / rate) + extra
        assert let_in(rates)


@given(limit=rates_and_bursts, spent=st.integers(1, 80))
def test_retry_after_is_exactly_when_the_next_one_is_let_in(limit: tuple[float, int], spent: int) -> None:
    """A nanosecond earlier it is not."""
    rate, burst = limit
    clock = Clock()
    rates = Rates(clock=clock)
    rates.load({"a": Limit(rate, burst)})
    for _ in range(burst + spent):
        let_in(rates)
    error = refusal(rates.spend, "a")
    assert (error.kind, error.status) == ("rate", 429)
    wait = round(error.retry_after * SECOND)
    clock.now += wait - 1
    assert not let_in(rates)
    clock.now += 1
    assert let_in(rates)


def test_all_keys_of_a_tenant_share_its_rate_and_others_have_their_own() -> None:
    """The limit is the tenant's; a tenant without one has none."""
    limits = {"a": Limit(0.01, 2), "b": Limit(0.01, 3)}
    entrance = door(limits=limits)
    entrance.identify(headers("a1"))
    entrance.identify(headers("a2"))
    assert refusal(entrance.identify, headers("a1")).kind == "rate"
    for _ in range(3):
        entrance.identify(headers("b1"))
    assert refusal(entrance.identify, headers("b1")).kind == "rate"
    free = door(limits={"a": limits["a"]})
    for _ in range(100):
        free.identify(headers("b1"))


def test_a_wrong_key_spends_nobodys_rate() -> None:
    entrance = door(limits={"a": Limit(0.01, 1)})
    assert refusal(entrance.identify, headers("wrong")).kind == "unauthorized"
    entrance.identify(headers("a1"))
    assert refusal(entrance.identify, headers("a1")).kind == "rate"


def test_the_largest_body_fits_a_tenants_share() -> None:
    """Half of the room for bodies must hold one, or it would be refused for ever."""
    entrance = door(max_body_bytes=64 * 1024 * 1024)
    entrance.body_bytes.take("a", 64 * 1024 * 1024)
    assert refusal(entrance.body_bytes.take, "a").kind == "overloaded"
    entrance.body_bytes.take("b")


def test_a_reload_changes_keys_rates_and_places_and_keeps_what_was_spent() -> None:
    """A revoked key is out at once; a limit that stays is not filled up; a slot that is taken stays taken."""
    entrance = door(limits={"a": Limit(0.01, 1), "b": Limit(0.01, 1)}, max_concurrent=4)
    entrance.identify(headers("a1"))
    entrance.slots.take("b")
    auth = Auth(
        keys=(Key("a", hashed("a1")), Key("b", hashed("new"))), limits={"a": Limit(0.01, 1), "b": Limit(0.01, 2)}
    )
    entrance.reload(Config(auth=auth, server=Server(max_concurrent=2)))
    assert refusal(entrance.identify, headers("a2")).kind == "unauthorized"
    assert refusal(entrance.identify, headers("a1")).kind == "rate"
    entrance.identify(headers("new"))
    assert refusal(entrance.slots.take, "b").kind == "overloaded"
    entrance.slots.take("a")
    entrance.slots.leave("b")
    entrance.slots.take("b")


def test_a_smaller_burst_after_a_reload_leaves_no_debt() -> None:
    """What the old limit let in early is not paid back beyond what the new one could have lent."""
    clock = Clock()
    rates = Rates(clock=clock)
    rates.load({"a": Limit(1.0, 1000)})
    for _ in range(1000):
        rates.spend("a")
    rates.load({"a": Limit(1.0, 2)})
    assert refusal(rates.spend, "a").retry_after == 1.0


def spend_many(path: Path, attempts: int, begin: Any, found: Any) -> None:
    rates = Rates(path)
    rates.load({"other": Limit(5.0), "a": Limit(0.001, 20_000)})
    begin.wait()
    found.put(sum(let_in(rates) for _ in range(attempts)))


def test_two_processes_on_one_file_count_together(tmp_path: Path) -> None:
    """20,000 may come in, and each of two tries so often at the same time. (A few more, where the machine is so busy
    that one waited too long for the other: without the lock they are thousands.)"""
    spawn = multiprocessing.get_context("spawn")
    begin, found = spawn.Barrier(2), spawn.Queue()
    path = tmp_path / "rates"
    workers = [spawn.Process(target=spend_many, args=(path, 20_000, begin, found)) for _ in range(2)]
    for worker in workers:
        worker.start()
    counts = [found.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert 20_000 <= sum(counts) <= 20_100, counts


def test_a_worker_that_was_stopped_while_it_counted_stops_nobody_else(tmp_path: Path) -> None:
    """Its lock is waited for once, for 20 ms, not for ever and not by each."""
    import fcntl

    path = tmp_path / "rates"
    rates = Rates(path)
    rates.load({"a": Limit(0.001, 1)})
    with path.open("r+b") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        began = time.process_time()
        assert let_in(rates)
        assert not any(let_in(rates) for _ in range(100))
        assert time.process_time() - began < 1.0  # a hundred times 20 ms would be more


# places and bodies ----------------------------------------------------------------------------------------------------


def test_of_several_tenants_none_has_more_than_half() -> None:
    """One alone may have everything."""
    places = Places("requests")
    places.resize(4, shared=True)
    places.take("a", 2)
    assert "half" in str(refusal(places.take, "a"))
    places.take("b", 2)
    assert "no room" in str(refusal(places.take, "c"))
    places.leave("b", 2)
    places.leave("a", 2)
    places.resize(4, shared=False)
    places.take("a", 4)
    assert refusal(places.take, "a").retry_after == 1.0


class Sender:
    """An ASGI `receive`: what is put in comes out."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def put(self, body: bytes, *, more: bool) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def __call__(self) -> dict[str, Any]:
        return await self._messages.get()


def test_bodies_on_their_way_are_bounded_in_number_and_in_bytes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tenant's half of either; what has arrived, or was given up, makes room."""
    monkeypatch.setattr(admission, "BODY_BYTES", 8_000)
    entrance = door(max_concurrent=1, max_body_bytes=4_000, body_deadline_ms=60_000)

    async def main() -> None:
        senders, reading = [], []

        def begin(tenant: str) -> None:
            senders.append(Sender())
            reading.append(asyncio.create_task(entrance.body(senders[-1], {}, tenant, arrived=False)))

        async def settle() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        for _ in range(5):
            begin("a")
        await settle()
        assert refusal(reading[4].result).kind == "overloaded"  # eight a slot, half of them
        senders[0].put(b"x" * 3_000, more=True)
        senders[1].put(b"x" * 3_000, more=True)
        await settle()
        assert not reading[0].done()
        assert "half of all bytes" in str(refusal(reading[1].result))
        begin("b")
        senders[5].put(b"x" * 3_900, more=True)
        senders[5].put(b"x", more=False)
        assert len(await reading[5]) == 3_901
        senders[0].put(b"", more=False)
        assert len(await reading[0]) == 3_000
        begin("a")
        senders[6].put(b"x" * 3_900, more=True)
        await settle()
        assert not reading[6].done()
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        assert msgspec.json.encode([entrance.bodies._by_tenant, entrance.body_bytes._by_tenant]) == b"[{},{}]"

    asyncio.run(main())


def test_a_body_that_has_arrived_needs_no_place() -> None:
    """Slow ones take all of them, and whoever sends at once is answered all the same."""
    entrance = door(max_concurrent=1, body_deadline_ms=60_000)

    async def main() -> None:
        entrance.bodies.take("b", 4)
        sender = Sender()
        sender.put(b"{}", more=False)
        assert await entrance.body(sender, {}, "b", arrived=True) == b"{}"
        with pytest.raises(ProblemError):
            await entrance.body(sender, {}, "b", arrived=False)

    asyncio.run(main())


@pytest.mark.parametrize("declared", [b"99999", b"9" * 5_000])
def test_a_declared_length_is_believed_when_it_is_too_large(declared: bytes) -> None:
    """Nothing is read."""
    entrance = door(max_body_bytes=2_000)
    with pytest.raises(ProblemError) as caught:
        asyncio.run(entrance.body(Sender(), {b"content-length": declared}, "a", arrived=False))
    assert caught.value.kind == "too-large"
