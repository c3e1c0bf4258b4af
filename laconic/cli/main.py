"""The program `laconic`: its verbs, and what becomes of an error: one sentence, exit status 2; 130 for Ctrl-C."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated

import typer
from pydantic import ValidationError

from laconic.cli.compress import compress
from laconic.cli.demo import demo
from laconic.cli.evaluate import evaluate
from laconic.cli.export import export
from laconic.cli.group import is_first, joined, on_rank_zero, sync_errors
from laconic.cli.inspect import inspect
from laconic.cli.methods import methods
from laconic.cli.once import Once
from laconic.cli.report import report
from laconic.cli.run import run
from laconic.cli.study import study
from laconic.cli.terminal import quiet
from laconic.cli.version import show_version
from laconic.errors import LONGEST_SENTENCE, UserError, must_be, shortened
from laconic.interrupted import INTERRUPTED, SAID
from laconic.wording import in_words

MISTAKE = 2

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
    """Make a transformer language model smaller and faster, and say what that cost."""


# Of several processes the first alone does what is not shared out.
for verb in (
    on_rank_zero(demo),
    compress,
    run,
    on_rank_zero(evaluate),
    on_rank_zero(export),
    on_rank_zero(inspect),
    on_rank_zero(study),
    on_rank_zero(report),
    on_rank_zero(methods),
):
    app.command(cls=Once)(verb)


def main() -> None:
    """Run the program and exit."""
    sys.exit(status(sys.argv[1:]))


def status(arguments: Sequence[str]) -> int:
    """Run the program with `arguments`; the exit status."""
    try:
        with joined():
            code = _status(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:
            # The reader of stdout has left, as `head` does; closing it keeps Python from complaining at exit.
            sys.stderr.close()
            return 1
        return _complain(_of_the_system(error))
    # Most often typer has made a status of it.
    if code == INTERRUPTED and is_first():
        sys.stderr.write(SAID)
    return code


def _status(arguments: Sequence[str]) -> int:
    """What every process of a group has alike, and the first tells: its end, or a mistake of the user's."""
    try:
        with sync_errors(), _one_voice(), quiet():
            return app(list(arguments), standalone_mode=False, prog_name="laconic") or 0
    except UserError as error:
        return _complain(str(error))
    except typer.TyperException as error:
        # The library's own sentences: an unknown option, a missing argument. Its help has none, and is printed already.
        return _complain(_of_an_option(error)) if str(error) else MISTAKE


@contextmanager
def _one_voice() -> Iterator[None]:
    """Within the block stdout is the first process's."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_first() else nowhere):
        yield


def _of_an_option(error: typer.TyperException) -> str:
    """The library's sentence; where a value is no number, or out of range, one with the value."""
    cause = error.__cause__
    if not isinstance(error, typer.BadParameter) or not isinstance(cause, ValidationError) or error.param is None:
        return error.format_message()
    problem = cause.errors(include_url=False)[0]
    if problem["type"] == "value_error":
        # A choice: its own sentence has the value.
        return error.format_message()
    place = error.param.get_error_hint().replace("'", "")
    return str(must_be(place, in_words(problem["msg"]), problem["input"]))


def _complain(sentence: str) -> int:
    if is_first():
        sys.stderr.write(f"{' '.join(shortened(sentence, LONGEST_SENTENCE).split())}\n")
    return MISTAKE


def _of_the_system(error: OSError) -> str:
    reason = error.strerror or str(error)
    where = f"'{error.filename}': " if error.filename else ""
    remedy = " Free some space or write elsewhere." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{where}{reason}.{remedy}"
