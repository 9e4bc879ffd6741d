"""How many requests a second a machine's model sustains: threads / mean model time of a text, as the ledger has it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from cost.crossover import Hardware

LATEST = 100_000  # texts that the mean is taken over, at most: a machine's pace needs no more
THREADS = 2  # where the ledger does not say: the default box has two cores
CPU_ASSUMED = 500.0  # requests a second of that box, where nothing was measured
DEFAULTS = (
    Hardware("CPU box", 0.0816, 0, "list price of a 2-vCPU m7g.large"),
    # The GPU would do more; one Python front end does not.
    Hardware("L4 GPU", 0.805, 2000, "list price of a g6.xlarge; capacity assumed, not measured"),
)


class Pace(msgspec.Struct, frozen=True):
    """What a ledger measured: `mean_us` a text on each of `threads` threads."""

    mean_us: float
    threads: int
    device: str
    told: str  # on which machine, for people
    usd_per_hour: float | None = None


def pace(db: sqlite3.Connection, since: int) -> Pace | None:
    """Of the machine that answered last; restarts on an equal one count as one. None: nothing ran locally.

    `db` is `schema.connect_readonly`'s view. More threads than cores add nothing on a CPU.
    """
    latest, found = -1, None
    for (ledger,) in db.execute("SELECT DISTINCT ledger FROM machines WHERE ledger >= 0").fetchall():
        row = db.execute(
            f"""SELECT max(m.started_us), avg(i.local_us), m.threads, m.device, m.cores, m.engine, m.usd_per_hour
            FROM (SELECT *, lead(started_us, 1, {2**62}) OVER (ORDER BY started_us, pid) AS ended_us
            FROM machines WHERE ledger = ?) m CROSS JOIN (SELECT at_us, local_us
            FROM l{int(ledger)}.inputs WHERE at_us >= ? AND local_us > 0 ORDER BY at_us DESC LIMIT {LATEST}) i
            ON i.at_us >= m.started_us AND i.at_us < m.ended_us
            GROUP BY 3, 4, 5, 6, 7 ORDER BY 1 DESC LIMIT 1""",  # noqa: S608 - numbers of ours
            (ledger, since),
        ).fetchone()
        if row is not None and row[0] > latest:
            latest, mean_us, threads, device, cores, engine, usd = row
            used = min(threads, cores) if device == "cpu" else threads
            found = Pace(mean_us, used, device, f"with {engine} on {device}, {cores} cores", usd)
    if found is not None:
        return found
    (mean_us,) = db.execute("SELECT avg(local_us) FROM inputs WHERE at_us >= ? AND local_us > 0", (since,)).fetchone()
    told = f"here; {THREADS} threads are assumed, the ledger does not say what ran it"
    return None if mean_us is None else Pace(mean_us, THREADS, "cpu", told)


def machines(db: sqlite3.Connection, since: int, wanted: Sequence[Hardware] | None) -> list[Hardware]:
    """`wanted`, or else the machine that measured (if its price is known) and the defaults, each with a capacity.

    One without is taken for the machine that measured. The default CPU box has two cores, whatever measured it.
    """
    measured = pace(db, since)
    if wanted is None:
        wanted = DEFAULTS
        if measured is not None and measured.usd_per_hour is not None:
            own = Hardware("measured machine", measured.usd_per_hour, 0, "price as noted in the ledger")
            wanted = (own, *DEFAULTS)
    return [machine if machine.requests_per_second > 0 else _with_capacity(machine, measured) for machine in wanted]


def _with_capacity(machine: Hardware, measured: Pace | None) -> Hardware:
    default = machine is DEFAULTS[0]
    if measured is None or (default and measured.device != "cpu"):
        why = "nothing ran locally here" if measured is None else "no CPU ran the model here"
        return _known(machine, CPU_ASSUMED, f"capacity assumed: {why}")
    threads = THREADS if default else measured.threads
    basis = f"{threads} threads / {measured.mean_us / 1000:.2f} ms of model time a text, as measured {measured.told}"
    return _known(machine, threads * 1e6 / measured.mean_us, f"capacity {basis}")


def _known(machine: Hardware, rate: float, basis: str) -> Hardware:
    return Hardware(machine.name, machine.usd_per_hour, rate, f"{machine.basis}; {basis}")
