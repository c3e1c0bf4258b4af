"""Find the heads of every attention, and change their size.

A head computes softmax(qᵀ k · scale) v, and the output projection sums over heads. Linear maps of queries, keys, values
and the input of the output projection change its size; the scale stays that of the original size. Where the attention
computes the scale 1/√size when it runs, the queries absorb the quotient of the two scales.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model.anatomy import Anatomy, Attention, Heads
from laconic.model.anatomy.parts import FusedLayout
from laconic.model.fused_rows import FusedRows, fused_rows
from laconic.model.lm import LanguageModel
from laconic.model.prunable_layers import PLAIN, describe_missing_entry, suggest_steps
from laconic.model.site import Group, Site, matrix_shape
from laconic.model.width import replace_linear


class HeadProjection(NamedTuple):
    """The query, key or value projection of all heads, which may be a part of a fused matrix."""

    site: Site
    weight: Float[Tensor, "heads*size in"]
    bias: Float[Tensor, " heads*size"] | None


class HeadMaps(NamedTuple):
    """For each head of size d, the maps to size r: q' = Q q, k' = K k, v' = V v and W_O' = W_O O."""

    query: Float[Tensor, "heads r d"]
    key: Float[Tensor, "heads r d"]
    value: Float[Tensor, "heads r d"]
    output: Float[Tensor, "heads d r"]


@dataclass(frozen=True, kw_only=True)
class HeadedAttention:
    """An attention whose heads can be resized.

    Args:
        name: path of the attention module.
        module: the module.
        heads: the attributes and keys that describe its heads.
        inputs: the sites of query, key and value, or a single site if they are fused.
        fused_layout: the rows of a fused site, as in `Attention`.
        output: the site of the output projection.
    """

    name: str
    module: nn.Module
    heads: Heads
    inputs: tuple[Site, ...]
    fused_layout: FusedLayout
    output: Site

    @property
    def count(self) -> int:
        """Number of heads."""
        return self.output.shape[1] // self.size

    @property
    def size(self) -> int:
        """The size of one head."""
        return getattr(self.module, self.heads.size)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the input projections, then of the output projection."""
        return (*self.inputs, self.output)

    def readers(self) -> list[HeadProjection]:
        """The query, key and value projections."""
        if len(self.inputs) == 1:
            (fused,) = self.inputs
            weight, bias = fused.weight(), fused.bias()
            parts = [rows.flatten().to(weight.device) for rows in self.fused_rows(self.size)]
            return [
                HeadProjection(fused, weight[rows], None if bias is None else bias.detach()[rows]) for rows in parts
            ]
        return [HeadProjection(site, site.weight(), site.bias()) for site in self.inputs]

    def fused_rows(self, size: int) -> FusedRows:
        """The rows of queries, keys and values in a fused matrix whose heads have `size` dimensions."""
        return fused_rows(self.fused_layout, self.count, self.count, size)


def find_attentions(lm: LanguageModel) -> list[HeadedAttention]:
    """Find every attention inside the blocks, in forward order.

    Raises:
        UserError: the heads of this architecture cannot be resized, or a projection is already compressed.
    """
    obstacle = shrink_obstacle(lm)
    if obstacle is not None:
        raise UserError(f"{obstacle}; {suggest_steps(lm)}.")
    sites = {site.name: site for site in lm.sites(("attention",))}
    return [
        _attention(block_path, block, attention, sites)
        for stack, blocks in lm.stacks()
        for block_path, block in blocks
        for attention in stack.attentions
    ]


def shrink_obstacle(lm: LanguageModel) -> str | None:
    """The statement that the heads of a model cannot be resized, with the reason; None if they can."""
    model_type = lm.model.config.model_type
    if not can_shrink(lm.anatomy):
        every = [attention.heads for stack in lm.anatomy.stacks for attention in stack.attentions]
        reasons = [heads.size_obstacle for heads in every if heads is not None and not heads.can_shrink]
        reason = reasons[0] if reasons else describe_missing_entry(lm, Group.ATTENTION)
        return f"The heads of this '{model_type}' cannot shrink, as {reason}"
    for stack, blocks in lm.stacks():
        for path, block in blocks:
            for attention in stack.attentions:
                reason = _own_obstacle(attention, block)
                if reason is not None:
                    return f"The heads of '{path}.{attention.module}' in this '{model_type}' cannot shrink, as {reason}"
    return None


