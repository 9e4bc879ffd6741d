"""What the ledger promises when the disk, the file, another process or the power button does not play along."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost.ledger import Ledger
from cost.report import build
from cost.retention import compact
from cost.schema import connect_readonly
from cost.types import InputRow, Intent, LedgerError, LedgerUnwritable, Outcome, Usage
from cost.verify import verify

Make = Callable[..., Any]

WRITER = """
import asyncio, itertools, os, sys, time
from cost.ledger import Ledger
from cost.types import InputRow, Intent, Outcome
async def main(path, name):
    ledger = Ledger.open(path)
    async def worker(w):
        for i in itertools.count():
            request, now = f"{name}-{w}-{i}", int(time.time() * 1e6)
            cost = 0
            if i % 3 == 0:
                attempt = await ledger.reserve(Intent(request, 0, now, "t", "k", "p", "m", 1000))
                os.write(1, f"reserved {request}\\n".encode())
                if i % 2:
                    await ledger.settle(attempt, Outcome("settled", cost_nano=10))
                    cost = 10
            await ledger.record([InputRow(request, 0, now, "t", "k", "local", label="x" * 300, cost_nano=cost)])
            os.write(1, f"answered {request}\\n".encode())
    await asyncio.gather(*map(worker, range(8)))
asyncio.run(main(*sys.argv[1:]))
"""


def test_kill_9_loses_no_answered_request_and_no_reservation(tmp_path: Path, process: Make) -> None:
    path = tmp_path / "l.db"
    acknowledged: dict[str, set[str]] = {"answered": set(), "reserved": set()}
    for kill in range(10):
        child = process(WRITER, str(path), f"k{kill}")
        for _ in range(40 + 37 * kill):
            kind, request = child.stdout.readline().split()
            acknowledged[kind].add(request)
        child.kill()
        for line in child.stdout.read().splitlines():
            if len(line.split()) == 2:
                kind, request = line.split()
                acknowledged[kind].add(request)
        child.wait()
        assert [f for f in verify(path) if f.severity == "error"] == []
    Ledger.open(path).close()
    with sqlite3.connect(path) as db:
        rows = {request for (request,) in db.execute("SELECT request_id FROM inputs")}
        attempts = {request for (request,) in db.execute("SELECT request_id FROM attempts")}
        states = dict(db.execute("SELECT state, min(cost_nano) FROM attempts GROUP BY state"))
    db.close()
    assert acknowledged["answered"] <= rows
    assert acknowledged["reserved"] <= attempts
    assert states == {"settled": 10, "uncertain": 1000}  # what was open keeps its upper bound
    assert [f for f in verify(path) if f.severity == "error"] == []


FULL = """
import asyncio, os, resource, signal, sys
from cost.ledger import Ledger
from cost.types import InputRow, Intent, LedgerUnwritable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
async def main(path):
    ledger = Ledger.open(path)
    async def record(i):
        await ledger.record([InputRow(f"r{i}", 0, 1, "t", "k", "local", label="x" * 1000)])
    await record(-1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path + "-wal") + 30_000, hard))
    written = 0
    try:
        while written < 1000:
            await record(written)
            written += 1
    except LedgerUnwritable:
        pass
    assert 0 < written < 1000 and not ledger.writable, written
    try:
        await ledger.reserve(Intent("paid", 0, 1, "t", "k", "p", "m", 1000))
    except LedgerUnwritable:
        print("no paid call", flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await record("again")
    assert ledger.writable
    ledger.close()
    print(written + 2, flush=True)
asyncio.run(main(sys.argv[1]))
"""


def test_a_full_disk_refuses_paid_calls_and_is_over_when_there_is_room_again(tmp_path: Path, process: Make) -> None:
    path = tmp_path / "l.db"
    child = process(FULL, str(path))
    assert child.stdout.readline() == "no paid call\n"
    written = int(child.stdout.readline())
    assert child.wait() == 0
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM inputs").fetchone() == (written,)
    db.close()
    assert verify(path) == []


def test_a_file_locked_by_another_process_is_waited_for_only_so_long(tmp_path: Path, row: Make, intent: Make) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", busy_ms=50)
        other = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnwritable, match="locked"):
            await ledger.reserve(intent("a"))
        assert not ledger.writable
        with pytest.raises(LedgerUnwritable):
            await ledger.record([row("lost")])
        other.execute("ROLLBACK")
        other.close()
        await ledger.record([row("kept")])
        assert ledger.writable
        ledger.close()

    asyncio.run(main())


def test_a_caller_waits_no_longer_than_its_patience_and_no_money_stays_set_aside(
    tmp_path: Path, row: Make, intent: Make
) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db", busy_ms=30_000, patience_s=0.05, room=3)
        other = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnwritable, match="took over"):
            await ledger.reserve(intent("a"))
        crowd = await asyncio.gather(*(ledger.record([row(f"r{i}")]) for i in range(5)), return_exceptions=True)
        assert all(isinstance(result, LedgerUnwritable) for result in crowd)
        assert any("calls wait" in str(result) for result in crowd)
        other.execute("ROLLBACK")
        other.close()
        ledger.close()

    asyncio.run(main())
    db = connect_readonly([tmp_path / "l.db"])
    assert db.execute("SELECT count(*) FROM attempts WHERE state = 'reserved'").fetchone() == (0,)
    db.close()
    assert [f for f in verify(tmp_path / "l.db") if f.severity == "error"] == []


def test_a_record_that_nobody_waits_for_is_written_and_its_error_is_not_logged(tmp_path: Path, row: Make) -> None:
    """Cancelled, no longer waited for, or thrown away in the middle; with the file locked, and then free again."""
    logged: list[dict[str, Any]] = []

    async def leave(ledger: Ledger, name: str) -> None:
        cancelled = asyncio.ensure_future(ledger.record([row(f"{name}-cancelled")]))
        late = asyncio.ensure_future(ledger.record([row(f"{name}-late")]))
        ledger.record([row(f"{name}-thrown-away")])
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait({cancelled, late}, timeout=0)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: logged.append(context))
        ledger = Ledger.open(tmp_path / "l.db", busy_ms=50)
        other = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        await leave(ledger, "refused")
        with pytest.raises(LedgerUnwritable):
            await ledger.record([row("refused")])
        other.execute("ROLLBACK")
        other.close()
        await leave(ledger, "written")
        await ledger.record([row("written")])
        ledger.close()
        gc.collect()

    asyncio.run(main())
    assert logged == []
    with sqlite3.connect(tmp_path / "l.db") as db:
        names = {name for (name,) in db.execute("SELECT request_id FROM inputs WHERE request_id LIKE 'written%'")}
    db.close()
    assert names == {"written", "written-cancelled", "written-late", "written-thrown-away"}


def test_many_may_create_the_same_ledger_at_once(tmp_path: Path) -> None:
    """The workers of a service start together; each must find a whole ledger or wait for it."""
    with ThreadPoolExecutor(8) as pool:
        for n in range(12):
            path = tmp_path / f"{n}.db"
            for ledger in list(pool.map(lambda _, path=path: Ledger.open(path, busy_ms=20_000), range(8))):
                ledger.close()
            assert verify(path) == []


READONLY = """
import os, sys
from pathlib import Path
from cost.ledger import Ledger
from cost.types import LedgerUnwritable
from cost.verify import verify
if os.getuid() == 0:
    os.setuid(65534)
try:
    Ledger.open(sys.argv[1])
except LedgerUnwritable as error:
    print(error, flush=True)
print(verify(Path(sys.argv[1])), flush=True)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's."""
    path = Path(tempfile.mkdtemp())
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def test_a_read_only_ledger_can_be_verified_but_not_opened_for_writing(
    open_folder: Path, books: Make, row: Make, process: Make
) -> None:
    path = Path(shutil.copy(books([row("r")]), open_folder / "l.db"))
    path.chmod(0o444)
    open_folder.chmod(0o555)
    child = process(READONLY, str(path))
    assert "can't be opened for writing" in child.stdout.readline()
    assert child.stdout.readline() == "[]\n"
    assert child.wait() == 0


@pytest.mark.parametrize("kind", ["garbage", "newer", "foreign"])
def test_a_file_that_is_no_ledger_of_ours_is_refused_and_left_as_it_is(tmp_path: Path, books: Make, kind: str) -> None:
    path = tmp_path / "x.db"
    if kind == "garbage":
        path.write_bytes(b"not a database at all " * 400)
    else:
        if kind == "newer":
            shutil.copy(books(), path)
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99" if kind == "newer" else "CREATE TABLE t (x)")
        db.commit()
        db.close()
    before = path.read_bytes()
    said = {"garbage": "not a readable ledger", "newer": "schema 99", "foreign": "another program"}[kind]
    with pytest.raises(LedgerError, match=said):
        Ledger.open(path)
    with pytest.raises(LedgerError, match=said):
        connect_readonly([path])
    assert [finding.check for finding in verify(path)] == ["open"]
    assert path.read_bytes() == before


def test_damage_within_the_file_is_found(books: Make, row: Make) -> None:
    path = books([row(f"r{i}", label="y" * 200) for i in range(200)])
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 8192 * 4096, len(content), 4096):  # rows; the tables' descriptions come first
        content[at : at + 64] = os.urandom(64)
    path.write_bytes(content)
    assert {finding.check for finding in verify(path)} == {"integrity"}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ("UPDATE spend SET nano = nano + 1", "spend"),
        ("UPDATE attempts SET cost_nano = cost_nano + 1", "spend"),
        ("UPDATE spend_by SET nano = nano - 1 WHERE scope = 'tenant'", "spend"),
        ("DELETE FROM spend_by WHERE scope = 'task'", "spend"),
        ("UPDATE attempts SET reasoning = -1", "negative"),
        ("UPDATE inputs SET cost_nano = 12", "cost"),
        ("UPDATE inputs SET cost_nano = -1, local_nano = -1", "negative"),
        ("UPDATE attempts SET state = 'paid'", "state"),
        ("DELETE FROM attempts", "orphan"),
        ("DELETE FROM attempts", "gap"),
    ],
)
def test_books_that_do_not_add_up_are_a_finding(books: Make, row: Make, intent: Make, change: str, check: str) -> None:
    answered = row("r", source="frontier", cost_nano=11, local_nano=1, total_us=10**15)
    path = books([answered], [(intent("r"), Outcome("settled", cost_nano=10))])
    assert verify(path) == []
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    assert check in [finding.check for finding in verify(path) if finding.severity == "error"]


