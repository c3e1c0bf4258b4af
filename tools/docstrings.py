"""Public names without a docstring, found by reading the source; nothing is imported.

`python -m tools.docstrings` prints them, one per line, and exits with 1 if there are any.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "laconic",
    "laconic.allocate",
    "laconic.calibrate",
    "laconic.compress",
    "laconic.evaluate",
    "laconic.export",
    "laconic.formats",
    "laconic.methods",
    "laconic.model",
    "laconic.recipe",
    "laconic.recover",
    "laconic.runtime",
    "laconic.store",
    "laconic.study",
    "laconic.testing",
)
"""The packages whose `__all__` is public."""
DOCUMENTED_ELSEWHERE = {"forward", "is_compileable", "is_qat_trainable", "is_serializable", "is_trainable"}
"""Methods that torch.nn.Module and transformers' HfQuantizer declare and document."""


def missing(root: Path = ROOT) -> list[str]:
    """Paths of the public names in `root` that have no docstring.

    A name is public if a package of `PACKAGES` exports it, and so is each method and property of an exported class
    whose name has no underscore. A method that overrides a documented one of its base needs no docstring of its own.
    """
    package = griffe.load("laconic", search_paths=[root], allow_inspection=False, try_relative_path=False)
    found: set[str] = set()
    for path in PACKAGES:
        name = path.removeprefix("laconic").removeprefix(".")
        if name and name not in package.members:
            continue
        module = package[name] if name else package
        if not module.has_docstring:
            found.add(path)
        for exported in module.exports or ():
            found.update(undocumented(module[str(exported)]))
    return sorted(found)


def undocumented(member: griffe.Object | griffe.Alias) -> Iterator[str]:
    """The paths of `member` and of its public methods that have no docstring."""
    if member.is_alias:
        try:
            member = member.final_target
        except griffe.AliasResolutionError:
            yield member.path
            return
    if not member.has_docstring:
        yield member.path
    if member.is_class:
        for name, part in member.members.items():
            if name.startswith("_") or name in DOCUMENTED_ELSEWHERE or part.is_alias or not is_callable(part):
                continue
            if not part.has_docstring and not any(
                base.members[name].has_docstring for base in member.mro() if name in base.members
            ):
                yield part.path


def is_callable(part: griffe.Object | griffe.Alias) -> bool:
    """True for a method or a property; a field is described in the `Args:` of its class."""
    return part.is_function or "property" in part.labels


if __name__ == "__main__":
    names = missing()
    print("\n".join(names))
    sys.exit(bool(names))
