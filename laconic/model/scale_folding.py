"""Fold scales of inputs into the preceding module, so that the outputs of the model do not change.

Projections that read x can read x / s instead if their columns are multiplied by s. The module that computes x must
absorb the division:

- a norm whose output only these projections read: its weight and bias are divided. This is possible only in pre-norm
  models; in post-norm models the residual stream passes the norms;
- the value projection, before the output projection of an attention: attention mixes tokens but not channels. Heads
  that share keys and values share their scales;
- the up projection, before the output projection of a gated feed-forward; or the inner projection of a plain one, if
  its activation has f(c x) = c f(x) for c > 0, as ReLU has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from laconic.formats import Format
from laconic.model.anatomy import Attention, FeedForward, Stack
from laconic.model.fused_rows import count_key_heads, fused_rows
from laconic.model.lm import LanguageModel
from laconic.model.prunable_layers import PLAIN
from laconic.model.site import Site, has_module


@dataclass(frozen=True, kw_only=True)
class Absorber:
    """A module that can absorb scales of the input of some projections.

    Args:
        name: path of the norm or the projection.
        readers: the projections that read its output.
        columns: the index of the scale of each column of the readers.
        rows: the row of a projection that absorbs each scale; None for a norm.
    """

    name: str
    readers: tuple[Site, ...]
    columns: Int[Tensor, " in"]
    rows: Int[Tensor, " scales"] | None = None

    @property
    def count(self) -> int:
        """Number of scales."""
        return int(self.columns.max()) + 1

    @property
    def block(self) -> str:
        """The path of the block that has the module and the projections."""
        block = self.readers[0].block
        assert block is not None, "layers outside the blocks read no scaled inputs"
        return block


def find_absorbers(lm: LanguageModel) -> list[Absorber]:
    """Find every absorber of `lm`, in forward order; compressed layers neither absorb nor read."""
    sites = {site.name: site for site in lm.sites(("blocks",)) if _is_plain(lm, site)}
    by_input: dict[str, list[Site]] = {}
    for site in lm.sites(("blocks",)):
        by_input.setdefault(site.input, []).append(site)
    # A projection inside a format may read the input in another way.
    readers = {name: several for name, several in by_input.items() if all(site.name in sites for site in several)}
    found: list[Absorber] = []
    for stack, blocks in lm.stacks():
        for path, block in blocks:
            found += _norms(stack, path, block, readers, lm.device)
            for attention in (stack.attention, stack.cross_attention):
                if attention is not None:
                    found += _value(path, block, attention, sites, lm.device)
            for part in stack.feed_forward:
                found += _inner(path, block, part, sites, lm.device)
    return found


@torch.no_grad()
def fold_scales(lm: LanguageModel, absorber: Absorber, scales: Float[Tensor, " scales"]) -> None:
    """Multiply the columns of the readers by scales and divide the absorber by them, in place.

    Args:
        lm: the model.
        absorber: the module and its readers.
        scales: one positive number for each scale.
    """
    s = scales.double()
    for site in absorber.readers:
        _multiply(
            lm, site.module, site.matrix_parameter, s[absorber.columns], over_rows=isinstance(site.module, Conv1D)
        )
    module = lm.model.get_submodule(absorber.name)
    if absorber.rows is None:
        offset = _offset(module)
        assert offset is not None
        _multiply(lm, module, "weight", 1 / s, offset=offset)
        if "bias" in dict(module.named_parameters(recurse=False)):
            _multiply(lm, module, "bias", 1 / s)
        return
    site = next(site for site in lm.sites(("blocks",)) if site.name == absorber.name)
    by = torch.ones(site.shape[0], dtype=s.dtype, device=s.device).index_copy_(0, absorber.rows, 1 / s)
    _multiply(lm, module, site.matrix_parameter, by, over_rows=not isinstance(module, Conv1D))
    if site.bias() is not None:
        _multiply(lm, module, site.matrix_parameter.replace("weight", "bias"), by)


def _is_plain(lm: LanguageModel, site: Site) -> bool:
    """Whether the module of a site is a linear that is no part of a format."""
    if site.stack is not None:
        return False
    parent = lm.model.get_submodule(site.name.rpartition(".")[0])
    return isinstance(site.module, PLAIN) and not isinstance(parent, Format)


def _norms(
    stack: Stack, path: str, block: nn.Module, readers: Mapping[str, Sequence[Site]], device: torch.device
) -> Iterator[Absorber]:
    """The norms of one block whose output only projections read."""
    if stack.pre_norm_flag is not None and not getattr(block, stack.pre_norm_flag):
        return
    if stack.stream_norm_flag is not None and getattr(block, stack.stream_norm_flag):
        return
    pairs = [
        (attention.fused or attention.query, (attention.norm or "").split())
        for attention in (stack.attention, stack.cross_attention)
        if attention is not None
    ]
    pairs += [(part.inner[0], list(part.norm)) for part in stack.feed_forward]
    pairs += [(other.path, [other.norm]) for other in stack.other_linears if other.norm is not None]
    for first, norms in pairs:
        several = readers.get(f"{path}.{first}", ())
        norm = next((norm for norm in norms if has_module(block, norm)), None)
        if norm is None or not several:
            continue
        module, width = block.get_submodule(norm), several[0].shape[1]
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.shape == (width,) and _offset(module) is not None:
            yield Absorber(name=f"{path}.{norm}", readers=tuple(several), columns=torch.arange(width, device=device))


def _value(
    path: str, block: nn.Module, layer: Attention, sites: Mapping[str, Site], device: torch.device
) -> Iterator[Absorber]:
    """The value projection of an attention, if separate columns of the output projection read each of its channels."""
    value, output = (sites.get(f"{path}.{part}") for part in (layer.fused or layer.value, layer.output))
    heads = layer.heads
    # A vector that is added to the values beside the bias of their projection would have to be divided too.
    if value is None or output is None or heads is None or heads.head_vectors:
        return
    module = block.get_submodule(layer.module)
    children = dict(module.named_children())
    if heads.is_clipped(module) or any(name in children for name in heads.mixers):
        return
    size, width = getattr(module, heads.size), output.shape[1]
    rows = torch.arange(value.shape[0], device=device)
    if layer.fused is not None:
        keys = count_key_heads(len(rows), width // size, size)
        rows = rows[fused_rows(layer.fused_layout, width // size, keys, size).value.flatten().to(device)]
    shared = width // len(rows)
    columns = torch.arange(len(rows), device=device).view(-1, 1, size).expand(-1, shared, -1).reshape(-1)
    yield Absorber(name=value.name, readers=(output,), columns=columns, rows=rows)


def _inner(
    path: str, block: nn.Module, layer: FeedForward, sites: Mapping[str, Site], device: torch.device
) -> Iterator[Absorber]:
    """The inner projection in which the output of a feed-forward is linear, or positively homogeneous."""
    inner, output = sites.get(f"{path}.{layer.inner[-1]}"), sites.get(f"{path}.{layer.output}")
    if inner is None or output is None:
        return
    width = output.shape[1]
    if len(layer.inner) == 1 and not layer.fused_gate:
        activation = layer.activation
        if activation is None or not has_module(block, activation) or not _scales(block.get_submodule(activation)):
            return
    rows = torch.arange(inner.shape[0], device=device)[-width:]
    yield Absorber(name=inner.name, readers=(output,), columns=torch.arange(width, device=device), rows=rows)


def _scales(activation: nn.Module) -> bool:
    """Whether f(c x) = c f(x) for c > 0."""
    x = torch.linspace(-4, 4, 65)
    return torch.equal(activation(2 * x), 2 * activation(x)) and torch.equal(activation(x / 4), activation(x) / 4)


def _offset(norm: nn.Module) -> float | None:
    """The number that the norm adds to its weight: 0, or 1 in Gemma; None if it does not multiply by its weight."""
    own = dict(norm.named_parameters(recurse=False))
    x = torch.arange(float(own["weight"].numel()))[None]
    for offset in (0.0, 1.0):
        values = {name: torch.full(part.shape, -offset if name == "weight" else 0.0) for name, part in own.items()}
        if not functional_call(norm, values, (x,)).any():
            return offset
    return None


def _multiply(
    lm: LanguageModel, module: nn.Module, name: str, by: Tensor, *, over_rows: bool = False, offset: float = 0.0
) -> None:
    """Multiply parameter + `offset` by `by`, along the last dimension or along the rows, in place."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    old = owner.get_parameter(last)
    new = (old.double() + offset) * (by[:, None] if over_rows else by) - offset
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    owner.register_parameter(last, nn.Parameter(new.to(lm.dtype).to(old.dtype), requires_grad=old.requires_grad))
