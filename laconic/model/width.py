"""Remove heads and channels from a model: rows and columns of its projections, and the numbers that count them."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.formats import Dense
from laconic.model.anatomy import FeedForward
from laconic.model.lm import LanguageModel
from laconic.model.prunable_group import PrunableGroup, prunable_groups, prunable_modules
from laconic.model.site import Group, Linear, Site

EMPTY = -1
"""In place of the number of a part: one of zeros."""


@torch.no_grad()
def keep_parts(
    lm: LanguageModel,
    inner: PrunableGroup,
    parts: Sequence[int],
    weight: Float[Tensor, "out kept"] | None = None,
    bias: Float[Tensor, " out"] | None = None,
) -> None:
    """Keep some parts (heads or channels) of a group, in place.

    Args:
        lm: the model.
        inner: the group.
        parts: the indices of the parts to keep, in their new order; `EMPTY` inserts a part of zeros.
        weight: a new weight of the output projection; None takes the columns of the kept parts.
        bias: a new bias of the output projection; None keeps its bias. Where the class has no bias there, it
            becomes a `Dense` format.
    """
    chosen = torch.as_tensor(parts, dtype=torch.long, device=lm.device)
    for site, stacked in inner.readers:
        own = site.bias()
        replace_linear(
            lm,
            site,
            _arranged(site.weight(), stacked, inner.count, chosen),
            None if own is None else _arranged(own, stacked, inner.count, chosen),
        )
    for path in inner.vectors:
        module, name = _owner(lm, path)
        _set(module, name, _arranged(module.get_parameter(name), 1, inner.count, chosen))
    if inner.bias is not None:
        module, name = _owner(lm, f"{inner.bias}.weight")
        assert isinstance(module, nn.Embedding)
        _set(module, name, _arranged(module.weight.T, 1, inner.count, chosen).T)
        module.embedding_dim = len(parts)
    _write(lm, inner, chosen, weight, bias)
    for module, attribute, each in inner.counters:
        setattr(module, attribute, each * len(parts))


def _write(lm: LanguageModel, inner: PrunableGroup, chosen: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    writer = inner.writer
    if weight is None:
        weight = _arranged(writer.weight().T, 1, inner.count, chosen).T
    own = writer.bias()
    if bias is not None and own is None:
        lm.replace(writer, Dense.from_weight(weight.to(lm.dtype)), bias)
    else:
        replace_linear(lm, writer, weight, own if bias is None else bias)


def _arranged(rows: Tensor, stacked: int, count: int, parts: Int[Tensor, " kept"]) -> Tensor:
    """The rows of `parts`, in each of the `stacked` matrices."""
    blocks = rows.detach().reshape(stacked, count, -1, *rows.shape[1:])
    # The last one is what `EMPTY` finds.
    blocks = torch.cat([blocks, torch.zeros_like(blocks[:, :1])], dim=1)
    return blocks[:, parts].flatten(0, 2)


def _owner(lm: LanguageModel, path: str) -> tuple[nn.Module, str]:
    module, _, name = path.rpartition(".")
    return lm.model.get_submodule(module), name


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    trains = module.get_parameter(name).requires_grad
    module.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=trains))


def update_config_widths(lm: LanguageModel) -> None:
    """Write the numbers of heads and channels into the configuration, where they are equal in all blocks.

    The model is then an ordinary one of its class. Nothing is written where the class could not build it.
    """
    by_name: dict[str, list[dict[str, int]]] = {}
    for inner in prunable_groups(lm):
        if inner.config:
            said = {name: each * inner.count for name, each in inner.config.items()}
            by_name.setdefault(next(iter(said)), []).append({**said, **inner.pinned})
    everywhere = _counted(lm)
    for name, several in by_name.items():
        # What is dropped or compressed already has the number that the configuration said before.
        if len(several) == everywhere[name] and all(said == several[0] for said in several):
            _adopt(lm.model, several[0])


def _counted(lm: LanguageModel) -> Counter[str]:
    """How many attentions and feed-forwards share each key of the configuration."""
    found = [
        place
        for stack, blocks in lm.stacks()
        for _, block in blocks
        for group in (Group.ATTENTION, Group.FFN)
        for place in prunable_modules(stack, block, group)
    ]
    names = [
        place.config_width if isinstance(place, FeedForward) else place.heads and place.heads.config_count
        for place in found
    ]
    return Counter(name for name in names if name)


def _adopt(model: PreTrainedModel, values: dict[str, int]) -> None:
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    if all(_takes(config, values) for config in configs.values()):
        for config in configs.values():
            for name, value in values.items():
                setattr(config, name, value)


def _takes(config: PreTrainedConfig, values: dict[str, int]) -> bool:
    changed = deepcopy(config)
    for name, value in values.items():
        setattr(changed, name, value)
    try:
        changed.validate()
    except StrictDataclassError:
        return False
    return True


def empty_linear(like: Linear, shape: tuple[int, int]) -> Linear:
    """A linear on the meta device, of the class of `like` and with a bias where it has one.

    Args:
        like: a linear or Conv1D.
        shape: (out, in).
    """
    out_features, in_features = shape
    with torch.device("meta"):
        if isinstance(like, Conv1D):
            return Conv1D(out_features, in_features)
        return nn.Linear(in_features, out_features, bias=like.bias is not None)


def resize_linear(like: Linear, weight: Float[Tensor, "out in"], bias: Tensor | None) -> Linear:
    """A linear of the class of `like` with another weight (out, in) and bias, in the same training state."""
    linear = empty_linear(like, (weight.shape[0], weight.shape[1]))
    own = weight.T if isinstance(linear, Conv1D) else weight
    trains = like.weight.requires_grad
    linear.weight = nn.Parameter(own.contiguous(), requires_grad=trains)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=trains)
    return linear.train(like.training)


def replace_linear(lm: LanguageModel, site: Site, weight: Float[Tensor, "out in"], bias: Tensor | None) -> None:
    """Replace the linear at `site` by one of the same class with another weight (out, in) and bias, in place."""
    old = site.module
    if isinstance(old, Dense):
        lm.replace(site, Dense.from_weight(weight.to(lm.dtype)), bias)
        return
    assert isinstance(old, (nn.Linear, Conv1D))
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    rounded = [None if tensor is None else tensor.to(lm.dtype).to(old.weight.dtype) for tensor in (weight, bias)]
    assert rounded[0] is not None
    lm.model.set_submodule(site.name, resize_linear(old, rounded[0], rounded[1]))
