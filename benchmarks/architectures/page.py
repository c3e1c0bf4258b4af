"""The page docs/architectures.md: a table of classes and operations, and the sentences of the refusals."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.architectures.cells import ABSENT, FAILED, OPERATIONS, PART, REFUSED, WORKS
from benchmarks.architectures.classes import ModelClass
from laconic.markdown import plain

Line = Mapping[str, Any]
"""One class: its name, and the cells by the name of their operation."""
LISTS = re.compile(r"; (supported are|known are|it can be done for) .*?(?=\.$|;|$)")
PLACE = re.compile(r"^(method|targets): ")
"""The place of an error in the arguments of `laconic.compress`."""
HEADINGS = {"heads": "narrow heads", "channels": "narrow channels", "experts": "narrow experts"}


class Sentences:
    """The sentences of the refusals, numbered in the order in which they are first seen."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, sentence: str) -> int:
        """The number of a sentence."""
        return self.numbers.setdefault(sentence, len(self.numbers) + 1)


def page(lines: Mapping[str, Line], classes: Iterable[ModelClass]) -> str:
    """The tables of all groups, a count of the cells, and the sentences.

    Args:
        lines: the results by the label of their class.
        classes: the classes in their order; those without a result are left out.
    """
    sentences = Sentences()
    names = list(OPERATIONS)
    groups: dict[str, list[str]] = {}
    for model_class in classes:
        if model_class.label in lines:
            row = _row(model_class.label, lines[model_class.label], names, sentences)
            groups.setdefault(model_class.group, []).append(row)
    head = f"| | {' | '.join(HEADINGS.get(name, name) for name in names)} |\n|---|{'---|' * len(names)}"
    tables = [f"## {group}\n\n{head}\n" + "\n".join(rows) + "\n" for group, rows in groups.items()]
    told = [f"{number}. {plain(sentence)}" for sentence, number in sentences.numbers.items()]
    refusals = ["## Refusals\n", *told, ""] if told else []
    return "\n".join([summary(lines.values()), *tables, *refusals])


def summary(lines: Iterable[Line]) -> str:
    """One sentence with the number of classes and of cells of each state."""
    lines = list(lines)
    states = [cell["state"] for line in lines for cell in line["cells"].values()]
    counts = {state: states.count(state) for state in (WORKS, PART, REFUSED, FAILED)}
    failed = f", {counts[FAILED]} failed" if counts[FAILED] else ""
    return (
        f"{len(lines)} classes, {len(states) - states.count(ABSENT)} cells: {counts[WORKS]} work, {counts[PART]} work "
        f"on a part of the matrices, {counts[REFUSED]} are refused{failed}.\n"
    )


def _row(label: str, line: Line, names: Iterable[str], sentences: Sentences) -> str:
    cells = [_format_cell(line["cells"].get(name), label, sentences) for name in names]
    name, _, form = label.partition(", ")
    return f"| `{name}`{f', {form}' if form else ''} | {' | '.join(cells)} |"


def _format_cell(cell: Mapping[str, Any] | None, label: str, sentences: Sentences) -> str:
    if cell is None:
        return ""
    if cell["state"] == ABSENT:
        return "–"
    if cell["state"] == WORKS:
        return "yes"
    if cell["state"] == FAILED:
        return "**failed**"
    number = sentences.number(cell["sentence"])
    return f"{cell['share']:.0%} [{number}]" if cell["state"] == PART else f"no [{number}]"


def shorten(sentence: str) -> str:
    """A refusal without the place in the arguments, the name of the architecture, and the list of what is supported.

    Example:
        >>> shorten("method: The heads of 'bloom' cannot be removed; supported are bert, gpt2.")
        "The heads of '…' cannot be removed."
    """
    unnamed = re.sub(r"'([\w.-]+)'", lambda found: "'…'" if found[1] in CONFIG_MAPPING else found[0], sentence)
    return LISTS.sub("", PLACE.sub("", unnamed))
