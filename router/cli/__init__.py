"""The `crossover` command. Each subcommand is a module of its own, imported when it is called: `--help` is instant."""

from __future__ import annotations

import importlib
import sys

import click

#: name -> (module in this package, one line for `crossover --help`). The function in the module has the command's name.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Run the service."),
    "demo": ("demo", "See all of it work: Redis, a simulated frontier, the service, sample traffic, the report."),
    "check": ("check", "Every problem of a config at once; --live asks the providers too."),
    "classify": ("classify", "Classify a text or a file, in process or through a service."),
    "learn": ("learn", "Train a task's head from your own labels."),
    "compare": ("compare", "The cheapest adequate model, as a measurement; prompt injections tried."),
    "report": ("report", "Cost, latency, savings, and the volume at which your own model pays."),
    "cache": ("cache", "Look into the response cache; purge it."),
    "ledger": ("ledger", "The books: show a request, verify, roll up, export, reconcile."),
    "simulate-frontier": ("simulate", "A stand-in that speaks the Anthropic and OpenAI wire formats."),
}


class LazyGroup(click.Group):
    """Lists commands from the table above without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"router.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crossover-router", prog_name="crossover")
def cli() -> None:
    """Classify text with a cache, your own model and a frontier API, and see when your own model pays."""


def main() -> None:
    """Entry point of the console script. Exit codes: 0 fine, 1 a finding, 2 usage or config."""
    cli(prog_name="crossover")
    sys.exit(0)
