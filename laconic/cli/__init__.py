"""The command line: its verbs, and Ctrl-C while modules are imported, which takes seconds.

Internal: it may change with any version.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The conventional exit status after Ctrl-C."""
INTERRUPTED_MESSAGE = "Interrupted.\n"


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Within the block, Ctrl-C ends the program `laconic` with one line. Other programs get a KeyboardInterrupt.

    Raises:
        SystemExit: Ctrl-C was pressed in the program `laconic`.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not _is_program(sys.argv[0] if sys.argv else ""):
            raise
        sys.stderr.write(INTERRUPTED_MESSAGE)
        sys.exit(INTERRUPTED)


def _is_program(script: str) -> bool:
    """Whether Python was started as `python -m laconic` or by the script `laconic`.

    Args:
        script: `sys.argv[0]`. It is "-m" while Python imports the package of the option `-m`.
    """
    *folders, name = script.replace("\\", "/").split("/")
    by_module = name == "-m" or (name == "__main__.py" and folders[-1:] == ["laconic"])
    return by_module or name in ("laconic", "laconic.exe", "laconic-script.py")
