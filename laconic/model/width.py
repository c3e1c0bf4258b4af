"""Remove heads and channels from a model: rows and columns of projections, and the attributes that count them."""

from collections import Counter
from collections.abc import Sequence
from copy import copy, deepcopy

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Dense
from laconic.model.anatomy import FeedForward
from laconic.model.layers import configs_around
from laconic.model.lm import LanguageModel
from laconic.model.prunable_group import PrunableGroup, prunable_groups
from laconic.model.prunable_layers import prunable_modules
from laconic.model.prunable_parts import InputProjection, SizeAttribute
from laconic.model.site import Group, Linear, Site

EMPTY = -1
"""Stands for a part of zeros among the indices of parts."""


@torch.no_grad()
def keep_parts(
    lm: LanguageModel,
    group: PrunableGroup,
    parts: Sequence[int],
    weight: Float[Tensor, "out kept"] | None = None,
    bias: Float[Tensor, " out"] | None = None,
) -> None:
    """Keep some parts (heads or channels) of a group, in place.

    Args:
        lm: the model.
        group: the group.
        parts: the indices of the parts to keep, in their new order; `EMPTY` inserts a part of zeros.
        weight: a new weight of the output projection; None takes the columns of the kept parts.
        bias: a new bias of the output projection; None keeps its bias. A projection without a bias becomes a `Dense`
            format.
    """
    chosen = torch.as_tensor(parts, dtype=torch.long, device=lm.device)
    for reader in group.readers:
        own = reader.site.bias()
        replace_linear(
            lm,
            reader.site,
            _select_rows(reader, reader.site.weight(), group.count, chosen),
            None if own is None else _select_rows(reader, own, group.count, chosen),
        )
    for path in group.vectors:
        module, name = _find_parameter(lm, path)
        rows = module.get_parameter(name).detach().unflatten(0, (group.count, -1))
        _set_parameter(module, name, _select_parts(rows, chosen))
    if group.bias is not None:
        keep_bias_columns(lm, group.bias, parts)
    _write(lm, group, chosen, weight, bias)
    for counter in group.counters:
        _set_count(counter, len(parts))


@torch.no_grad()
def keep_bias_columns(lm: LanguageModel, path: str, parts: Sequence[int]) -> None:
    """Keep the columns of some heads in a table of position biases, in place.

    Args:
        lm: the model.
        path: path of the table, an embedding with one column for each head.
        parts: as in `keep_parts`.
    """
    table = lm.model.get_submodule(path)
    assert isinstance(table, nn.Embedding)
    chosen = torch.as_tensor(parts, dtype=torch.long, device=table.weight.device)
    _set_parameter(table, "weight", _select_parts(table.weight.detach().T[:, None], chosen).T)
    table.embedding_dim = len(parts)


def _set_count(counter: SizeAttribute, count: int) -> None:
    module, (holder, _, name) = counter.module, counter.attribute.rpartition(".")
    if not holder:
        setattr(module, name, counter.each * count)
        return
    # Other attentions, whose heads may be removed later, read the same configuration.
    config = copy(getattr(module, holder))
    setattr(config, name, counter.each * count)
    setattr(module, holder, config)


def _write(lm: LanguageModel, group: PrunableGroup, chosen: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    writer = group.writer
    if weight is None:
        weight = _select_parts(writer.weight().detach().T.unflatten(0, (group.count, -1)), chosen).T
    own = writer.bias()
    if bias is not None and own is None:
        lm.replace(writer, Dense.from_weight(weight.to(lm.dtype)), bias)
    else:
        replace_linear(lm, writer, weight, own if bias is None else bias)


def _select_rows(reader: InputProjection, tensor: Tensor, count: int, parts: Int[Tensor, " kept"]) -> Tensor:
    """The rows of `parts`, in this order, in each of the stacked matrices, and the rows of all parts."""
    stacked, rest = reader.split(tensor.detach(), count)
    return torch.cat([*(_select_parts(rows, parts) for rows in stacked), rest])


def _select_parts(rows: Float[Tensor, "parts each ..."], parts: Int[Tensor, " kept"]) -> Float[Tensor, "rows ..."]:
    # `EMPTY` is the index of the last part, of zeros.
    return torch.cat([rows, torch.zeros_like(rows[:1])])[parts].flatten(0, 1)


def _find_parameter(lm: LanguageModel, path: str) -> tuple[nn.Module, str]:
    module, _, name = path.rpartition(".")
    return lm.model.get_submodule(module), name


def _set_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    trains = module.get_parameter(name).requires_grad
    module.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=trains))


