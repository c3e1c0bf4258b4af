"""Fold scales of inputs into the module before, so that the model computes the same.

Projections that read x may read x / s with their columns multiplied by s, if the module that computes x can give x / s:

- a norm whose output nothing else reads: its weight and bias are divided (pre-norm models only, as in post-norm models
  the residual stream passes the norms);
- the value projection, for the output projection of an attention: attention mixes tokens and keeps channels apart.
  Heads that share keys and values share their scales;
- the up projection, for the output of a gated feed-forward, and the inner projection of a plain one whose activation f
  has f(c x) = c f(x) for c > 0, as ReLU.
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
from laconic.model.lm import LanguageModel
from laconic.model.prunable_group import PLAIN, has_module
from laconic.model.site import Site


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


def find_absorbers(lm: LanguageModel) -> list[Absorber]:
    """Find every absorber of `lm`, in forward order; compressed layers take no part."""
    sites = {site.name: site for site in lm.sites(("blocks",)) if _is_plain(lm, site)}
    by_input: dict[str, list[Site]] = {}
    for site in lm.sites(("blocks",)):
        by_input.setdefault(site.input, []).append(site)
    # What lies inside of a format may be read in other ways.
    readers = {name: several for name, several in by_input.items() if all(site.name in sites for site in several)}
    found: list[Absorber] = []
    for stack, blocks in lm.stacks():
        for path, block in blocks:
            found += _norms(stack, path, block, readers)
            for attention in (stack.attention, stack.cross_attention):
                if attention is not None:
                    found += _value(path, block, attention, sites)
            for part in stack.feed_forward:
                found += _inner(path, block, part, sites)
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
    parent = lm.model.get_submodule(site.name.rpartition(".")[0])
    return isinstance(site.module, PLAIN) and not isinstance(parent, Format)


def _norms(stack: Stack, path: str, block: nn.Module, readers: Mapping[str, Sequence[Site]]) -> Iterator[Absorber]:
    """Those of one block whose output goes to projections alone."""
    if stack.pre_norm_flag is not None and not getattr(block, stack.pre_norm_flag):
        return
    pairs: list[tuple[str | None, str | None]] = [
        (attention.fused or attention.query, attention.norm)
        for attention in (stack.attention, stack.cross_attention)
        if attention is not None
    ]
    pairs += [
        (part.inner[0], next((norm for norm in part.norm if has_module(block, norm)), None))
        for part in stack.feed_forward
    ]
    for first, norm in pairs:
        several = readers.get(f"{path}.{first}", ())
        if norm is None or not several or not has_module(block, norm):
            continue
        module, width = block.get_submodule(norm), several[0].shape[1]
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.shape == (width,) and _offset(module) is not None:
            yield Absorber(name=f"{path}.{norm}", readers=tuple(several), columns=_numbers(width, several[0]))


def _value(path: str, block: nn.Module, place: Attention, sites: Mapping[str, Site]) -> Iterator[Absorber]:
    """The value projection of one attention, where its channels come apart in what the output projection reads."""
    value, output = (sites.get(f"{path}.{part}") for part in (place.fused or place.value, place.output))
    heads = place.heads
    # A vector that is added to the values beside the bias of their projection would have to be divided too.
    if value is None or output is None or heads is None or heads.head_vectors:
        return
    children = dict(block.get_submodule(place.module).named_children())
    if any(name in children for name in heads.mixers):
        return
    size, width = getattr(block.get_submodule(place.module), heads.size), output.shape[1]
    rows = _numbers(value.shape[0], value)
    if place.fused is not None:
        stacked = place.fused_layout == "stacked"
        rows = rows.view(3, -1)[2] if stacked else rows.view(-1, 3, size)[:, 2].reshape(-1)
    shared = width // len(rows)
    columns = torch.arange(len(rows), device=rows.device).view(-1, 1, size).expand(-1, shared, -1).reshape(-1)
    yield Absorber(name=value.name, readers=(output,), columns=columns, rows=rows)


def _inner(path: str, block: nn.Module, place: FeedForward, sites: Mapping[str, Site]) -> Iterator[Absorber]:
    """The inner projection of one feed-forward that what it gives is linear in, or as good as."""
    inner, output = sites.get(f"{path}.{place.inner[-1]}"), sites.get(f"{path}.{place.output}")
    if inner is None or output is None:
        return
    width = output.shape[1]
    if len(place.inner) == 1 and not place.fused_gate:
        activation = place.activation
        if activation is None or not has_module(block, activation) or not _scales(block.get_submodule(activation)):
            return
    rows = _numbers(inner.shape[0], inner)[-width:]
    yield Absorber(name=inner.name, readers=(output,), columns=_numbers(width, output), rows=rows)


def _numbers(count: int, like: Site) -> Int[Tensor, " count"]:
    return torch.arange(count, device=like.parameter.device)


def _scales(activation: nn.Module) -> bool:
    """Whether f(c x) = c f(x) for c > 0."""
    x = torch.linspace(-4, 4, 65)
    return torch.equal(activation(2 * x), 2 * activation(x)) and torch.equal(activation(x / 4), activation(x) / 4)


def _offset(norm: nn.Module) -> float | None:
    """What the norm adds to its weight before it multiplies: 0, or 1 in Gemma; None where it does not multiply."""
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
    """Multiply a parameter, of which the norm uses that and `offset`, along its last dimension or along its rows."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    old = owner.get_parameter(last)
    new = (old.double() + offset) * (by[:, None] if over_rows else by) - offset
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    owner.register_parameter(last, nn.Parameter(new.to(lm.dtype).to(old.dtype), requires_grad=old.requires_grad))
