"""Pair the layers of a compressed model with those of the original, and divide the models into pieces to run.

A layer is a plain linear layer or the compressed layer that replaced it. It has the same path as in the original,
except for the block number if blocks were dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.calibrate.activation_capture import Sublayer, find_sublayers
from laconic.errors import UserError
from laconic.formats import Format
from laconic.model import Group, LanguageModel, Site
from laconic.model.anatomy import Stack
from laconic.model.layers import find_layers
from laconic.model.site import Place, has_module


@dataclass(frozen=True)
class Pair:
    """A layer of the model and its counterpart in the original.

    Args:
        name: path of the layer in the model.
        original: path of the layer in the original.
        place: the layer in the original; it says whether the layer reads source or target tokens.
    """

    name: str
    original: str
    place: Place


@dataclass(frozen=True)
class Piece:
    """The part of a model that runs while its layers are corrected: a block, or the whole model.

    Args:
        steps: the layers in forward order, in groups that read the same input.
        block: path of the block in the model; None for the whole model.
        original: path of the same block in the original.
        spans: number of blocks of the original that it replaces: its own and dropped blocks that follow it.
        parts: its sublayers, with paths in the model.
        origins: the same sublayers, with paths in the original.
        norm: the LayerNorm at the end of the block (post-LN); None without one.
    """

    steps: list[list[Pair]]
    block: str | None = None
    original: str | None = None
    spans: int = 1
    parts: tuple[Sublayer, ...] = ()
    origins: tuple[Sublayer, ...] = ()
    norm: Pair | None = None


@dataclass(frozen=True)
class StackPair:
    """The blocks of one stack in the model and in the original.

    Args:
        blocks: paths of the blocks in the model.
        original_blocks: paths of the blocks in the original.
        numbers: for each block of the model, its number in the original.
        pieces: the piece of each block of the model.
    """

    blocks: list[str]
    original_blocks: list[str]
    numbers: list[int]
    pieces: list[Piece]


def pair_stacks(lm: LanguageModel, original: LanguageModel) -> list[StackPair]:
    """Pair the blocks of each stack with those of the original.

    Args:
        lm: the compressed model; `lm.dropped` records the blocks that earlier steps dropped.
        original: the original model.

    Raises:
        UserError: the dropped blocks on record do not explain the number of blocks that are left.
    """
    # How many tokens reach an expert differs between the two models, so experts have no outputs to compare.
    sites = [site for site in original.sites(("blocks",)) if site.stack is None]
    # If all layers of a stack share one block, dropping layers does not renumber it.
    names = [None if layers.shared else layers.name for layers in find_layers(original)] if any(lm.dropped) else []
    rows = []
    for index, ((stack, now), (_, before)) in enumerate(zip(lm.stacks(), original.stacks(), strict=True)):
        blocks, original_blocks = [path for path, _ in now], [path for path, _ in before]
        name = names[index] if names else None
        dropped_blocks = [] if name is None else [dropped.get(name, ()) for dropped in lm.dropped]
        numbers = _remaining_blocks(len(original_blocks), dropped_blocks)
        if len(numbers) != len(blocks):
            raise UserError(
                f"The {len(blocks)} blocks in '{stack.blocks}' cannot be matched with the original's; put 'correct' "
                "before the step that removed the others."
            )
        pieces = []
        for path, number, following in zip(blocks, numbers, [*numbers[1:], len(original_blocks)], strict=True):
            original_block = original_blocks[number]
            # After compression, the router may send a token to other experts than in the original.
            inside = [site for site in sites if site.block == original_block and site.stack is None]
            pieces.append(
                Piece(
                    steps=_pair_layers(lm, original, inside, original_block, path),
                    block=path,
                    original=original_block,
                    spans=following - number,
                    parts=tuple(find_sublayers(stack, path, lm.model)),
                    origins=tuple(find_sublayers(stack, original_block, original.model)),
                    norm=_closing_norm(lm, stack, path, original_block),
                )
            )
        rows.append(StackPair(blocks, original_blocks, numbers, pieces))
    return rows


def _remaining_blocks(count: int, dropped_blocks: Sequence[Sequence[int | str]]) -> list[int]:
    """The original numbers of the blocks that are left.

    `dropped_blocks` has the indices that each step dropped, in the order of the steps; names of sub-blocks are ignored.
    """
    numbers = list(range(count))
    for dropped in dropped_blocks:
        numbers = [number for index, number in enumerate(numbers) if index not in dropped]
    return numbers


def _closing_norm(lm: LanguageModel, stack: Stack, block: str, original_block: str) -> Pair | None:
    closing = None if stack.depth is None else stack.depth.last_norm
    path = f"{block}.{closing}"
    if closing is None or not has_module(lm.model, path):
        return None
    norm = lm.model.get_submodule(path)
    # Other norms may have no bias, or an offset on their weight.
    plain = isinstance(norm, nn.LayerNorm) and norm.bias is not None
    return Pair(path, f"{original_block}.{closing}", Place(path, norm, (stack.reads,))) if plain else None


def head_piece(lm: LanguageModel, original: LanguageModel) -> Piece:
    """Return the piece with the head's layers, for which the whole model runs."""
    heads = [site for site in original.sites(("*",)) if site.group is Group.HEAD]
    return Piece(_pair_layers(lm, original, heads, "", ""))


def _pair_layers(
    lm: LanguageModel, original: LanguageModel, sites: Sequence[Site], block: str, now: str
) -> list[list[Pair]]:
    by_input: dict[str, dict[str, Pair]] = {}
    for site in sites:
        original_name = _outer_format(original.model, site.name)
        name = now + original_name.removeprefix(block) if block else original_name
        seen = any(original_name in pairs for pairs in by_input.values())
        if not seen and has_module(lm.model, name):
            by_input.setdefault(site.input, {})[original_name] = Pair(name, original_name, site.places[0])
    return [list(pairs.values()) for pairs in by_input.values()]


def _outer_format(model: nn.Module, name: str) -> str:
    """The path of the outermost compressed layer that contains the module `name`, or `name` itself."""
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next((path for path in paths if isinstance(model.get_submodule(path), Format)), name)


def bias_of(layer: nn.Module) -> Tensor | None:
    """Return the bias of a plain or compressed linear layer, (out,); None if it has none."""
    return layer.bias if isinstance(layer, Format) else dict(layer.named_parameters(recurse=False)).get("bias")


def matrix_of(layer: nn.Module) -> Float[Tensor, "out in"]:
    """Return the dense matrix of a plain or compressed linear layer, (out, in)."""
    if isinstance(layer, Format):
        return layer.dense().detach()
    weight = layer.get_parameter("weight").detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a plain or compressed linear layer, without computing the dense matrix."""
    if isinstance(layer, Format):
        return layer.shape
    shape = tuple(layer.get_parameter("weight").shape)
    return (shape[1], shape[0]) if isinstance(layer, Conv1D) else (shape[0], shape[1])