def update_config_widths(lm: LanguageModel) -> None:
    """Write the numbers of heads and channels into the configuration, if they are equal in all blocks.

    The model is then an ordinary model of its class. Nothing is written if the class could not build it.

    Raises:
        UserError: the class reads the number of heads from the configuration when it runs, and the configuration cannot
            hold it.
    """
    by_key: dict[str, list[dict[str, int]]] = {}
    # A configuration has the number of key heads too.
    groups = prunable_groups(lm, split_keys=False)
    for group in groups:
        if group.config:
            counts = {key: each * group.count for key, each in group.config.items()}
            by_key.setdefault(next(iter(counts)), []).append({**counts, **group.pinned})
    totals = _count_by_key(lm)
    for key, candidates in by_key.items():
        # A layer that was dropped or compressed has the number that the configuration had before.
        if len(candidates) == totals[key] and all(values == candidates[0] for values in candidates):
            _set_config(lm, candidates[0])
    _share_config(lm, [group for group in groups if group.is_uniform])


def _share_config(lm: LanguageModel, groups: Sequence[PrunableGroup]) -> None:
    """Give attentions that read the number of heads from a configuration the one of the model again."""
    for group in groups:
        holder, count = lm.model.get_submodule(group.name), group.count * group.heads
        config, key = configs_around(lm.model, group.name)[-1], next(iter(group.config))
        if getattr(config, key) != count:
            raise UserError(
                f"The class of '{lm.model.config.model_type}' reads the number of heads from its configuration, which "
                f"cannot hold the {count} heads of '{group.name}'; keep equally many heads in all attentions, or "
                "keep all of them."
            )
        vars(holder)["config"] = config


def _count_by_key(lm: LanguageModel) -> Counter[str]:
    """The number of attentions and feed-forwards whose size each key of the configuration gives."""
    layers = [
        layer
        for stack, blocks in lm.stacks()
        for _, block in blocks
        for group in (Group.ATTENTION, Group.FFN)
        for layer in prunable_modules(stack, block, group)
    ]
    keys = [
        layer.config_width if isinstance(layer, FeedForward) else layer.heads and layer.heads.config_count
        for layer in layers
    ]
    return Counter(key for key in keys if key)


def _set_config(lm: LanguageModel, values: dict[str, int]) -> None:
    """Set values in the configurations of the parts around the blocks, if each of them accepts the values."""
    paths = [path for _, blocks in lm.stacks() for path, _ in blocks]
    configs = {id(config): config for path in paths for config in configs_around(lm.model, path)}
    try:
        for config in deepcopy(list(configs.values())):
            for key, value in values.items():
                setattr(config, key, value)
            config.validate()
    except StrictDataclassError:
        return
    for config in configs.values():
        for key, value in values.items():
            setattr(config, key, value)


def empty_linear(like: Linear, shape: tuple[int, int]) -> Linear:
    """A linear on the meta device, of the class of `like` and with a bias if `like` has one.

    Args:
        like: a linear or Conv1D.
        shape: (out, in).
    """
    out_features, in_features = shape
    with torch.device("meta"):
        if isinstance(like, Conv1D):
            return Conv1D(out_features, in_features)
        # A subclass, such as Falcon's, computes in another way.
        return type(like)(in_features, out_features, bias=like.bias is not None)


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
