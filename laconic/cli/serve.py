"""`laconic serve`: print the command that serves a model in its engine."""

from typing import Annotated

import typer

from laconic.cli.options import JsonOption
from laconic.cli.terminal import show_result, silence_libraries


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A GGUF file, or a folder that `laconic export` wrote.")
    ],
    runtime: Annotated[str, typer.Option(metavar="llama.cpp|vllm", help="The engine that serves MODEL.")],
    port: Annotated[int, typer.Option(metavar="N", help="The port on this machine.")] = 8000,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="The largest number of tokens of a question with its answer. Without it, that of MODEL, up to 4096.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the command that serves MODEL over HTTP, for clients of OpenAI's interface. It starts nothing."""
    silence_libraries()
    from laconic.api.serve import serve_command

    show_result(serve_command(model, runtime, port=port, context=context), json)