@pytest.mark.parametrize("outcome", [None, Outcome("uncertain"), Outcome("settled", cost_nano=10)])
def test_an_input_that_cost_more_than_its_attempts_ever_could_is_a_finding(
    books: Make, row: Make, intent: Make, outcome: Outcome | None
) -> None:
    """Also where an attempt is open, or was settled after the answer."""
    for paid, findings in ((1000, []), (1001, ["cost"])):
        answered = row("r", source="frontier", cost_nano=paid + 1, local_nano=1, at_us=0)
        path = books([answered], [(intent("r", estimate_nano=1000), outcome)], name=f"l{paid}")
        assert [f.check for f in verify(path, clock=lambda: 0.0) if f.severity == "error"] == findings


def test_money_set_aside_for_over_an_hour_by_a_process_that_runs_is_pointed_out(
    books: Make, intent: Make, noon: int
) -> None:
    path = books([], [(intent("r", estimate_nano=2_000_000), None), (intent("s", at_us=noon + 1), None)])
    assert verify(path, clock=lambda: noon / 1e6 + 3600) == []
    (found,) = verify(path, clock=lambda: (noon + 1) / 1e6 + 3600)
    assert (found.severity, found.check) == ("note", "reserved")
    assert found.detail.startswith("1 reservations ($0.002000) older than an hour, such as r,")


