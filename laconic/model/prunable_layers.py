"""The attentions and feed-forwards of a block whose heads or channels can be removed, and the check that they can."""

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Constant, Dense
from laconic.model.anatomy import Attention, FeedForward, Stack, find_entry
from laconic.model.expert_removal import can_lose_experts
from laconic.model.lm import LanguageModel
from laconic.model.site import Group, has_module
from laconic.model.stock import text_config
from laconic.model.targets import MAX_DENSE_SHARE

PLAIN = (nn.Linear, Conv1D, Dense)
"""The modules from which rows and columns can be removed."""
PARTS = {Group.ATTENTION: "heads", Group.FFN: "channels"}
"""The noun for the parts of an attention or a feed-forward, for errors."""


def check_prunable(lm: LanguageModel, group: Group) -> None:
    """Check that heads (or channels) can be removed everywhere.

    Args:
        lm: the model.
        group: ATTENTION for heads, FFN for channels.

    Raises:
        UserError: the entry of the architecture does not describe them, a module mixes the heads, or a layer is already
            compressed.
    """
    reason = _prunable_obstacle(lm, group)
    if reason is not None:
        raise UserError(
            f"The {PARTS[group]} of this '{lm.model.config.model_type}' cannot be removed one by one, as {reason}; "
            f"{suggest_steps(lm)}."
        )
    for stack, blocks in lm.stacks():
        for path, block in blocks:
            for layer in prunable_modules(stack, block, group):
                _check_layer(path, block, layer)


def _prunable_obstacle(lm: LanguageModel, group: Group) -> str | None:
    """The reason why heads (or channels) cannot be removed from a model, as a clause; None if they can."""
    if not all(has_known_parts(stack, group) for stack in lm.anatomy.stacks):
        if group is Group.FFN and all(stack.experts and not stack.other_linears for stack in lm.anatomy.stacks):
            return "all of them are in its experts"
        return describe_missing_entry(lm, group)
    if group is Group.FFN:
        return None
    found = (_find_obstacle(stack, block) for stack, blocks in lm.stacks() for _, block in blocks)
    return next((obstacle for obstacle in found if obstacle is not None), None)


def describe_missing_entry(lm: LanguageModel, group: Group) -> str:
    """The clause that says that the heads (or channels) of an architecture are not described, or that it has none.

    Args:
        lm: the model.
        group: ATTENTION for heads, FFN for channels.
    """
    if group is Group.ATTENTION and not any(site.group is group for site in lm.sites(("blocks",))):
        # A state space, for example.
        return "it has no attention"
    if find_entry(text_config(lm.model.config).model_type) is None:
        return "the architecture has no entry in laconic.model.anatomy"
    return "its entry in laconic.model.anatomy does not describe them"


def suggest_steps(lm: LanguageModel, without: Sequence[Group] = ()) -> str:
    """The steps that can make a model smaller, as the end of an error that says that another step cannot.

    Args:
        lm: the model.
        without: groups that are left out.
    """
    steps = [
        f"narrow its {noun}"
        for group, noun in PARTS.items()
        if group not in without and _prunable_obstacle(lm, group) is None
        if any(
            not is_dropped(block, layer)
            for stack, blocks in lm.stacks()
            for _, block in blocks
            for layer in prunable_modules(stack, block, group)
        )
    ]
    if can_lose_experts(lm):
        steps.append("remove experts (narrow:experts)")
    matrices = "compress its matrices"
    if lm.coverage(("blocks",)).share > MAX_DENSE_SHARE:
        matrices += " with allow_dense: true (--allow-dense)"
    return ", ".join([*steps, f"{'or ' if steps else ''}{matrices}"])


def _find_obstacle(stack: Stack, block: nn.Module) -> str | None:
    """The reason why no head of a block can be removed; None if heads can be removed."""
    known = [(block.get_submodule(layer.module), layer.heads) for layer in _headed_attentions(stack, block)]
    return next((reason for module, heads in known if heads and (reason := heads.find_obstacle(module))), None)


def _check_layer(path: str, block: nn.Module, layer: Attention | FeedForward) -> None:
    if is_dropped(block, layer):
        # The position bias of the stack has a column for each of its heads too.
        if isinstance(layer, Attention) and (shared := _shared_by_attentions(layer)) is not None:
            raise UserError(
                f"The attention '{path}.{layer.module}' is dropped, and shares its {shared} with the "
                "others; heads must be removed before that."
            )
        return
    if isinstance(layer, Attention) and layer.heads is not None:
        children = dict(block.get_submodule(layer.module).named_children())
        if mixer := next((name for name in layer.heads.mixers if name in children), None):
            raise UserError(f"'{path}.{layer.module}.{mixer}' mixes the heads, so none of them can be removed.")
    for projection in (*input_projections(layer), layer.output):
        if has_module(block, projection) and not isinstance(block.get_submodule(projection), PLAIN):
            raise UserError(
                f"The layer '{path}.{projection}' is compressed already; heads and channels must be removed "
                "before that."
            )


def _shared_by_attentions(layer: Attention) -> str | None:
    """The noun for what all attentions of a stack share, so that they must have the same heads, or as many."""
    if layer.heads is None:
        return None
    if layer.heads.are_coupled:
        return "position bias"
    return "number of heads" if layer.heads.counts_in_config else None


def is_dropped(block: nn.Module, layer: Attention | FeedForward) -> bool:
    """Whether the attention or feed-forward was dropped from `block` by an earlier step."""
    return isinstance(block.get_submodule(layer.output), Constant)


def has_known_parts(stack: Stack, group: Group) -> bool:
    """Whether the entry of `stack` describes the parts of its attentions or of its feed-forwards."""
    if group is Group.FFN:
        return bool(stack.feed_forward)
    return bool(stack.attentions) and all(attention.heads is not None for attention in stack.attentions)


def prunable_modules(stack: Stack, block: nn.Module, group: Group) -> list[Attention | FeedForward]:
    """The attentions or feed-forwards of a block whose heads or channels can be removed.

    Args:
        stack: the stack of the block.
        block: the block.
        group: ATTENTION or FFN.
    """
    if group is Group.FFN:
        return [part for part in stack.feed_forward if all(has_module(block, inner) for inner in part.inner)]
    return [] if _find_obstacle(stack, block) else list(_headed_attentions(stack, block))


def _headed_attentions(stack: Stack, block: nn.Module) -> list[Attention]:
    """The attentions of a block with known heads."""
    return [
        attention
        for attention in stack.attentions
        if attention.heads is not None and has_module(block, attention.module)
    ]


def input_projections(layer: Attention | FeedForward) -> list[str]:
    """Paths of the projections with rows of each part; a block may lack some of them."""
    if isinstance(layer, FeedForward):
        return list(layer.inner)
    paths = (
        layer.fused, layer.query, layer.key, layer.value, layer.position_query, layer.position_key,
        layer.global_query, layer.global_key, layer.global_value,
    )  # fmt: skip
    return [path for path in paths if path is not None]
