"""A site: one matrix of a model that can be compressed, always seen as (out, in), with its role in the transformer."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.formats import ExpertStack, Format

Linear = nn.Linear | Conv1D


class Group(StrEnum):
    """The part of a transformer that a site belongs to; each is a target on the command line.

    EXPERTS are the feed-forwards of a mixture that a router chooses for each token; shared experts are FFN.
    """

    ATTENTION = "attention"
    FFN = "ffn"
    EXPERTS = "experts"
    HEAD = "head"
    EMBEDDING = "embedding"


class Role(StrEnum):
    """The projection of its group that a site is.

    FUSED is query, key and value in one matrix. INNER is an input projection of a feed-forward. OUTPUT is the output
    projection of either; outside the blocks it is the last linear, which computes predictions. OTHER is any other.
    """

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    FUSED = "fused"
    INNER = "inner"
    OUTPUT = "output"
    OTHER = "other"


class InputTokens(StrEnum):
    """The tokens that the input rows of a matrix belong to, which decide the padding mask of these rows.

    SOURCE and TARGET are the tokens of encoder and decoder. OWN has no mask: relative positions, or global attention.
    EITHER is the one with as many tokens as the input, for a decoder whose cross-attention is not known.
    """

    SOURCE = "source"
    TARGET = "target"
    OWN = "own"
    EITHER = "either"


def guess_group(path: str) -> Group:
    """Guess the group of a matrix inside a block from its path.

    Example:
        >>> guess_group("layers.0.self_attn.q_proj").value, guess_group("layers.0.fc1").value
        ('attention', 'ffn')
    """
    parts = path.lower().split(".")
    return Group.ATTENTION if any("attn" in part or "attention" in part for part in parts) else Group.FFN


@dataclass(frozen=True)
class Place:
    """A module that holds the matrix of a site.

    Args:
        name: its dotted path in the model.
        module: the module.
        reads: the tokens of its input rows, one entry for each call in one forward pass.
        tokens_first: whether its input is (tokens, rows, width).
        index: the number of the expert, if the module is an `ExpertStack`; else None.
    """

    name: str
    module: nn.Module
    reads: tuple[InputTokens, ...] = (InputTokens.SOURCE,)
    tokens_first: bool = False
    index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Site:
    """A matrix that can be compressed, in a linear, a word embedding, or a format that replaced one of them.

    Each matrix in a stack of experts is a site, named by the path of the stack and the number of its expert, such as
    `model.layers.0.mlp.experts.down_proj.17`.

    Args:
        group: the part of the transformer that it belongs to.
        role: the projection of its group; the factors inside a format have the role of the whole format.
        input: a key that is equal for sites that read the same tensor. Its statistics are collected once.
        block: dotted path of its block; None for heads and embeddings.
        places: the modules that hold the matrix; more than one only for tied embeddings.
        tables: word embeddings tied to a head that are to stay tied: they read the rows of what replaces it.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from laconic.model import LanguageModel
        >>> config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
        >>> site = LanguageModel.of(GPT2LMHeadModel(config)).sites()[0]
        >>> site.name, site.role.value, site.shape, site.weight().shape
        ('transformer.h.0.attn.c_attn', 'fused', (24, 8), torch.Size([24, 8]))
    """

    group: Group
    role: Role
    input: str
    block: str | None
    places: tuple[Place, ...]
    tables: tuple[Place, ...] = ()

    @property
    def name(self) -> str:
        """Dotted path of the first place from the whole model; it identifies the site."""
        return self.places[0].name

    @property
    def names(self) -> tuple[str, ...]:
        """Dotted paths of all places."""
        return tuple(place.name for place in self.places)

    @property
    def replaced_names(self) -> tuple[str, ...]:
        """Dotted paths of all modules that are replaced together: places and tables."""
        return (*self.names, *(table.name for table in self.tables))

    @property
    def module(self) -> nn.Module:
        """The module at the first place; for the matrix of an expert, that matrix as a linear layer or a format.

        A stack of experts makes a new module at each call.
        """
        expert = self._expert
        if expert is None:
            return self.places[0].module
        stack, index = expert
        return stack.slice(index)

    @property
    def stack(self) -> ExpertStack | None:
        """The stack that has the matrix of an expert; None for other matrices."""
        module = self.places[0].module
        return module if isinstance(module, ExpertStack) else None

    @property
    def _expert(self) -> tuple[ExpertStack, int] | None:
        """The stack that has the matrix of an expert, and the number of the expert; None for other matrices."""
        stack, index = self.stack, self.places[0].index
        return None if stack is None or index is None else (stack, index)

    @property
    def unit(self) -> str:
        """The name of its unit in plans and records: the path of the stack for the matrix of an expert, else its own.

        All matrices of a stack have one format and one size, and are replaced together.
        """
        return self.name if self.stack is None else self.name.rpartition(".")[0]

    @property
    def storage(self) -> Hashable:
        """A key that is equal for sites that are stored as one matrix, such as a head tied to the word embedding."""
        return id(self.parameter) if self.stack is None else self.name

    @property
    def is_lookup(self) -> bool:
        """True for a word embedding, whose input rows are one-hot."""
        module = self.places[0].module
        return module.is_embedding if isinstance(module, Format) else isinstance(module, nn.Embedding)

    @property
    def padding_idx(self) -> int | None:
        """The padding token of a word embedding, whose row is not trained; None for other modules."""
        module = self.places[0].module
        return module.padding_idx if isinstance(module, (Format, nn.Embedding)) else None

    @property
    def matrix_parameter(self) -> str:
        """The name of the parameter that is the matrix, in its module."""
        return _matrix_parameter(self.module)

    @property
    def parameter(self) -> nn.Parameter:
        """The matrix as the module stores it, which is (in, out) in a Conv1D."""
        module = self.module
        return module.get_parameter(_matrix_parameter(module))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return matrix_shape(self.module) if self.stack is None else self.stack.shape

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        """True at weights that may be nonzero, (out, in); None if nothing was pruned."""
        if self._expert is not None:
            stack, index = self._expert
            return stack.support(index)
        module = self.places[0].module
        return module.support if isinstance(module, Format) else None

    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix that multiplies the input, without gradient; for an embedding, including its scale."""
        if self._expert is not None:
            stack, index = self._expert
            return stack.dense(index)
        module = self.places[0].module
        if isinstance(module, Format):
            return module.dense().detach()
        weight = self.parameter.detach()
        if self.is_lookup:
            with torch.no_grad():
                return module(torch.arange(len(weight), device=weight.device)).T
        return weight.T if isinstance(module, Conv1D) else weight

    def bias(self) -> Tensor | None:
        """The bias (out,), or None."""
        module = self.module
        return module.bias if isinstance(module, Format) else dict(module.named_parameters(recurse=False)).get("bias")


