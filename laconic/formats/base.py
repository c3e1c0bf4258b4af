"""What may stand where a linear layer (or a word embedding) stood.

Forward, size, saving and loading belong to formats, so that a new compression method inherits all four. A format
keeps one zero-length buffer called `weight`, the name of the tensor it replaced: transformers without laconic then
refuses the checkpoint with a size mismatch instead of filling the layer with random numbers, and code that asks for
`layer.weight.dtype` still gets its answer.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from laconic.errors import UserError


class Format(nn.Module, ABC):
    """A compressed matrix of shape (out, in) with its bias; subclasses are final and made of plain linears."""

    kind: ClassVar[str]
    readers: ClassVar[tuple[str, ...]]
    """The children that read the layer's own input, whose statistics they therefore share."""
    holds: ClassVar[str | None] = None
    """The one parameter that is the whole matrix: a later step takes the layer as it took the one that stood there, and
    replaces all of it. None where the layer is made of several, which a later step takes one by one."""
    looks_up: ClassVar[bool] = False
    """Whether it is a word embedding, called with tokens."""
    padding_idx: int | None = None
    """The token of a word embedding that has no row of its own."""
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0))

    def requires_grad_(self, requires_grad: bool = True) -> "Format":
        """As torch's, but for what is whole numbers, which have no gradient."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(requires_grad)
        return self

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix that this stands for."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix that `forward` multiplies by, in the dtype of the stored tensors."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes on disk in the present dtype, bias excluded: what saving really writes."""

    def nbytes_in(self, dtype: torch.dtype) -> int:
        """`nbytes` once it is stored in `dtype`."""
        with torch.device("meta"):
            return type(self).shell(**self.spec()).to(dtype).nbytes()

    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates for one row of input, bias excluded."""

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """(out,), or None."""

    @abstractmethod
    def set_bias(self, bias: Tensor | None) -> None:
        """Take over a copy of the bias (out,) of the layer that this replaces."""

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        """Where a weight may be other than zero; None where it may be anywhere."""
        return None

    @property
    def count(self) -> int:
        """Weights that are stored of a matrix that is held as a whole."""
        return self.shape[0] * self.shape[1]

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Tensors of a state dict that hold the matrix in fewer bits than it is computed with."""
        return ()

    @property
    def source(self) -> "Format | None":
        """Another format whose tensors this one reads; None where it has all that it needs."""
        return None

    def read_from(self, source: "Format") -> None:
        """Take `source` for the format whose tensors this one reads.

        Raises:
            UserError: this kind reads from no other, or not from one like it.
        """
        raise UserError(f"A layer of the kind '{self.kind}' stands alone, and cannot read from a '{source.kind}'.")

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        """Come as near to `target` as what is stored can, at the least tr(E H E^T) with H = `moment`, in place.

        Zeros, codes and ranks stay; the numbers beside them move. Where there are none, as by default, nothing does.
        """

    def unpack(self) -> None:
        """Become what computes, once the tensors of a shell have been filled; done already is left as it is.

        Raises:
            UserError: the tensors do not fit each other.
        """

    @abstractmethod
    def for_lookup(self, padding_idx: int | None) -> "Format":
        """The same matrix as a word embedding: (width, vocabulary), read by token instead of multiplied."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Arguments of `shell`: JSON values that rebuild this format empty, ready to receive its tensors."""

    @classmethod
    @abstractmethod
    def shell(cls, **spec: Any) -> "Format":
        """An uninitialised format of this specification."""


class EmbeddingFormat(Format):
    """A format called with tokens. It has no bias, and is as a lookup what it is."""

    looks_up = True

    @property
    def bias(self) -> Tensor | None:
        return None

    def set_bias(self, bias: Tensor | None) -> None:
        if bias is not None:
            raise ValueError("a word embedding has no bias")

    def for_lookup(self, padding_idx: int | None) -> Format:
        return self


def own_bias(bias: Tensor | None) -> nn.Parameter | None:
    """A copy: the bias of a masked-language head is one with another tensor, from which it is to be apart."""
    return None if bias is None else nn.Parameter(bias.detach().clone())


def give_bias(module: nn.Module, bias: Tensor | None) -> None:
    """Make a copy of `bias` that of a plain linear or of a format."""
    if isinstance(module, Format):
        module.set_bias(bias)
    else:
        module.register_parameter("bias", own_bias(bias))


def looked_up(module: nn.Module) -> Float[Tensor, "width vocabulary"]:
    """The matrix of a plain word embedding or of a format of one."""
    return module.dense() if isinstance(module, Format) else module.get_parameter("weight").T


def dense_weight(module: nn.Module) -> Float[Tensor, "out in"]:
    """The (out, in) matrix of a plain linear or of a format; what nests inside a format goes through here."""
    return module.dense() if isinstance(module, Format) else module.get_parameter("weight")


@torch.no_grad()
def refit_weight(module: nn.Module, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
    """Bring the matrix of a plain linear, which can be any, or of a format to `target`, as `Format.refit` does."""
    if isinstance(module, Format):
        module.refit(target, moment)
    else:
        module.get_parameter("weight").copy_(target)


def weight_nbytes(module: nn.Module) -> int:
    """Bytes on disk of a plain linear's or a format's weight, bias excluded."""
    if isinstance(module, Format):
        return module.nbytes()
    weight = module.get_parameter("weight")
    return weight.numel() * weight.element_size()


def weight_macs(module: nn.Module) -> int:
    """Multiply-accumulates of a plain linear or a format for one row of input; looking up an embedding costs none."""
    if isinstance(module, Format):
        return module.macs()
    return 0 if isinstance(module, nn.Embedding) else module.get_parameter("weight").numel()