def test_a_batch_has_a_day_to_be_answered_in(books: Make, intent: Make, noon: int) -> None:
    path = books([], [(intent("r", batch=True), None)])
    assert verify(path, clock=lambda: noon / 1e6 + 25 * 3600) == []
    (found,) = verify(path, clock=lambda: noon / 1e6 + 27 * 3600)
    assert (found.severity, found.check) == ("note", "reserved")


def test_a_live_file_can_be_verified(tmp_path: Path, row: Make, intent: Make, noon: int) -> None:
    async def main() -> None:
        ledger = Ledger.open(tmp_path / "l.db")
        await ledger.record([row("r")])
        await ledger.reserve(intent("s"))
        assert await asyncio.to_thread(verify, tmp_path / "l.db", clock=lambda: noon / 1e6) == []
        ledger.close()

    asyncio.run(main())


def test_a_clock_that_jumps_a_day_moves_no_money_and_no_row(tmp_path: Path, row: Make, intent: Make, noon: int) -> None:
    """Back and forth between a reservation and its outcome: the day that was charged keeps the money, calls keep their
    order, and no report has a negative figure."""
    now = [noon / 1e6]

    async def main() -> list[int]:
        ledger = Ledger.open(tmp_path / "l.db", clock=lambda: now[0])
        spent = []
        for i, jump in enumerate((0, -86_400, 2 * 86_400, 3600, -7200)):
            at = int(now[0] * 1e6)
            attempt = await ledger.reserve(intent(f"r{i}", at_us=at, estimate_nano=100))
            now[0] += jump
            await ledger.settle(attempt, Outcome("settled", "m", Usage(5), 10, "v"))
            answered = row(f"r{i}", at_us=int(now[0] * 1e6), source="frontier", cost_nano=10, total_us=900)
            await ledger.record([answered])
            spent.append(ledger.spent_today_nano())
        ledger.close()
        return spent

    assert all(0 <= nano <= 50 for nano in asyncio.run(main()))
    assert [f for f in verify(tmp_path / "l.db", clock=lambda: now[0]) if f.severity == "error"] == []
    db = connect_readonly([tmp_path / "l.db"])
    assert [name for (name,) in db.execute("SELECT request_id FROM attempts ORDER BY id")] == [
        f"r{i}" for i in range(5)
    ]
    assert db.execute("SELECT sum(nano) FROM spend").fetchone() == (50,)
    db.close()
    report = build([tmp_path / "l.db"])
    assert (report.inputs, report.days >= 0, report.spend.settled_nano) == (5, True, 50)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_torn_wal_costs_the_last_rows_and_never_the_books(
    tmp_path: Path, row: Make, intent: Make, damage: str
) -> None:
    """As a power cut may leave it. What is whole is read, the next start writes on, nothing is deleted."""
    path, torn = tmp_path / "l.db", tmp_path / "torn.db"

    async def main() -> None:
        ledger = Ledger.open(path)
        for i in range(40):
            attempt = await ledger.reserve(intent(f"r{i}", estimate_nano=7))
            await ledger.settle(attempt, Outcome("settled", cost_nano=5))
            await ledger.record([row(f"r{i}", source="frontier", cost_nano=5, total_us=10**12)])
        shutil.copy(path, torn)
        wal = bytearray(path.with_name("l.db-wal").read_bytes())
        half = len(wal) // 2 + 1000
        if damage == "flipped":
            wal[half : half + 64] = os.urandom(64)
        else:
            del wal[half if damage == "cut" else 0 :]
        torn.with_name("torn.db-wal").write_bytes(wal)
        ledger.close()
        try:
            again = Ledger.open(torn)
        except LedgerError:  # without its log the file may be as empty as before the first commit
            assert damage == "emptied"
            return
        await again.record([row("new")])
        again.close()

    asyncio.run(main())
    assert [f for f in verify(torn) if f.severity == "error"] == []
    with sqlite3.connect(torn) as db:
        rows = [name for (name,) in db.execute("SELECT request_id FROM inputs ORDER BY rowid")]
    db.close()
    assert rows[:-1] == [f"r{i}" for i in range(len(rows) - 1)]
    assert rows[-1] == "new"
    assert len(rows) > 5 or damage == "emptied"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**20)), min_size=1, max_size=40))
