"""The `bazaar` program: which commands there are, and how everything that goes wrong is said. Loads a command's module when it runs.

`bazaar --help` must stay cheap: nothing here may import a command module, let alone nats or rich.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("submitting", "run", "Run a script or a command on the market and fetch what it writes."),
    "submit": ("submitting", "submit_", "Submit a job and print its id."),
    "notebook": ("sessions", "notebook", "Jupyter on rented GPUs, at a local address."),
    "container": ("sessions", "container", "A container to connect to."),
    "open": ("sessions", "open_", "A running session, at a local address."),
    "close": ("sessions", "close", "End a session with its work saved."),
    "quote": ("quoting", "quote", "Who could run this, at what price. Nothing is written."),
    "ps": ("looking", "ps", "My jobs."),
    "show": ("looking", "show", "Everything about a job."),
    "why": ("explaining", "why", "Why a job waits, now or then, and what would change it."),
    "queue": ("looking", "queue", "What waits and what runs on the market."),
    "wait": ("following", "wait", "Wait until jobs have ended."),
    "logs": ("following", "logs", "What a job wrote."),
    "results": ("following", "results", "Fetch the files that a job left, and verify them."),
    "cancel": ("following", "cancel", "Cancel jobs."),
    "priority": ("waiting", "priority", "Give a queued job another priority."),
    "reprice": ("waiting", "reprice", "Change what a queued job may cost."),
    "extend": ("extending", "extend", "Give a job more run time."),
    "shell": ("reaching", "shell", "A shell inside a running job."),
    "forward": ("reaching", "forward", "Ports of a running job, at 127.0.0.1 of this machine."),
    "nodes": ("looking", "nodes", "The machines of the market."),
    "node": ("looking", "node", "One machine."),
    "offers": ("looking", "offers", "Cards on offer, filtered."),
    "top": ("watching", "top", "The market as it changes, in the terminal."),
    "events": ("telling", "events_", "The ledger, as it happens."),
    "join": ("joining", "join", "Join a market by the line that its operator sent."),
    "wallet": ("identity", "wallet", "Make, import and list wallets."),
    "login": ("identity", "login", "Let a session key speak for the wallet."),
    "org": ("organising", "org", "Organisations and their members."),
    "token": ("organising", "token", "Read tokens for the HTTP API."),
    "doctor": ("examining", "doctor", "Check everything that a job needs."),
    "config": ("caring", "config", "Settings, and where each comes from."),
    "completion": ("caring", "completion", "Shell completion."),
}
"""Name -> module in buyer_cli/commands, function in it, help line."""

EXIT_CODES_HELP = """
Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 identity or permission, 5 cannot be placed under these limits, 6 cannot reach the
market, 100 job failed, 101 not finished, 103 cancelled, 104 timed out, 105 expired in the queue, 130 interrupted.
"""


class LazyGroup(click.Group):
    """Knows the commands by name and loads a module only when its command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"buyer_cli.commands.{entry[0]}")
        command = getattr(module, entry[1])
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            nearest = get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(
                f"there is no command {args[0]!r}" + (f"; did you mean {nearest[0]}?" if nearest else ""), ctx
            ) from error


@click.group(cls=LazyGroup, epilog=EXIT_CODES_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gpubazaar", prog_name="bazaar")
def bazaar() -> None:
    """Buy GPU time: say what you need, see what it costs, run it, get the results."""


def main() -> None:
    """The entry point: runs a command and leaves with its exit code."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run a command; everything that goes wrong on purpose is said, never shown as a traceback."""
    try:
        result: Any = bazaar.main(arguments, prog_name="bazaar", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:  # `bazaar ps | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _explain(error, "--json" in arguments[: arguments.index("--")] if "--" in arguments else "--json" in arguments)


def _explain(error: Exception, as_json: bool) -> int:
    from buyer_cli.complaint import Complaint, from_market, from_spec
    from buyer_cli.printable import printable_lines
    from buyer_cli.spec import SpecError
    from events.errors import BazaarError

    match error:
        case Complaint():
            complaint = error
        case SpecError():
            complaint = from_spec(error)
        case BazaarError():
            complaint = from_market(error)
        case click.exceptions.NoArgsIsHelpError():
            sys.stderr.write(f"{error.format_message()}\n")
            return error.exit_code
        case click.UsageError():
            complaint = _usage(error)
        case _:  # ours: it must be seen whole
            sys.stderr.write(printable_lines("".join(traceback.format_exception(error))))
            return 1
    sys.stderr.write((complaint.for_programs() if as_json else complaint.for_people()) + "\n")
    return complaint.exit_code


def _usage(error: click.UsageError) -> Any:
    from difflib import get_close_matches

    from buyer_cli.complaint import USAGE, Complaint
    from buyer_cli.spec_keys import LATER

    path = error.ctx.command_path if error.ctx else "bazaar"
    hint = f"{path} --help"
    if isinstance(error, click.NoSuchOption):
        name, why = error.option_name, ""
        nearest = get_close_matches(name, error.possibilities or (), n=1, cutoff=0.75)
        if name.removeprefix("--") in LATER:
            why = "this version cannot do that yet"
        elif nearest:
            hint = f"did you mean {nearest[0]}?"
        elif path in {"bazaar run", "bazaar submit"}:
            hint = f"what belongs to the script stands after --: {path} SCRIPT -- {name}"
        return Complaint("usage", f"there is no option {name}", why, hint, exit_code=USAGE)
    message = error.format_message().rstrip(".")
    if message.startswith("Got unexpected extra argument") and path in {"bazaar run", "bazaar submit"}:
        hint = f"what belongs to the script stands after --: {path} SCRIPT -- ARGS"
    return Complaint("usage", message[:1].lower() + message[1:], "", hint, exit_code=USAGE)


if __name__ == "__main__":
    main()
