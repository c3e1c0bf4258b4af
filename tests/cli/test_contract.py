"""The verbs and options are frozen: whoever adds one changes this list, and says why."""

from typer.main import get_command

from laconic.cli.main import app

VERBS = {
    "demo": {"--output", "-o", "--json"},
    "compress": {
        "MODEL", "--output", "-o", "--method", "--keep", "--allocate", "--targets", "--data", "--samples", "--seed",
        "--max-length", "--batch-size", "--sequential", "--anchored", "--allow-dense", "--stream",
        "--label-order", "--device", "--dry-run", "--json",
    },
    "run": {"RECIPE", "--output", "-o", "[KEY=VALUE]…", "--plan", "--device", "--dry-run", "--list", "--json"},
    "evaluate": {
        "MODEL", "--tasks", "--against", "--limit", "--batch", "--length", "--runtime", "--context", "--dtype",
        "--stream", "--label-order", "--device", "--json",
    },
    "export": {"MODEL", "--to", "--output", "-o", "--tasks", "--limit", "--label-order", "--no-cache", "--json"},
    "serve": {"MODEL", "--runtime", "--port", "--context", "--json"},
    "advise": {"MODEL", "--runtime", "--batch", "--length", "--json"},
    "inspect": {"MODEL", "--output", "-o", "--data", "--json"},
    "study": {
        "STUDY", "[KEY=VALUE]…", "--output", "-o", "--executor", "--workers", "--address", "--retry-failed",
        "--dry-run", "--device", "--list", "--json",
    },
    "report": {"DIR", "--output", "-o", "--query", "--json"},
    "methods": {"[NAME]", "--json"},
}  # fmt: skip


def test_no_verb_and_no_option_comes_or_goes_unnoticed() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert {name: _names(verb) for name, verb in verbs.items()} == VERBS


def _names(verb: object) -> set[str]:
    """Options by all their names, arguments by what the help calls them."""
    parameters = verb.params  # type: ignore[attr-defined]
    return {name for part in parameters for name in (part.opts if part.opts[0][0] == "-" else [part.metavar])}
