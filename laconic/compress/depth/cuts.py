"""Cuts: blocks or sub-blocks (attention, cross-attention, feed-forward) that can be dropped; and rows of cuts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from laconic.errors import UserError
from laconic.model import LanguageModel
from laconic.model.depth import PARTS, SubBlock, find_subblocks
from laconic.model.layers import Layers, find_layers, get_layers

Parts = Literal["blocks", "sublayers"]


@dataclass(frozen=True)
class Cut:
    """A block, or a sub-block of one, that can be dropped.

    Args:
        stack: name of the stack: `blocks`, `encoder` or `decoder`.
        layer: number of the block in its stack, from 0.
        part: `attention`, `cross-attention` or `ffn`; None for the whole block.

    Example:
        >>> Cut("blocks", 3, "ffn").spelling
        '3.ffn'
    """

    stack: str
    layer: int
    part: str | None = None

    @property
    def spelling(self) -> int | str:
        """The notation of the field `blocks` in a recipe: 3, or 3.ffn."""
        return self.layer if self.part is None else f"{self.layer}.{self.part}"


def all_cuts(lm: LanguageModel, parts: Parts) -> dict[str, list[Cut]]:
    """Return all blocks, or all sub-blocks that are not dropped yet.

    Args:
        lm: the model.
        parts: `blocks` or `sublayers`.

    Returns:
        Cuts in forward order, by stack.

    Raises:
        UserError: the model's sub-blocks cannot be dropped separately, or the numbering of its blocks is not known.
    """
    return {layers.name: _layer_cuts(lm, layers, parts) for layers in find_layers(lm)}


def _layer_cuts(lm: LanguageModel, layers: Layers, parts: Parts) -> list[Cut]:
    numbers = range(len(layers))
    if parts == "blocks":
        return [Cut(layers.name, number) for number in numbers]
    return [
        Cut(layers.name, number, part.part)
        for number in numbers
        for part in find_subblocks(lm, layers, number)
        if not part.is_dropped
    ]


def parse_cuts(lm: LanguageModel, blocks: Mapping[str, Iterable[int | str]]) -> list[Cut]:
    """Parse the field `blocks` of a recipe.

    Args:
        lm: the model.
        blocks: for each stack the numbers of blocks (3) and parts of blocks (`3.ffn`).

    Returns:
        The cuts in forward order.

    Raises:
        UserError: there is no such block or part, the part is dropped already, or a block is named together with a part
            of itself.
    """
    stacks = {layers.name: layers for layers in find_layers(lm)}
    cuts = {_parse_cut(lm, stacks[stack], word) for stack, words in blocks.items() for word in words}
    whole = {(cut.stack, cut.layer) for cut in cuts if cut.part is None}
    for cut in cuts:
        if cut.part is not None and (cut.stack, cut.layer) in whole:
            raise UserError(f"Block {cut.layer} is to be dropped whole, so '{cut.spelling}' must be left out.")
    order = [*stacks]
    return sorted(cuts, key=lambda cut: (order.index(cut.stack), cut.layer, PARTS.index(cut.part) if cut.part else -1))


def _parse_cut(lm: LanguageModel, layers: Layers, word: int | str) -> Cut:
    number, _, part = str(word).partition(".")
    if not number.isdecimal() or not int(number) < len(layers):
        raise UserError(
            f"There is no block '{word}': they are numbered from 0 to {len(layers) - 1}, and a part of one is named "
            f"like '0.{PARTS[-1]}'."
        )
    if not part:
        return Cut(layers.name, int(number))
    subblocks = {subblock.part: subblock for subblock in find_subblocks(lm, layers, int(number))}
    if part not in subblocks:
        raise UserError(f"There is no part '{part}' in block {number}: known are {', '.join(subblocks)}.")
    if subblocks[part].is_dropped:
        raise UserError(f"The {part} of block {number} is dropped already; leave out '{word}'.")
    return Cut(layers.name, int(number), part)


def subblock_at(lm: LanguageModel, layers: Layers, cut: Cut) -> SubBlock:
    """Return the sub-block of a cut whose `part` is not None."""
    return next(part for part in find_subblocks(lm, layers, cut.layer) if part.part == cut.part)


def dropped_blocks(cuts: Iterable[Cut], stack: str) -> list[int]:
    """Return the numbers of the whole blocks of `stack` among the cuts."""
    return [cut.layer for cut in cuts if cut.stack == stack and cut.part is None]


def spell_cuts(cuts: Iterable[Cut]) -> dict[str, tuple[int | str, ...]]:
    """Write cuts in the notation of the field `blocks` in a recipe, by stack.

    Example:
        >>> spell_cuts([Cut("blocks", 3), Cut("blocks", 4, "ffn")])
        {'blocks': (3, '4.ffn')}
    """
    words: dict[str, tuple[int | str, ...]] = {}
    for cut in cuts:
        words[cut.stack] = (*words.get(cut.stack, ()), cut.spelling)
    return words


def dropped_paths(lm: LanguageModel, cuts: Sequence[Cut]) -> list[str]:
    """Return the paths of the modules whose matrices are no longer stored after `cuts` are dropped."""
    paths: list[str] = []
    for layers in find_layers(lm):
        blocks = dropped_blocks(cuts, layers.name)
        kept = {path for number, path in enumerate(layers.paths) if number not in blocks}
        paths += [path for path in layers.paths if path not in kept]
    for cut in cuts:
        if cut.part is not None:
            part = subblock_at(lm, get_layers(lm, cut.stack), cut)
            paths += [*part.inner, part.output]
    return paths


def is_inside(name: str, paths: Iterable[str]) -> bool:
    """Return whether the module `name` is one of the modules at `paths` or inside one of them.

    Example:
        >>> is_inside("encoder.1.ffn", ["encoder.1"])
        True
    """
    return any(name == path or name.startswith(f"{path}.") for path in paths)


Row = Sequence[Cut | None]
"""Cuts in forward order; None between two stacks."""
Allowed = Callable[[Iterable[Cut]], bool]
Run = tuple[int, int]
"""[i, j): from the first dropped item up to the first kept one."""


@dataclass(frozen=True)
class Limits:
    """The cuts that a model allows.

    Args:
        alone: returns whether some cuts can be made, perhaps together with further cuts in other stacks.
        together: returns whether exactly these cuts can be made.
    """

    alone: Allowed
    together: Allowed


def all_runs(row: Row, lengths: Iterable[int]) -> list[Run]:
    """Return all runs [start, stop) of the given lengths that lie within one stack."""
    return [
        (start, start + length)
        for length in lengths
        for start in range(len(row) - length + 1)
        if None not in row[start : start + length]
    ]


def cuts_in(row: Row, run: Run) -> list[Cut]:
    """Return the cuts of one run."""
    return [cut for cut in row[slice(*run)] if cut is not None]


def sort_cuts(row: Row, cuts: Iterable[Cut]) -> list[Cut]:
    """Return `cuts` in the order of `row`."""
    chosen = set(cuts)
    return [cut for cut in row if cut in chosen and cut is not None]


def too_many_error(drop: int, most: int) -> UserError:
    """Return the error for `drop` cuts when at most `most` can be made."""
    if most == 0:
        return UserError(
            "No block can be dropped here, because no configuration describes the model without it; name a block "
            "(shorten:blocks=0) to read the reason, or leave out the step."
        )
    return UserError(f"drop must be at most {most}, because no more can be dropped here; got {drop}.")


def join_stacks(cuts: Mapping[str, list[Cut]], stacks: Sequence[str]) -> list[Cut | None]:
    """Concatenate the cuts of several stacks, with None between two stacks."""
    row: list[Cut | None] = []
    for stack in stacks:
        row += [None, *cuts[stack]] if row else cuts[stack]
    return row


def choose_lowest(row: Row, scores: Mapping[Cut, float], drop: int, allowed: Allowed) -> list[Cut]:
    """Choose the cuts with the lowest scores that the model allows together.

    Args:
        row: all cuts in forward order.
        scores: the score of each cut.
        drop: number of cuts to choose.
        allowed: whether cuts can be made.

    Raises:
        UserError: fewer than `drop` cuts can be made.
    """
    chosen: list[Cut] = []
    while len(chosen) < drop:
        # A cut that is not allowed yet may be allowed after another one.
        candidates = [cut for cut in sort_cuts(row, scores) if cut not in chosen and allowed([*chosen, cut])]
        if not candidates:
            raise too_many_error(drop, len(chosen))
        chosen.append(min(candidates, key=lambda cut: scores[cut]))
    return sort_cuts(row, chosen)


def choose_lowest_run(row: Row, scores: Mapping[tuple[int, int], float], allowed: Allowed) -> list[Cut]:
    """Choose the run with the lowest score that the model allows.

    Args:
        row: all cuts in forward order.
        scores: the score of each run.
        allowed: whether cuts can be made.

    Raises:
        UserError: no run can be dropped.
    """
    runs = [run for run in scores if allowed(cuts_in(row, run))]
    if not runs:
        length = next((stop - start for start, stop in scores), 0)
        raise UserError(f"No run of {length or 'that many'} neighbours can be dropped here; give a smaller drop.")
    return cuts_in(row, min(runs, key=lambda run: scores[run]))
