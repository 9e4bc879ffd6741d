"""`crossover ledger`: the books of one request, whether they add up, and what else is done with them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click

from router.cli.books_tables import moment, print_reconciled, print_rows
from router.cli.options import books, json_option, ledger_option, reading_option, stop
from router.cli.report import Since


@click.group()
def ledger() -> None:
    """The books: show a request, verify, roll up, export, reconcile."""


@ledger.command()
@click.argument("request_id", metavar="ID")
@json_option
@ledger_option
@reading_option
def show(request_id: str, as_json: bool, ledgers: tuple[Path, ...], config: Path | None) -> None:
    """Every row and every paid call of the request ID. Exits 1 if there is none."""
    import msgspec

    from cost.retention import rolled_up_until
    from cost.schema import connect_readonly
    from cost.types import LedgerError

    try:
        db = connect_readonly(ledgers or [books(config).ledger])
    except LedgerError as error:
        stop(str(error))
    found = {}
    for table in ("inputs", "attempts"):
        rows = db.execute(f"SELECT * FROM {table} WHERE request_id = ? ORDER BY idx", (request_id,))  # noqa: S608
        columns = [column for column, *_ in rows.description]
        found[table] = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
    until = rolled_up_until(db)
    db.close()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif any(found.values()):
        print_rows(found)
    if not any(found.values()):
        older = "" if until is None else f"; what is older than {moment(until)} is kept as hourly sums, without ids"
        stop(f"the ledger has nothing of {request_id!r}{older}", code=1)


@ledger.command()
@json_option
@ledger_option
@reading_option
def verify(as_json: bool, ledgers: tuple[Path, ...], config: Path | None) -> None:
    """Do the books add up? Works on a live file, changes nothing. Exits 1 if something is wrong."""
    import msgspec

    from cost.schema import connect_readonly
    from cost.types import LedgerError
    from cost.verify import verify as check

    wrong = False
    report = {}
    paths = ledgers or (books(config).ledger,)
    for path in paths:
        if not path.exists():  # said as by `report`
            try:
                connect_readonly([path]).close()
            except LedgerError as error:
                stop(str(error))
    for path in paths:
        findings = report[str(path)] = check(path)
        wrong |= any(finding.severity == "error" for finding in findings)
        if not as_json:
            for finding in findings:
                click.echo(f"{finding.severity}: {finding.check}: {finding.detail}")
            errors = sum(finding.severity == "error" for finding in findings)
            found = f"{errors} finding{'s' if errors > 1 else ''}"
            click.echo(f"{path}: {found if errors else 'the books add up'}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    sys.exit(1 if wrong else 0)


@ledger.command()
@click.option(
    "--before",
    type=Since(),
    metavar="30d|DATE",
    help="Rows older than that (a span, or a UTC date). [default: config's]",
)
@json_option
@ledger_option
@reading_option
def compact(before: int | None, as_json: bool, ledgers: tuple[Path, ...], config: Path | None) -> None:
    """Old rows become hourly sums, now; a running service does so by itself. Those of today and yesterday stay."""
    import msgspec

    from cost.retention import REST
    from cost.retention import compact as roll_up
    from cost.schema import DAY_US, connect_readonly
    from cost.types import LedgerError

    if before is None:
        days = books(config).loaded.config.ledger.retention_days
        if days == 0:
            stop("[ledger] retention_days is 0: all rows are kept; say --before DATE to roll up all the same")
        before = int(time.time() * 1e6) - days * DAY_US
    done = {}
    for path in ledgers or (books(config).ledger,):
        try:
            connect_readonly([path]).close()  # `compact` would make a file where there is none
            done[str(path)] = moved = roll_up(path, before_us=before, rest=lambda seconds: time.sleep(seconds / REST))
        except LedgerError as error:
            stop(str(error))
        if not as_json:
            click.echo(f"{path}: {moved.inputs} inputs and {moved.attempts} paid calls are hourly sums now")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(done), indent=2).decode())


@ledger.command()
@click.option("--format", "kind", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True)
@click.option("--table", type=click.Choice(["inputs", "attempts"]), default="inputs", show_default=True)
@click.option("--since", type=Since(), metavar="7d|DATE", help="From then on (a span, or a UTC date).")
@click.option("--until", type=Since(), metavar="7d|DATE", help="Only what is before that.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file; - for stdout (CSV).")
@ledger_option
@reading_option
def export(
    kind: Literal["csv", "parquet"],
    table: Literal["inputs", "attempts"],
    since: int | None,
    until: int | None,
    output: Path,
    ledgers: tuple[Path, ...],
    config: Path | None,
) -> None:
    """Rows as CSV or Parquet: one an input, or one a paid call. What was rolled up is not among them."""
    from cost.export import to_csv, to_parquet
    from cost.types import LedgerError

    paths = ledgers or (books(config).ledger,)
    window = {"since_us": since, "until_us": until}
    if output == Path("-"):
        if kind == "parquet":
            stop("Parquet needs a file: name one with -o")
        with _failing(output, LedgerError):
            to_csv(paths, sys.stdout, table=table, **window)
        return
    part = output.with_name(f".{output.name}.part")  # whoever reads the file finds it whole
    try:
        with _failing(output, LedgerError):
            if kind == "csv":
                with part.open("w", newline="", encoding="utf-8") as file:
                    count = to_csv(paths, file, table=table, **window)
            else:
                count = to_parquet(paths, part, table=table, **window)
            part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"{output}: {count} rows", err=True)


@ledger.command()
@click.argument("exports", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    metavar="PERCENT",
    help="Of what the provider says, how much may differ.",
)
@json_option
@ledger_option
@reading_option
def reconcile(
    exports: tuple[Path, ...], tolerance: float, as_json: bool, ledgers: tuple[Path, ...], config: Path | None
) -> None:
    """The ledger beside providers' usage and cost exports FILE..., by day and model. Exits 1 on a difference that
    nothing in the ledger explains. docs/ledger.md has the formats."""
    import msgspec

    from cost.reconcile import reconcile as compare
    from cost.types import LedgerError
    from cost.usage_exports import read

    try:
        billed = [line for path in exports for line in read(path)]
        found = compare(list(ledgers or (books(config).ledger,)), billed, tolerance=tolerance / 100)
    except LedgerError as error:
        stop(str(error))
    if as_json:
        told = {**msgspec.to_builtins(found), "holds": found.holds}
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        print_reconciled(found)
    sys.exit(0 if found.holds else 1)


@contextmanager
def _failing(output: Path, of_the_ledger: type[Exception]) -> Iterator[None]:
    try:
        yield
    except of_the_ledger as error:
        stop(str(error))
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        stop(f"{output} can't be written: {error}")


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
