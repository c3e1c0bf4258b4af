"""Handle Ctrl-C while modules are imported, which takes seconds: the command line then ends with a short message."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The conventional exit status after Ctrl-C."""
SAID = "Interrupted.\n"


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Within the block, Ctrl-C ends the program `laconic` with one line. Other programs get a KeyboardInterrupt.

    Raises:
        SystemExit: Ctrl-C was pressed in the program `laconic`.
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

    `started` is `sys.argv[0]`; it is "-m" while Python imports the package of the option `-m`.
    """
    *folders, name = started.replace("\\", "/").split("/")
    by_module = name == "-m" or (name == "__main__.py" and folders[-1:] == ["laconic"])
    return by_module or name in ("laconic", "laconic.exe", "laconic-script.py")