def test_rows_and_calls_sum_to_the_same_nano_dollar(calls: list[tuple[int, int]]) -> None:
    """Whatever was paid: inputs, attempts, days, tasks and hours have one sum, and it is Python's."""

    async def main(path: Path) -> None:
        ledger = Ledger.open(path, clock=lambda: 1e9)

        async def call(i: int, paid: int, local: int) -> None:
            at = 10**15 + i * 10**9
            attempt = await ledger.reserve(Intent(f"r{i}", 0, at, "t", "k", "p", "m", 2**41))
            await ledger.settle(attempt, Outcome("settled", "m", Usage(5), paid, "v"))
            cost = paid + local
            await ledger.record([InputRow(f"r{i}", 0, at, "t", "k", "frontier", cost_nano=cost, local_nano=local)])

        await asyncio.gather(*(call(i, *nano) for i, nano in enumerate(calls)))
        ledger.close()

    with tempfile.TemporaryDirectory() as folder:
        path, paid = Path(folder) / "l.db", sum(paid for paid, _ in calls)
        asyncio.run(main(path))
        for rolled in (False, True):
            if rolled:
                compact(path, before_us=2**62, clock=lambda: 2e9, rest=lambda _: None)
            db = connect_readonly([path])
            for query in (
                "SELECT sum(n) FROM (SELECT cost_nano - local_nano AS n FROM inputs"
                " UNION ALL SELECT cost_nano - local_nano FROM input_hours)",
                "SELECT sum(n) FROM (SELECT cost_nano AS n FROM attempts"
                " UNION ALL SELECT cost_nano FROM attempt_hours)",
                "SELECT sum(nano) FROM spend",
                "SELECT sum(nano) FROM spend_by WHERE scope = 'task'",
            ):
                assert db.execute(query).fetchone() == (paid,)
            db.close()
            assert [f for f in verify(path) if f.severity == "error"] == []


