"""The laws of who waits, who goes next and who may come in: no threads, and the clock is the test's."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from local_model.heads import Head
from local_model.scheduling import FLOWS, RECOVERY, WINDOW, Job, Scheduler
from local_model.scoring import Text
from local_model.types import QueueFull

HEAD = Head(labels=("a", "b"), multi_label=False, temperature=1.0, digest="")
NUMBERS = itertools.count()


class Caller:
    """A future as the scheduler sees one."""

    def __init__(self) -> None:
        self.left = False

    def done(self) -> bool:
        return self.left


def job(tokens: int = 1, tenant: str = "a", *, bulk: bool = False, deadline: float | None = None, at: float = 0) -> Job:
    text = Text([next(NUMBERS)] * tokens, tokens, False, HEAD)
    return Job(text, Caller(), tenant, bulk, deadline, at)  # type: ignore[arg-type]


def jobs(count: int, tokens: int = 1, tenant: str = "a", **options: Any) -> list[Job]:
    return [job(tokens, tenant, **options) for _ in range(count)]


def leave(one: Job) -> None:
    one.future.left = True  # type: ignore[attr-defined]


def padded(batch: list[Job]) -> int:
    return len(batch) * max(one.tokens for one in batch)


class Machine(RuleBasedStateMachine):
    """Texts come, leave, wait, run, fail and are late in any order; a few threads take batches."""

    @initialize(
        max_items=st.integers(1, 6),
        max_tokens=st.integers(1, 60),
        linger=st.sampled_from([0.0, 0.0, 1.0]),
        share=st.sampled_from([1.0, 0.5]),
        queue=st.sampled_from([0, 60, 10_000]),
    )
    def begin(self, max_items: int, max_tokens: int, linger: float, share: float, queue: int) -> None:
        self.scheduler = Scheduler(
            max_items=max_items,
            max_tokens=max_tokens,
            linger_s=linger,
            tenant_share=share,
            queue_tokens=queue,
            queue_s=3.0,
        )
        self.scheduler.seconds_per_token = 0.05
        self.max_tokens, self.linger, self.share = max_tokens, linger, share
        self.now, self.closed = 0.0, False
        self.promises: list[tuple[str, int]] = []
        self.waiting: list[Job] = []  # in order of arrival; as the callers see it
        self.running: dict[int, tuple[list[Job], float]] = {}
        self.fate: dict[Job, str] = {}
        self.all: list[Job] = []
        self.gone_in_queue = 0
        self.last: dict[tuple[str, bool], int] = {}
        self.virtual_time = 0.0

    # --- what happens

    @precondition(lambda self: not self.closed)
    @rule(tenant=st.sampled_from("abc"), tokens=st.integers(1, 40))
    def ask_for_a_place(self, tenant: str, tokens: int) -> None:
        total = self.tokens_in_queue()
        most = self.scheduler.most_waiting
        fits = not sum(total.values()) or sum(total.values()) + tokens <= most
        fits = fits and (not total[tenant] or total[tenant] + tokens <= most * self.share)
        try:
            self.scheduler.admit(tenant, tokens)
        except QueueFull as refused:
            assert not fits
            assert refused.retry_after > 0
        else:
            assert fits
            self.promises.append((tenant, tokens))

    @precondition(lambda self: self.promises)
    @rule(
        data=st.data(),
        lengths=st.lists(st.integers(1, 20), max_size=5),
        bulk=st.booleans(),
        patience=st.none() | st.floats(0, 4),
    )
    def arrive(self, data: st.DataObject, lengths: list[int], bulk: bool, patience: float | None) -> None:
        """What was promised comes, perhaps not all of it, perhaps more."""
        tenant, promised = self.promises.pop(data.draw(st.integers(0, len(self.promises) - 1)))
        deadline = None if patience is None else self.now + patience
        come = [job(n, tenant, bulk=bulk, deadline=deadline, at=self.now) for n in lengths]
        self.scheduler.release(tenant, promised)
        self.scheduler.add(come)
        self.all += come
        self.waiting += come

    @precondition(lambda self: any(one not in self.fate for one in self.all))
    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.all if one not in self.fate]))
        leave(one)
        self.fate[one] = "cancelled"
        if one in self.waiting:
            self.waiting.remove(one)
            self.gone_in_queue += 1

    @rule(seconds=st.floats(0.01, 2))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(thread=st.integers(0, 2))
    def a_batch_begins(self, thread: int) -> None:
        if thread in self.running:
            return
        batch = self.scheduler.form(self.now, closing=self.closed)
        self.tell_late()
        if batch:
            self.check(batch)
            self.running[thread] = batch, self.now
        elif self.waiting:
            assert self.linger, "somebody waits and nothing is held back"
            assert not self.closed
            oldest = min(one.admitted for one in self.waiting)
            assert self.now < oldest + self.linger
            assert self.scheduler.due() == oldest + self.linger
            assert len(self.waiting) < self.scheduler.max_items

    @rule(thread=st.integers(0, 2), memory=st.sampled_from([None, None, None, 0, 1, 2]))
    def a_batch_ends(self, thread: int, memory: int | None) -> None:
        if thread not in self.running:
            return
        batch, since = self.running.pop(thread)
        self.now += 0.01
        if memory is not None:  # it did not fit: it was computed in halves
            before, size = self.scheduler.budget, padded(batch[: max(1, len(batch) >> memory)])
            self.scheduler.out_of_memory(size)
            assert self.scheduler.budget == max(1, min(before, size // 2))
        self.scheduler.computed(batch, self.now - since, threads=3)
        for one in batch:
            if one not in self.fate:
                self.fate[one] = "answered"

    @rule()
    def look_who_left(self) -> None:
        self.scheduler.sweep(self.now)
        self.tell_late()
        assert len(self.scheduler) == len(self.waiting), "neither the gone nor the late take up room"
        assert all(one.deadline is None or self.now < one.deadline for one in self.waiting)

    @rule()
    def close(self) -> None:
        self.closed = True

    # --- what holds

    def check(self, batch: list[Job]) -> None:
        assert len(set(batch)) == len(batch) <= self.scheduler.max_items
        assert len(batch) == 1 or padded(batch) <= self.scheduler.budget
        for one in batch:
            assert one in self.waiting, f"it was {self.fate.get(one, 'running')} before"
            assert one.deadline is None or self.now < one.deadline
            self.waiting.remove(one)
        if self.scheduler.max_items == 1:
            flow, number = (batch[0].tenant, batch[0].bulk), batch[0].text.ids[0]
            assert self.last.get(flow, -1) < number, "one after the other, in the order in which they came"
            self.last[flow] = number

    def tell_late(self) -> None:
        for one in self.scheduler.expired:
            assert one in self.waiting
            assert one.deadline is not None
            assert self.now >= one.deadline
            self.waiting.remove(one)
            self.fate[one] = "late"
        self.scheduler.expired.clear()

    def tokens_in_queue(self) -> Counter[str]:
        total = Counter[str]()
        for _, _, one in self.scheduler._order:
            total[one.tenant] += one.tokens
        for tenant, tokens in self.promises:
            total[tenant] += tokens
        return total

    @invariant()
    def nobody_is_lost_or_there_twice(self) -> None:
        queued = [one for _, _, one in self.scheduler._order]
        assert len(set(queued)) == len(queued) == len(self.scheduler)
        assert {one for one in queued if one not in self.fate} == set(self.waiting)
        running = {one for batch, _ in self.running.values() for one in batch}
        assert set(self.all) == set(self.waiting) | running | set(self.fate)
        assert not set(self.waiting) & running
        still_there = sum(self.fate.get(one) == "cancelled" for one in queued)
        assert self.scheduler.cancelled == self.gone_in_queue - still_there

    @invariant()
    def the_books_are_right(self) -> None:
        total = self.tokens_in_queue()
        assert self.scheduler.waiting_tokens == sum(total.values())
        assert self.scheduler._tokens == {tenant: tokens for tenant, tokens in total.items() if tokens}
        assert 1 <= self.scheduler.budget <= self.max_tokens
        deadlines = [one.deadline for _, _, one in self.scheduler._order if one.deadline is not None]
        assert self.scheduler.next_deadline() == min(deadlines, default=None)

    @invariant()
    def time_runs_forwards(self) -> None:
        assert self.scheduler._virtual_time >= self.virtual_time
        self.virtual_time = self.scheduler._virtual_time
        assert all(stamp >= self.virtual_time for stamp, _, _ in self.scheduler._order)

    def teardown(self) -> None:
        """Everybody who waits still goes, and the budget grows back."""
        if not hasattr(self, "scheduler"):
            return
        while batch := self.scheduler.form(self.now, closing=True):
            self.tell_late()
            self.check(batch)
        self.tell_late()
        assert not self.waiting
        assert len(self.scheduler) == 0
        good, steps = jobs(1), 0
        while self.scheduler.budget < self.max_tokens:
            self.scheduler.computed(good, 0.01)
            steps += 1
            assert steps <= RECOVERY[0] * self.max_tokens
        self.scheduler.computed(good, 0.01)
        assert self.scheduler.budget == self.max_tokens


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestWhateverHappens = Machine.TestCase


# --- how long one waits


@settings(max_examples=150, deadline=None)
@given(
    gaps=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8), st.integers(0, 3)), max_size=120),
    max_items=st.integers(1, 8),
    mixed=st.booleans(),
)
def test_below_four_fifths_of_the_capacity_nobody_waits_for_more_than_three_full_batches(
    gaps: list[tuple[int, int, int]], max_items: int, mixed: bool
) -> None:
    """Arrivals (ticks since the last, length, tenant) through a leaky bucket; a batch takes 2 ticks and 1 a text."""
    scheduler = Scheduler(max_items=max_items, max_tokens=8 * max_items)
    cap = 2.0 + max_items
    drain = 0.8 * max_items / cap  # texts a tick
    arrivals, at, bucket = deque[tuple[float, int, str]](), 0.0, 0.0
    for gap, length, tenant in gaps:
        bucket = max(0.0, bucket - gap * drain)
        at += gap
        late = max(0.0, bucket + 1 - max(1.0, 0.8 * max_items)) / drain
        at, bucket = at + late, max(0.0, bucket - late * drain) + 1
        arrivals.append((at, length if mixed else 8, "abcd"[tenant]))
    now = 0.0
    while arrivals or len(scheduler):
        while arrivals and arrivals[0][0] <= now:
            came, length, tenant = arrivals.popleft()
            scheduler.add([job(length, tenant, at=came)])
        if batch := scheduler.form(now):
            now += 2.0 + len(batch)
            for one in batch:
                assert now - one.admitted <= 3 * cap, "from arrival to answer"
        elif arrivals:
            now = max(now, arrivals[0][0])


def test_a_flood_delays_anothers_next_text_by_no_batch_but_those_that_run() -> None:
    for max_items, threads in [(1, 1), (1, 3), (8, 1), (8, 2)]:
        scheduler = Scheduler(max_items=max_items, max_tokens=100)
        scheduler.add(jobs(500, 5, "flood"))
        for _ in range(threads):
            assert scheduler.form(0.0)
        mine = job(5, "b")
        scheduler.add(jobs(100, 5, "flood"))
        scheduler.add([mine])
        assert mine in scheduler.form(0.0)


@pytest.mark.parametrize("max_items", [1, 8])
@given(lengths=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_two_tenants_who_both_wait_get_equal_tokens(max_items: int, lengths: tuple[int, int]) -> None:
    scheduler = Scheduler(max_items=max_items, max_tokens=240)
    for tenant, tokens in zip("ab", lengths, strict=True):
        scheduler.add(jobs(3_000 // tokens, tokens, tenant))
    done, batch_tokens = Counter[str](), 0
    for _ in range(3_000 // (max(lengths) * max_items)):
        for one in scheduler.form(0.0):
            done[one.tenant] += one.tokens
        # A window of lengths that differ too much to ride together goes in several batches.
        batch_tokens = max(lengths) * (1 if max_items == 1 else max_items if lengths[0] == lengths[1] else WINDOW * 8)
        assert abs(done["a"] - done["b"]) <= batch_tokens


def test_a_tenant_who_comes_late_has_no_arrears_to_claim() -> None:
    scheduler, done = Scheduler(), Counter[str]()
    scheduler.add(jobs(600, 10, "early"))
    for _ in range(300):
        scheduler.form(0.0)
    scheduler.add(jobs(300, 10, "late"))
    for _ in range(100):
        done.update(one.tenant for one in scheduler.form(0.0))
    assert done == {"early": 50, "late": 50}


@pytest.mark.parametrize("max_items", [1, 4])
def test_bulk_gets_a_fifth_where_interactive_texts_wait_and_all_where_none_do(max_items: int) -> None:
    scheduler = Scheduler(max_items=max_items, max_tokens=1_000)
    scheduler.add(jobs(1_000, 10, bulk=True))
    scheduler.add(jobs(1_000, 10))
    done = Counter[bool]()
    while done[False] < 800:
        done.update(one.bulk for one in scheduler.form(0.0))
    assert done[True] == pytest.approx(200, abs=max_items)
    while batch := scheduler.form(0.0):
        done.update(one.bulk for one in batch)
    assert done == {True: 1_000, False: 1_000}


@pytest.mark.parametrize("max_items", [1, 8])
def test_who_is_late_or_left_was_not_served_and_does_not_pay_for_it(max_items: int) -> None:
    """Overload: more than is computed in time comes of both classes. Bulk still gets its fifth, for ever."""
    scheduler, done = Scheduler(max_items=max_items, max_tokens=10_000), Counter[bool]()
    for now in range(2_000):
        scheduler.add(jobs(2 * max_items, 10, deadline=now + 20.0))
        scheduler.add(jobs(max_items, 10, bulk=True, deadline=now + 20.0))
        if now % 5 == 0:
            scheduler.sweep(now)
        batch = scheduler.form(now)
        if now >= 1_000:
            done.update(one.bulk for one in batch)
    assert sum(done.values()) == 1_000 * max_items
    assert done[True] / sum(done.values()) == pytest.approx(0.2, abs=0.03)


def test_those_behind_who_left_move_up_and_stay_in_their_order() -> None:
    scheduler = Scheduler()
    mine, theirs = jobs(3, 10, "a"), jobs(3, 10, "b")
    scheduler.add([*theirs, *mine])
    leave(mine[0])
    leave(mine[1])
    scheduler.sweep(0.0)
    scheduler.add(last := jobs(1, 10, "a"))
    assert [scheduler.form(0.0)[0] for _ in range(5)] == [theirs[0], mine[2], theirs[1], *last, theirs[2]]


def test_texts_sent_only_to_be_cancelled_win_nothing() -> None:
    scheduler, done = Scheduler(), Counter[str]()
    scheduler.add(jobs(2_000, 10, "honest"))
    for _ in range(500):
        mine, never = job(10, "sly"), jobs(20, 10, "sly")
        scheduler.add([mine, *never])
        for one in never:
            leave(one)
        scheduler.sweep(0.0)
        done.update(one.tenant for one in scheduler.form(0.0))
    assert done["sly"] <= done["honest"] + 1


def test_of_texts_as_long_as_each_other_the_oldest_go_first() -> None:
    scheduler = Scheduler(max_items=4, max_tokens=1_000)
    waiting = jobs(10, 7)
    scheduler.add(waiting)
    assert [scheduler.form(0.0) for _ in range(4)] == [waiting[:4], waiting[4:8], waiting[8:], []]


def test_the_oldest_goes_in_the_next_batch_however_little_its_length_fits() -> None:
    scheduler = Scheduler(max_items=8, max_tokens=64)
    long = job(300)
    scheduler.add([*jobs(3, 4), long, *jobs(60, 4)])
    scheduler.form(0.0)  # the three before it, and short ones from behind it
    assert scheduler.form(0.0) == [long], "alone: with anything else it would be over the budget"


def test_flows_of_whom_nothing_waits_are_forgotten_and_those_who_wait_keep_their_place() -> None:
    scheduler = Scheduler()
    scheduler.add([job(1, "a"), first := job(90, "a"), job(1, "a")])
    scheduler.form(0.0)
    for number in range(3 * FLOWS):
        scheduler.add([job(1, str(number))])
        scheduler.form(0.0)
    assert len(scheduler._finish) <= FLOWS
    scheduler.add([job(1, "b"), last := job(1, "a")])
    rest = [scheduler.form(0.0)[0] for _ in range(len(scheduler))]
    assert rest.index(first) < rest.index(last) == len(rest) - 1


# --- who is held back


def test_a_batch_that_is_not_full_goes_when_its_oldest_text_has_waited_long_enough_and_not_later() -> None:
    scheduler = Scheduler(max_items=4, max_tokens=100, linger_s=2.0)
    assert scheduler.due() is None
    first = job(1, at=10.0)
    scheduler.add([first])
    scheduler.add([second := job(1, at=11.5)])
    assert scheduler.form(11.9) == []
    assert scheduler.due() == 12.0
    assert scheduler.form(12.0) == [first, second]
    assert scheduler.due() is None


def test_the_oldest_text_is_the_one_that_came_first_whoever_goes_first() -> None:
    """A tenant who had much lately is behind one who just came, and waits no longer for company all the same."""
    scheduler = Scheduler(max_items=4, max_tokens=100, linger_s=2.0)
    scheduler.add(jobs(4, 20, "a", at=0.0))
    assert len(scheduler.form(0.0)) == 4
    scheduler.add([job(20, "a", at=10.0)])
    scheduler.add([job(20, "b", at=11.0)])
    assert scheduler.form(11.5) == []
    assert scheduler.due() == 12.0
    assert [one.tenant for one in scheduler.form(12.0)] == ["b", "a"]


@pytest.mark.parametrize("full", [jobs(4, 1), jobs(2, 50), jobs(1, 500)])
def test_a_full_batch_goes_at_once(full: list[Job]) -> None:
    """Full of texts, of tokens, or of one text."""
    scheduler = Scheduler(max_items=4, max_tokens=100, linger_s=2.0)
    scheduler.add(full)
    due = scheduler.due()
    assert due is not None
    assert due <= 0.0
    assert scheduler.form(0.0) == full


def test_who_left_makes_no_batch_full() -> None:
    scheduler = Scheduler(max_items=4, max_tokens=100, linger_s=2.0)
    come = jobs(4)
    scheduler.add(come)
    leave(come[1])
    assert scheduler.form(1.0) == []
    assert scheduler.due() == 2.0
    assert scheduler.form(2.0) == [come[0], *come[2:]]


def test_closing_waits_for_no_company() -> None:
    scheduler = Scheduler(max_items=4, max_tokens=100, linger_s=2.0, hold=9)
    come = jobs(2)
    scheduler.add(come)
    assert scheduler.form(0.0, closing=True) == come


def test_nothing_goes_until_as_many_have_come_as_the_test_wants() -> None:
    scheduler = Scheduler(hold=3)
    come = jobs(2)
    scheduler.add(come)
    assert scheduler.form(99.0) == []
    assert scheduler.due() is None
    scheduler.add(more := jobs(1))
    assert [scheduler.form(0.0) for _ in range(4)] == [[come[0]], [come[1]], more, []]
    scheduler.add(last := jobs(1))
    assert scheduler.form(0.0) == last, "it was held once"


# --- who may come in


def test_as_much_may_wait_as_is_computed_in_the_time_of_the_queue() -> None:
    scheduler = Scheduler(queue_s=0.5)
    scheduler.seconds_per_token = 0.001
    scheduler.admit("a", 400)
    with pytest.raises(QueueFull) as refused:
        scheduler.admit("a", 101)
    assert refused.value.retry_after == pytest.approx(0.4)
    scheduler.admit("a", 100)
    scheduler.release("a", 400)
    scheduler.admit("a", 400)
    scheduler.seconds_per_token = 0.0005
    scheduler.admit("a", 500)


def test_a_request_larger_than_the_queue_fits_an_empty_one_alone() -> None:
    scheduler = Scheduler(queue_tokens=10, tenant_share=0.5)
    scheduler.admit("a", 99)
    for tenant in "ab":
        with pytest.raises(QueueFull):
            scheduler.admit(tenant, 1)
    scheduler.release("a", 99)
    scheduler.admit("b", 10)


def test_one_tenant_may_have_its_share_of_the_queue_and_leaves_the_rest_to_others() -> None:
    scheduler = Scheduler(queue_tokens=100, tenant_share=0.5)
    for _ in range(5):
        scheduler.admit("a", 10)
    with pytest.raises(QueueFull):
        scheduler.admit("a", 1)
    for _ in range(5):
        scheduler.admit("b", 10)
    with pytest.raises(QueueFull):
        scheduler.admit("c", 1)
    scheduler.release("b", 10)
    scheduler.admit("c", 10)


def test_only_a_batch_that_was_half_full_tells_the_rate_of_the_whole_engine() -> None:
    scheduler = Scheduler(max_items=8, max_tokens=1_000)
    before = scheduler.seconds_per_token
    scheduler.computed(jobs(3, 10), 5.0)
    assert scheduler.seconds_per_token == before
    for _ in range(400):
        scheduler.computed(jobs(4, 10), 4.0, threads=2)
    assert scheduler.seconds_per_token == pytest.approx(0.05, rel=0.01)
    for _ in range(400):
        scheduler.computed(jobs(1, 500), 5.0, threads=2)
    assert scheduler.seconds_per_token == pytest.approx(0.005, rel=0.01)


def test_out_of_memory_halves_the_budget_and_it_grows_back_by_a_twentieth_after_a_hundred_good_batches() -> None:
    scheduler = Scheduler(max_items=8, max_tokens=1_000)
    scheduler.out_of_memory(800)
    assert scheduler.budget == 400
    scheduler.out_of_memory(900)
    scheduler.out_of_memory(800)
    assert scheduler.budget == 400, "no more is known than before"
    scheduler.out_of_memory(400)
    assert scheduler.budget == 200
    scheduler.add(jobs(8, 100))
    assert len(scheduler.form(0.0)) == 2
    for _ in range(99):
        scheduler.computed(jobs(1), 0.01)
    assert scheduler.budget == 200
    scheduler.computed(jobs(1), 0.01)
    assert scheduler.budget == 211
    for _ in range(100 * 60):
        scheduler.computed(jobs(1), 0.01)
    assert scheduler.budget == 1_000
