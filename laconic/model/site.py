"""What a matrix does in its transformer: the part that it belongs to, and which projection of that part it is.

One matrix of a model that can be compressed, always presented as (out, in), whatever holds it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.formats import Format


class Group(StrEnum):
    """The part of a transformer that a site belongs to; a target of the command line."""

    ATTENTION = "attention"
    FFN = "ffn"
    HEAD = "head"
    EMBEDDING = "embedding"


class Role(StrEnum):
    """Which projection of its part a site is.

    FUSED:  query, key and value in one matrix.
    INNER:  a feed-forward's projection that reads the block.
    OUTPUT: what writes back an attention or a feed-forward; outside the blocks, the last linear of the model, which
            gives its predictions.
    OTHER:  none of these, or not known.
    """

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    FUSED = "fused"
    INNER = "inner"
    OUTPUT = "output"
    OTHER = "other"


class InputTokens(StrEnum):
    """Whose tokens the input rows of a matrix are, which says what of them is padding.

    OWN:    none's: relative positions, or the tokens with global attention; every row counts.
    EITHER: the target's or the source's, whichever is as long: a decoder whose cross-attention is not known.
    """

    SOURCE = "source"
    TARGET = "target"
    OWN = "own"
    EITHER = "either"


def guess_group(path: str) -> Group:
    """What a matrix inside a block belongs to, where its path is all that is known."""
    parts = path.lower().split(".")
    return Group.ATTENTION if any("attn" in part or "attention" in part for part in parts) else Group.FFN


Linear = nn.Linear | Conv1D


@dataclass(frozen=True)
class Place:
    """A module by its dotted path.

    reads:        whose tokens its rows are, at each call of one forward pass in turn.
    tokens_first: it is called with (tokens, rows, width).
    """

    name: str
    module: nn.Module
    reads: tuple[InputTokens, ...] = (InputTokens.SOURCE,)
    tokens_first: bool = False


@dataclass(frozen=True, kw_only=True)
class Site:
    """A plain linear, a word embedding, or a format that stands for one as a whole.

    role:   which projection of its group it is; the factors inside a format have that of the whole.
    places: where the matrix is; one place, except for tied embeddings.
    input:  sites with the same value read the same tensor, so its statistics are collected once.
    block:  dotted path of the block it lies in; None for heads and embeddings.
    """

    group: Group
    role: Role
    input: str
    block: str | None
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """Dotted path from the whole model, of the first place."""
        return self.places[0].name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(place.name for place in self.places)

    @property
    def module(self) -> nn.Module:
        return self.places[0].module

    @property
    def is_lookup(self) -> bool:
        """True for a word embedding, whose input rows are one-hot."""
        module = self.module
        return module.is_embedding if isinstance(module, Format) else isinstance(module, nn.Embedding)

    @property
    def padding_idx(self) -> int | None:
        """The token of a word embedding that has no row of its own."""
        module = self.module
        if isinstance(module, Format):
            return module.padding_idx
        return module.padding_idx if isinstance(module, nn.Embedding) else None

    @property
    def holds(self) -> str:
        """Name, in the module, of the parameter that is the matrix."""
        return (self.module.matrix_parameter if isinstance(self.module, Format) else None) or "weight"

    @property
    def parameter(self) -> nn.Parameter:
        """The matrix as the module holds it."""
        return self.module.get_parameter(self.holds)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        if isinstance(self.module, Format):
            return self.module.shape
        rows, columns = self.parameter.shape
        return (rows, columns) if isinstance(self.module, nn.Linear) else (columns, rows)

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        """Where the matrix may be other than zero; None where nothing was pruned."""
        return self.module.support if isinstance(self.module, Format) else None

    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix that multiplies the input; a scaled embedding is presented with its scale."""
        if isinstance(self.module, Format):
            return self.module.dense().detach()
        weight = self.parameter.detach()
        if self.is_lookup:
            with torch.no_grad():
                return self.module(torch.arange(len(weight), device=weight.device)).T
        return weight.T if isinstance(self.module, Conv1D) else weight

    def bias(self) -> Tensor | None:
        """(out,), or None."""
        if isinstance(self.module, Format):
            return self.module.bias
        return dict(self.module.named_parameters(recurse=False)).get("bias")


def find_matrices(module: nn.Module, input_key: str, name: str) -> Iterator[tuple[str, str, nn.Module]]:
    """(path, input key, module) of every matrix that is, or lies in, `module`.

    A format of several is entered, so that a later step can compress what an earlier one left; its readers share the
    input of the layer, the others have an input of their own.
    """
    if isinstance(module, (nn.Linear, Conv1D)) or (isinstance(module, Format) and module.matrix_parameter is not None):
        yield name, input_key, module
    elif isinstance(module, Format):
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}"
            yield from find_matrices(child, input_key if child_name in module.input_modules else path, path)
