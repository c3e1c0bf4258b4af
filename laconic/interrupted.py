"""Ctrl-C while modules are imported, which takes seconds: the program ends with a line, a library's caller sees it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit status that a shell expects of a program that Ctrl-C has ended."""
SAID = "Interrupted.\n"


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Within the block Ctrl-C ends the program `laconic` with one line; in any other program it is raised as usual.

    Raises:
        SystemExit: Ctrl-C was pressed, and the program is laconic.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not _is_the_program(sys.argv[0] if sys.argv else ""):
            raise
        sys.stderr.write(SAID)
        sys.exit(INTERRUPTED)


def _is_the_program(started: str) -> bool:
    """Whether Python was started as `python -m laconic` or by the script `laconic`.

    While the package of `-m` is imported, Python has only `-m` to tell of it.
    """
    *folders, name = started.replace("\\", "/").split("/")
    by_module = name == "-m" or (name == "__main__.py" and folders[-1:] == ["laconic"])
    return by_module or name in ("laconic", "laconic.exe", "laconic-script.py")