def _matrix_parameter(module: nn.Module) -> str:
    return (module.matrix_parameter if isinstance(module, Format) else None) or "weight"


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of the matrix of a linear, a Conv1D, a word embedding (out is its width) or a format."""
    if isinstance(module, Format):
        return module.shape
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)


def get_submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at `path` below `module`; None if there is no such module."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def has_module(module: nn.Module, path: str) -> bool:
    """Whether there is a module at `path` below `module`."""
    return get_submodule(module, path) is not None


def find_matrices(module: nn.Module, input_key: str, name: str) -> Iterator[tuple[str, str, nn.Module]]:
    """Find every matrix that is, or lies in, `module`.

    The matrices inside a format are found too, so that a later step can compress them. Matrices that read the input of
    the layer share its key; each of the others has its own key.

    Args:
        module: a linear, or a format.
        input_key: the key of its input, as `Site.input`.
        name: its path.

    Yields:
        Path, input key and module of each matrix.
    """
    if isinstance(module, Linear) or (isinstance(module, Format) and module.matrix_parameter is not None):
        yield name, input_key, module
    elif isinstance(module, Format):
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}"
            yield from find_matrices(child, input_key if child_name in module.input_modules else path, path)


def find_expert_matrices(
    stack: ExpertStack, input_key: str, name: str, reads: InputTokens
) -> Iterator[tuple[str, Place]]:
    """Find the matrices of every expert that lie in a stack, as `find_matrices` does in a format.

    Args:
        stack: the stack.
        input_key: the key of its input; each expert reads its own rows of it.
        name: its path.
        reads: the tokens that the router sends to the experts.

    Yields:
        The input key and the place of each matrix.
    """
    if stack.matrix_parameter is not None:
        for index in range(stack.experts):
            yield f"{input_key}.{index}", Place(f"{name}.{index}", stack, (reads,), index=index)
        return
    for child_name, child in stack.named_children():
        if isinstance(child, ExpertStack):
            path = f"{name}.{child_name}"
            yield from find_expert_matrices(
                child, input_key if child_name in stack.input_modules else path, path, reads
            )
