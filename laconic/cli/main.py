"""The program `laconic`: its verbs and its exit status, which is 2 after a mistake of the user, 130 after Ctrl-C."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated

import typer
from pydantic import ValidationError

from laconic.cli import INTERRUPTED, INTERRUPTED_MESSAGE
from laconic.cli.advise import advise
from laconic.cli.compress import compress, run
from laconic.cli.demo import demo
from laconic.cli.evaluate import evaluate
from laconic.cli.export import export
from laconic.cli.inspect import inspect
from laconic.cli.methods import methods
from laconic.cli.options import Verb, show_version
from laconic.cli.serve import serve
from laconic.cli.study import report, study
from laconic.cli.terminal import is_rank_zero, on_rank_zero, process_group, quiet, sync_errors
from laconic.errors import LONGEST_SENTENCE, UserError, must_be, truncate
from laconic.files import FULL, system_reason

MISTAKE = 2
PLAIN_TYPES = {
    "a valid tuple": "a list",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid dictionary": "a mapping",
    "a dictionary": "a mapping",
    ", got a number with a fractional part": "",
}
"""Names of types in the messages of pydantic, and the words for them in errors of laconic."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the versions, and exit.")
    ] = False,
) -> None:
    """Make a transformer language model smaller and faster, and measure the loss of quality."""


# Verbs that do not divide their work run in the process of rank 0 only.
for verb in (
    on_rank_zero(demo),
    compress,
    run,
    on_rank_zero(evaluate),
    on_rank_zero(export),
    on_rank_zero(serve),
    on_rank_zero(inspect),
    on_rank_zero(advise),
    on_rank_zero(study),
    on_rank_zero(report),
    on_rank_zero(methods),
):
    app.command(cls=Verb)(verb)


def main() -> None:
    """Run the program and exit."""
    sys.exit(status(sys.argv[1:]))


def status(arguments: Sequence[str]) -> int:
    """Run the program with `arguments`, and return its exit status."""
    try:
        with process_group():
            code = _run(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except UserError as error:
        return _print_error(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:
            # The reader of stdout has ended, such as `head`. Python would report that at exit if stderr were open.
            sys.stderr.close()
            return 1
        return _print_error(_system_message(error))
    # Usually typer has converted Ctrl-C to this status.
    if code == INTERRUPTED and is_rank_zero():
        sys.stderr.write(INTERRUPTED_MESSAGE)
    return code


def _run(arguments: Sequence[str]) -> int:
    """Run the verb in every process of a group; the first one prints a mistake of the user."""
    try:
        with sync_errors(), _first_prints(), quiet():
            return app(list(arguments), standalone_mode=False, prog_name="laconic") or 0
    except UserError as error:
        return _print_error(str(error))
    except typer.TyperException as error:
        # An unknown option or a missing argument. If the parser printed help, there is no message.
        return _print_error(_option_message(error)) if str(error) else MISTAKE


@contextmanager
def _first_prints() -> Iterator[None]:
    """Within the block only the first process writes to stdout."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_rank_zero() else nowhere):
        yield


def _option_message(error: typer.TyperException) -> str:
    """The message of the parser, or one that quotes the value if it is not a number or out of range."""
    cause = error.__cause__
    if not isinstance(error, typer.BadParameter) or not isinstance(cause, ValidationError) or error.param is None:
        return error.format_message()
    problem = cause.errors(include_url=False)[0]
    if problem["type"] == "value_error":
        # The message of a wrong choice quotes the value already.
        return error.format_message()
    place = error.param.get_error_hint().replace("'", "")
    return str(must_be(place, in_words(problem["msg"]), problem["input"]))


def in_words(message: str) -> str:
    """The requirement in a message of pydantic, in words instead of names of Python types.

    >>> in_words("Input should be a valid integer, unable to parse string as an integer")
    'a whole number'
    """
    requirement = message[:1].lower() + message[1:]
    requirement = requirement.removeprefix("input should be ").partition(", unable to ")[0]
    for python, words in PLAIN_TYPES.items():
        requirement = requirement.replace(python, words)
    return requirement.partition(" or an instance of ")[0]


def _print_error(sentence: str) -> int:
    if is_rank_zero():
        sys.stderr.write(f"{' '.join(truncate(sentence, LONGEST_SENTENCE).split())}\n")
    return MISTAKE


def _system_message(error: OSError) -> str:
    where = f"'{error.filename}': " if error.filename else ""
    remedy = " Free some space or write elsewhere." if error.errno in FULL else ""
    return f"{where}{system_reason(error)}.{remedy}"