@pytest.mark.parametrize("how", ["vacuum", "backup"])
def test_a_backup_of_a_live_ledger_is_whole(tmp_path: Path, process: Make, how: str) -> None:
    """While another process writes as fast as it can; as docs/ledger.md says to do it."""
    path, copy = tmp_path / "l.db", tmp_path / "backup.db"
    child = process(WRITER, str(path), "b")
    for _ in range(100):
        child.stdout.readline()
    source = sqlite3.connect(path, isolation_level=None)
    if how == "vacuum":
        source.execute("VACUUM INTO ?", (str(copy),))
    else:
        target = sqlite3.connect(copy)
        source.backup(target)
        target.close()
    source.close()
    assert child.poll() is None
    child.kill()
    assert [f for f in verify(copy) if f.severity == "error"] == []
    db = connect_readonly([copy])
    assert db.execute("SELECT count(*) FROM inputs").fetchone()[0] > 20
    db.close()


def test_an_input_of_a_request_that_is_missing_is_pointed_out(books: Make, row: Make, noon: int) -> None:
    """Once a batch job would have written it."""
    path = books([row("whole"), row("whole", index=1), row("part", index=1), row("part", index=2)])
    assert verify(path, clock=lambda: noon / 1e6 + 3600) == []
    (found,) = verify(path, clock=lambda: noon / 1e6 + 27 * 3600)
    assert (found.severity, found.check, "such as part" in found.detail) == ("note", "gap", True)
