"""The command line: one file per command, each importing what it needs only when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moe_probe import __version__, output
from moe_probe.cli import check, compare, demo, env, export, ls, mmlu, record, report
from moe_probe.errors import MoeProbeError

_HELP = """Show how a Mixture-of-Experts language model really uses its experts.

`record` runs an evaluation and writes a trace; every other command reads traces.

Exit codes: 0 complete; 1 failed, or fewer tokens recorded than the model ran, or a check failed;
2 wrong usage; 130 interrupted (what was recorded is kept and can be resumed).
"""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    # Plain help: styled help splits option names by escape codes where a CI forces colour.
    rich_markup_mode=None,
    # A traceback with locals could print a secret.
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # lm-eval spells its options with underscores; both spellings work here.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)
app.command("record")(record.record)
app.command("report")(report.report)
app.command("check")(check.check)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("ls")(ls.list_names)
app.command("env")(env.show_environment)
app.command("demo")(demo.demo)
app.add_typer(mmlu.app, name="mmlu")


def _print_version(value: bool) -> None:
    if value:
        output.result(f"moe-probe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Show it."),
    ] = False,
) -> None:
    # It loads no library that needs much.
    if context.invoked_subcommand != "env":
        from moe_probe.memory import refuse_low_limits

        refuse_low_limits()


def main() -> None:
    """Run the command line; a failure a user can act on is one sentence on stderr."""
    try:
        app()
    except MoeProbeError as error:
        output.error(str(error))
        sys.exit(error.exit_code)
    except (MemoryError, ImportError, RuntimeError) as error:
        from moe_probe.memory import lack_of_memory

        cause = lack_of_memory(error)
        if cause is None:
            raise
        output.error(
            f"Memory ran out{': ' + cause if cause else ''}. Use a machine with more memory, or "
            "fewer --threads where the command has them."
        )
        sys.exit(1)
