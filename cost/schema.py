# ruff: noqa: S608 - the parts of the queries are names and constants of this module
"""The ledger's file: its tables, how it is opened, how it grows.

SQLite in WAL mode. `attempts.cost_nano` always holds what an attempt counts with: its upper bound while it is reserved
or uncertain, its cost once settled, 0 if it was not billed. So a day's spending is their sum, and `spend` keeps that
sum, updated in the same transaction, for a budget check that reads one row. `spend_by` keeps it by task and by tenant.
Old rows become hours (`cost.rollup`): then a day's spending is the sum of both.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from cost import rollup
from cost.types import LedgerError, LedgerUnwritable

APPLICATION_ID = 0x43524F53  # "CROS": tells our file from another program's database
VERSION = 4
DAY_US = 86_400_000_000

_V1 = (
    """CREATE TABLE inputs (
        request_id TEXT NOT NULL, idx INTEGER NOT NULL, at_us INTEGER NOT NULL, tenant TEXT NOT NULL,
        task TEXT NOT NULL, source TEXT NOT NULL, model TEXT NOT NULL, label TEXT, confidence REAL,
        answered_by TEXT, cache_tier TEXT, degraded TEXT, error TEXT, truncated INTEGER NOT NULL,
        coalesced INTEGER NOT NULL, tokens INTEGER NOT NULL,
        text_digest BLOB NOT NULL, cost_nano INTEGER NOT NULL, local_nano INTEGER NOT NULL, saved_nano INTEGER NOT NULL,
        total_us INTEGER NOT NULL, cache_us INTEGER NOT NULL, queue_us INTEGER NOT NULL, local_us INTEGER NOT NULL,
        frontier_us INTEGER NOT NULL
    ) STRICT""",
    "CREATE UNIQUE INDEX inputs_request ON inputs (request_id, idx)",
    "CREATE INDEX inputs_at ON inputs (at_us)",
    """CREATE TABLE attempts (
        id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, idx INTEGER NOT NULL, at_us INTEGER NOT NULL,
        tenant TEXT NOT NULL, task TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL,
        estimate_nano INTEGER NOT NULL, cost_nano INTEGER NOT NULL, tokens INTEGER NOT NULL,
        answered_model TEXT NOT NULL DEFAULT '', input INTEGER, cache_read INTEGER, cache_write_5m INTEGER,
        cache_write_1h INTEGER, output INTEGER, estimated INTEGER, price_version TEXT NOT NULL DEFAULT '', error TEXT,
        latency_us INTEGER NOT NULL DEFAULT 0, settled_us INTEGER, pid INTEGER NOT NULL, pid_started_ms INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX attempts_request ON attempts (request_id, idx)",
    "CREATE INDEX attempts_at ON attempts (at_us)",
    "CREATE INDEX attempts_open ON attempts (pid) WHERE state = 'reserved'",
    "CREATE TABLE spend (day INTEGER PRIMARY KEY, nano INTEGER NOT NULL) STRICT",  # day: days since 1970-01-01, UTC
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_MACHINES = """CREATE TABLE machines (
        started_us INTEGER NOT NULL, pid INTEGER NOT NULL, threads INTEGER NOT NULL, device TEXT NOT NULL,
        cores INTEGER NOT NULL, engine TEXT NOT NULL, usd_per_hour REAL
    ) STRICT"""  # a row a process, from when on its model answered
_SPEND_BY = " UNION ALL ".join(
    f"SELECT at_us / {DAY_US}, '{scope}', {scope}, sum(cost_nano) FROM attempts GROUP BY 1, 3"
    for scope in ("task", "tenant")
)
_BUDGETS = (
    "ALTER TABLE attempts ADD COLUMN reasoning INTEGER",
    "ALTER TABLE attempts ADD COLUMN batch INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE attempts ADD COLUMN reply_id TEXT NOT NULL DEFAULT ''",
    """CREATE TABLE spend_by (
        day INTEGER NOT NULL, scope TEXT NOT NULL, name TEXT NOT NULL, nano INTEGER NOT NULL,
        PRIMARY KEY (day, scope, name)
    ) STRICT, WITHOUT ROWID""",  # scope: task or tenant
    f"INSERT INTO spend_by {_SPEND_BY}",
    # Triggers, because in a rolling restart the release before this one writes on, and knows nothing of the table.
    f"""CREATE TRIGGER attempts_reserved AFTER INSERT ON attempts BEGIN
        INSERT INTO spend_by VALUES (new.at_us / {DAY_US}, 'task', new.task, new.cost_nano),
            (new.at_us / {DAY_US}, 'tenant', new.tenant, new.cost_nano)
            ON CONFLICT (day, scope, name) DO UPDATE SET nano = nano + excluded.nano; END""",
    f"""CREATE TRIGGER attempts_settled AFTER UPDATE OF cost_nano ON attempts BEGIN
        UPDATE spend_by SET nano = nano + new.cost_nano - old.cost_nano WHERE day = new.at_us / {DAY_US}
            AND (scope, name) IN (VALUES ('task', new.task), ('tenant', new.tenant)); END""",
)
_MISSING = ", NULL AS reasoning, 0 AS batch, '' AS reply_id"  # of attempts, before version 3
_HOURS = tuple(rollup.table(raw) for raw in rollup.TABLES)
#: The n-th takes a file from version n to n + 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1, (_MACHINES,), _BUDGETS, _HOURS)


def connect(path: Path, *, busy_ms: int) -> sqlite3.Connection:
    """Open for writing, in autocommit mode; create (0600) or migrate as needed. Raises `LedgerError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=busy_ms / 1000)
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnwritable(f"the ledger {path} can't be opened for writing: {error}") from error
    try:
        version = _version(db, path)
        _use_wal(db, patience_s=busy_ms / 1000)
        db.execute("PRAGMA synchronous = NORMAL")
        if version < VERSION:
            _migrate(db, path)
    except sqlite3.Error as error:
        db.close()
        raise explained(path, error) from error
    except LedgerError:
        db.close()
        raise
    return db


def connect_readonly(paths: Sequence[Path]) -> sqlite3.Connection:
    """One view over one or more ledgers, live or not, in one snapshot, changing none.

    It has `inputs`, `attempts`, their hours, `spend`, `spend_by` and `machines`, whose column `ledger` is n for the
    n-th; that one's own tables are `ln.inputs` and so on. Older schemas are read as they are.

    Raises `LedgerError`: no such file, not a ledger, newer schema, more than ten files.
    """
    if not 1 <= len(paths) <= 10:
        raise LedgerError(f"1 to 10 ledgers can be read together, not {len(paths)}")
    db = sqlite3.connect(":memory:", uri=True, isolation_level=None, timeout=5)
    try:
        for i, path in enumerate(paths):
            db.execute("ATTACH ? AS " + f"l{i}", (_readable_uri(path),))
        db.execute("BEGIN")  # before the versions are read: a service may be bringing a file up to date
        versions = [db.execute(f"PRAGMA l{i}.user_version").fetchone()[0] for i in range(len(paths))]
        for table in ("inputs", "attempts", "spend"):
            union = " UNION ALL ".join(
                f"SELECT *{_MISSING if table == 'attempts' and version < 3 else ''} FROM l{i}.{table}"
                for i, version in enumerate(versions)
            )
            db.execute(f"CREATE TEMP VIEW {table} AS {union}")
        spend_by = " UNION ALL ".join(
            f"SELECT * FROM l{i}.spend_by" if version >= 3 else _SPEND_BY.replace("attempts", f"l{i}.attempts")
            for i, version in enumerate(versions)
        )
        db.execute(f"CREATE TEMP VIEW spend_by (day, scope, name, nano) AS {spend_by}")
        db.execute(_MACHINES)  # none, for ledgers from before there was such a table
        machines = ["SELECT -1 AS ledger, * FROM main.machines"]
        machines += [f"SELECT {i}, * FROM l{i}.machines" for i, version in enumerate(versions) if version >= 2]
        db.execute(f"CREATE TEMP VIEW machines AS {' UNION ALL '.join(machines)}")
        for statement, (hours, *_) in zip(_HOURS, rollup.TABLES.values(), strict=True):
            db.execute(statement)  # likewise
            known = ["main", *(f"l{i}" for i, version in enumerate(versions) if version >= 4)]
            union = " UNION ALL ".join(f"SELECT * FROM {name}.{hours}" for name in known)
            db.execute(f"CREATE TEMP VIEW {hours} AS {union}")
        db.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        db.close()
        raise explained(paths[0], error) from error
    except LedgerError:
        db.close()
        raise
    return db


def columns(table: str) -> dict[str, str]:
    """Of a table as it is today: name -> INTEGER, REAL, TEXT or BLOB."""
    db = sqlite3.connect(":memory:")
    try:
        for statement in (statement for step in MIGRATIONS for statement in step):
            db.execute(statement)
        return dict(db.execute("SELECT name, type FROM pragma_table_info(?)", (table,)).fetchall())
    finally:
        db.close()


def _readable_uri(path: Path) -> str:
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}; name one with --ledger, or start the service first")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        _check_readable(path, uri)
    except LedgerUnwritable:
        # WAL wants to create a -shm file, which a read-only folder refuses; a ledger at rest can do without.
        if path.with_name(path.name + "-wal").exists():
            raise
        uri += "&immutable=1"
        _check_readable(path, uri)
    return uri


def _check_readable(path: Path, uri: str) -> None:
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5)
    try:
        if _version(db, path) == 0:
            raise LedgerError(f"{path} is empty: no service has written to it yet")
    except sqlite3.Error as error:
        raise explained(path, error) from error
    finally:
        db.close()


def _version(db: sqlite3.Connection, path: Path) -> int:
    # One statement, one snapshot: another process may be creating the tables.
    application, version, tables = db.execute(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),"
        " (SELECT count(*) FROM sqlite_schema)"
    ).fetchone()
    if application != APPLICATION_ID and (tables or version):
        raise LedgerError(f"{path} is a database of another program; name another file for the ledger")
    if version > VERSION:
        raise LedgerError(
            f"the ledger {path} has schema {version}, this release reads up to {VERSION}: "
            "use the newer release, or another ledger file"
        )
    return int(version)


def _use_wal(db: sqlite3.Connection, *, patience_s: float) -> None:
    """Switching to WAL ignores the busy timeout when several processes do it at once, so it is tried again."""
    until = time.monotonic() + patience_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[_version(db, path) :]:  # read again: another process may have been first
            for statement in step:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def explained(path: Path, error: sqlite3.Error) -> LedgerError:
    """In words for people: can it be tried again, or is the file broken?"""
    if isinstance(error, sqlite3.OperationalError):
        return LedgerUnwritable(f"the ledger {path} can't be used now: {error}")
    return LedgerError(
        f"{path} is not a readable ledger ({error}). Nothing was changed; move it away to start a new one, "
        "or restore it from a backup"
    )
