"""`laconic serve`: the command that serves a model in its engine."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike, fsdecode
from shutil import which
from typing import Any

from laconic.api.arguments import check_kinds
from laconic.api.results import Result
from laconic.errors import UserError, must_be, unknown
from laconic.files import expand_user
from laconic.report.tables import Table
from laconic.runtime.engine import ENGINES

LARGEST_PORT = 65535
CONTEXT = 4096
"""The largest context that is served unless another one is asked for; its cache is reserved at the start."""


@dataclass(frozen=True, repr=False, eq=False)
class ServeResult(Result):
    """The command that serves a model.

    Args:
        model: the file or folder that is served.
        runtime: the name of the engine.
        command: the program and its arguments.
        url: the address of the server, which takes questions as OpenAI's does.
        context: the largest number of tokens of a question with its answer.
        is_installed: whether this machine has the program.
    """

    model: str
    runtime: str
    command: Sequence[str]
    url: str
    context: int
    is_installed: bool

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic serve --json` prints."""
        return {**asdict(self), "command": list(self.command)}

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        return [self.to_dict()]

    def _headline(self) -> str:
        """The command, as a shell takes it."""
        return shlex.join(self.command)

    def _table(self) -> Table | None:
        return None

    def _notes(self) -> Sequence[str]:
        """An example of a question, and a sentence if the program is missing."""
        body = '{"prompt": "Once upon a time", "max_tokens": 32}'
        missing = f"This machine has no program '{self.command[0]}'."
        asked = f"Ask it: curl {self.url}/v1/completions -H 'Content-Type: application/json' -d '{body}'"
        return (asked,) if self.is_installed else (asked, missing)


def serve_command(
    model: str | PathLike[str], runtime: str, *, port: int = 8000, context: int | None = None
) -> ServeResult:
    """Make the command that serves a model. Nothing is started.

    Args:
        model: a file or folder in the format of the engine, such as `laconic export` writes.
        runtime: the engine: `llama.cpp` or `vllm`.
        port: the port of the server on this machine.
        context: the largest number of tokens of a question with its answer; None for that of the model, up to 4096.

    Raises:
        UserError: there is no such engine, the model is in another format, or the port or the context is out of range.

    Example:
        >>> serve_command("nowhere.gguf", "llama.cpp")
        Traceback (most recent call last):
        laconic.errors.UserError: There is no file or folder 'nowhere.gguf'; give ...
    """
    check_kinds(runtime=runtime, port=port, context=context)
    engine = ENGINES.get(runtime)
    if engine is None:
        raise unknown("runtime", runtime, ENGINES, "`laconic serve` has")
    if not 1 <= port <= LARGEST_PORT:
        raise must_be("port", f"from 1 to {LARGEST_PORT}", port)
    name = fsdecode(model)
    source = expand_user(name)
    # An engine without a server raises its error here, before the advice to export the model for it.
    engine.server(source, port, CONTEXT)
    if not source.exists():
        raise UserError(f"There is no file or folder '{name}'; give {engine.files}.")
    path = engine.find(source)
    if path is None:
        raise UserError(
            f"'{name}' is not in a format of {runtime}, which serves {engine.files}; export it first: "
            f"laconic export {shlex.quote(name)} --to {engine.target} -o OUT."
        )
    longest = engine.positions(path)
    if context is not None and (context < 1 or (longest is not None and context > longest)):
        raise must_be("context", f"from 1 to {longest or 'any number of'} tokens for '{name}'", context)
    context = min(longest or CONTEXT, CONTEXT) if context is None else context
    command = engine.server(path, port, context)
    url = f"http://127.0.0.1:{port}"
    return ServeResult(str(path), runtime, command, url, context, which(command[0]) is not None)
