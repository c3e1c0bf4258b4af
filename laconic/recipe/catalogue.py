"""Write `laconic/catalogue.json` from the classes of methods and steps.

Run `python -m laconic.recipe.catalogue` after adding or changing a method, a step or a parameter.
"""

import json
from dataclasses import asdict
from pathlib import Path

from laconic.catalogue import PATH, STEP, Entry
from laconic.compress import Step
from laconic.methods import Method
from laconic.recipe.parameters import KINDS, example_of, first_line, parameters_of


def entry_of(kind: type[Method] | type[Step]) -> Entry:
    """The catalogue entry of a method or step class.

    >>> from laconic.methods import Svd
    >>> entry_of(Svd).needs
    ()
    """
    is_method = issubclass(kind, Method)
    return Entry(
        name=kind.name,
        family=kind.family if is_method else STEP,
        needs=tuple(sorted(statistic.__name__ for statistic in kind.needs)) if is_method else (),
        paper=kind.paper if is_method else None,
        what=first_line(kind),
        parameters=tuple(parameters_of(kind)),
        example=example_of(kind),
    )


def text() -> str:
    """The content of the file."""
    entries = [asdict(entry_of(kind)) for kind in KINDS.values()]
    return f"{json.dumps(entries, indent=1, ensure_ascii=False)}\n"


def write(path: Path = PATH) -> None:
    """Write the file."""
    path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    write()