def _own_obstacle(attention: Attention, block: nn.Module) -> str | None:
    """The reason why the heads of one attention cannot be resized, though those of others of its architecture can."""
    heads, module = attention.heads, block.get_submodule(attention.module)
    assert heads is not None
    if heads.is_clipped(module):
        return "its queries, keys and values are limited"
    if attention.fused is None:
        return None
    fused, output = (matrix_shape(block.get_submodule(path)) for path in (attention.fused, attention.output))
    return None if fused[0] == 3 * output[1] else "they share keys"


@torch.no_grad()
def resize_heads(lm: LanguageModel, attention: HeadedAttention, maps: HeadMaps) -> None:
    """Resize the heads of an attention in place.

    Args:
        lm: the model.
        attention: one of its attentions.
        maps: the maps from the present size to the new one.
    """
    query = maps.query
    if attention.heads.scales_in_forward:
        query = query * (query.shape[1] / attention.size) ** 0.5
    transforms = (query, maps.key, maps.value)
    weights, biases = [], []
    for reader, transform in zip(attention.readers(), transforms, strict=True):
        weights.append(_map_heads(transform, reader.weight))
        biases.append(None if reader.bias is None else _map_heads(transform, reader.bias[:, None])[:, 0])
    if len(attention.inputs) == 1:
        order = torch.cat([rows.flatten() for rows in attention.fused_rows(query.shape[1])]).argsort()
        order, present = order.to(query.device), [bias for bias in biases if bias is not None]
        weights, biases = [torch.cat(weights)[order]], [torch.cat(present)[order] if present else None]
    for site, weight, bias in zip(attention.inputs, weights, biases, strict=True):
        replace_linear(lm, site, weight, bias)
    output = attention.output
    replace_linear(lm, output, _map_heads(maps.output.mT, output.weight().T).T, output.bias())
    _resize(lm, attention, maps.query.shape[1])


def zero_padding_maps(attention: HeadedAttention, size: int) -> HeadMaps:
    """The maps that pad each head with zeros to `size`; they do not change the outputs of the attention."""
    identity = torch.eye(size, attention.size, dtype=torch.float64, device=attention.output.weight().device)
    rows = identity.expand(attention.count, -1, -1)
    return HeadMaps(query=rows, key=rows, value=rows, output=rows.mT)


def _map_heads(transform: Float[Tensor, "heads r d"], rows: Float[Tensor, "heads*d n"]) -> Float[Tensor, "heads*r n"]:
    heads, _, d = transform.shape
    return (transform.double() @ rows.double().reshape(heads, d, -1)).flatten(0, 1)


def _resize(lm: LanguageModel, attention: HeadedAttention, size: int) -> None:
    heads, count = attention.heads, attention.count
    setattr(attention.module, heads.size, size)
    if heads.width is not None:
        setattr(attention.module, heads.width, size * count)
    if heads.config_size is not None:
        # The stacks of an encoder-decoder have configurations of their own.
        for part in lm.model.modules():
            if isinstance(part, PreTrainedModel):
                setattr(part.config, heads.config_size, size)


def can_shrink(anatomy: Anatomy) -> bool:
    """Whether the heads of an architecture can be resized."""
    return all(
        stack.attention is not None
        and all(attention.heads is not None and attention.heads.can_shrink for attention in stack.attentions)
        for stack in anatomy.stacks
    )


def _attention(block_path: str, block: nn.Module, attention: Attention, sites: dict[str, Site]) -> HeadedAttention:
    assert attention.heads is not None
    paths = (attention.fused,) if attention.fused else (attention.query, attention.key, attention.value)
    found = [sites.get(f"{block_path}.{path}") for path in (*paths, attention.output)]
    present = tuple(site for site in found if site is not None)
    name = f"{block_path}.{attention.module}"
    if len(present) < len(found) or any(not isinstance(site.module, PLAIN) for site in present):
        raise UserError(f"The attention '{name}' is compressed already; its heads must shrink before that.")
    return HeadedAttention(
        name=name,
        module=block.get_submodule(attention.module),
        heads=attention.heads,
        inputs=present[:-1],
        fused_layout=attention.fused_layout,
        output=present[-1],
    )
