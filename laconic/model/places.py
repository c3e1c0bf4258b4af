"""Where in a block the attentions and feed-forwards are whose heads and channels can go, and whether they can."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Constant, Dense
from laconic.model.anatomy import ANATOMIES, Attention, FeedForward, Stack
from laconic.model.lm import LanguageModel
from laconic.model.roles import Group

PLAIN = (nn.Linear, Conv1D, Dense)
"""What rows and columns can be taken out of."""


def check_inside(lm: LanguageModel, group: Group) -> None:
    """Raise UserError where some attention (or feed-forward) of `lm` cannot lose parts."""
    model_type, what = lm.model.config.model_type, "heads" if group is Group.ATTENTION else "channels"
    if not all(is_known(stack, group) for stack in lm.anatomy.stacks):
        fits = sorted(
            name
            for anatomy in ANATOMIES
            if all(is_known(stack, group) for stack in anatomy.stacks)
            for name in anatomy.model_types
        )
        raise UserError(f"The {what} of '{model_type}' cannot go one by one; it can be done for {', '.join(fits)}.")
    for stack, blocks in lm.stacks():
        for path, block in blocks:
            for place in places(stack, block, group):
                _check_place(path, block, place)


def _check_place(path: str, block: nn.Module, place: Attention | FeedForward) -> None:
    if is_dropped(block, place):
        # What the others add to the scores has a column for each of its heads too.
        if isinstance(place, Attention) and place.heads is not None and place.heads.bias is not None:
            raise UserError(
                f"The attention '{path}.{place.heads.module}' is dropped, and shares its position bias with the "
                "others; heads must go before that."
            )
        return
    if isinstance(place, Attention) and place.heads is not None:
        children = dict(block.get_submodule(place.heads.module).named_children())
        if mixer := next((name for name in place.heads.mixers if name in children), None):
            raise UserError(f"'{path}.{place.heads.module}.{mixer}' mixes the heads, so none of them can go.")
    for projection in (*reading(place), place.output):
        if has(block, projection) and not isinstance(block.get_submodule(projection), PLAIN):
            raise UserError(
                f"The layer '{path}.{projection}' is compressed already; heads and channels must go before that."
            )


def is_dropped(block: nn.Module, place: Attention | FeedForward) -> bool:
    """Whether the attention or feed-forward was taken out of `block` before, so that it has no parts."""
    return isinstance(block.get_submodule(place.output), Constant)


def is_known(stack: Stack, group: Group) -> bool:
    """Whether it is known how the attentions (or the feed-forwards) of `stack` are cut into parts."""
    if group is Group.FFN:
        return bool(stack.feed_forward)
    return bool(stack.attentions) and all(attention.heads is not None for attention in stack.attentions)


def places(stack: Stack, block: nn.Module, group: Group) -> list[Attention | FeedForward]:
    """Those of one group that `block` has and whose parts are known."""
    if group is Group.FFN:
        return [part for part in stack.feed_forward if all(has(block, inner) for inner in part.inner)]
    return [attention for attention in stack.attentions if attention.heads is not None]


def reading(place: Attention | FeedForward) -> list[str]:
    """Paths of the projections that have rows of each part, whether a block has them or not."""
    if isinstance(place, FeedForward):
        return list(place.inner)
    paths = (
        place.fused, place.query, place.key, place.value, place.position_query, place.position_key,
        place.global_query, place.global_key, place.global_value,
    )  # fmt: skip
    return [path for path in paths if path is not None]


def has(module: nn.Module, path: str) -> bool:
    """Whether there is something at `path` below `module`."""
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
