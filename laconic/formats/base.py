"""The base class of formats: modules that stand in for a linear layer or a word embedding.

A format computes the forward pass, knows its size, and is saved and loaded; a new compression method inherits all of
that. Every format keeps a zero-length buffer called `weight`, the name of the tensor it replaced. Without laconic,
transformers then refuses the checkpoint with a size mismatch instead of initialising the layer with random numbers, and
code that reads `layer.weight.dtype` still works.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from laconic.errors import UserError

F = TypeVar("F", bound="Format")


class Format(nn.Module, ABC):
    """A compressed matrix of shape (out, in) with its bias. Subclasses are final.

    Example:
        >>> from laconic.formats import LowRank
        >>> layer = LowRank.from_factors(torch.ones(4, 1), torch.ones(1, 3))
        >>> layer.shape, layer.nbytes(), layer.macs()
        ((4, 3), 28, 7)
        >>> LowRank.empty(**layer.spec()).shape
        (4, 3)
    """

    kind: ClassVar[str]
    input_modules: ClassVar[tuple[str, ...]]
    """Names of the child modules that read the input of the layer, and so share its statistics."""
    matrix_parameter: ClassVar[str | None] = None
    """The parameter that is the whole matrix, which a later step compresses and replaces. None if the layer consists of
    several matrices, which a later step compresses one by one."""
    is_embedding: ClassVar[bool] = False
    """Whether it is a word embedding, which is called with tokens."""
    out_features: int
    in_features: int
    padding_idx: int | None = None
    """The padding token of a word embedding."""
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0))

    def requires_grad_(self, requires_grad: bool = True) -> "Format":
        """Like the method of torch, but only for floating-point parameters; codes have no gradient."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(requires_grad)
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix."""
        return self.out_features, self.in_features

    @abstractmethod
    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix that `forward` multiplies by, in the dtype of the layer."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes on disk in the present dtype, without the bias: exactly the bytes that saving writes."""

    def nbytes_in(self, dtype: torch.dtype) -> int:
        """`nbytes` after a cast to `dtype`."""
        return self._meta_copy().to(dtype).nbytes()

    def _meta_copy(self) -> "Format":
        """A copy on the meta device, with copies of the formats inside it."""
        with torch.device("meta"):
            copied = type(self).empty(**self.spec())
        for name, child in self.named_children():
            if isinstance(child, Format):
                setattr(copied, name, child._meta_copy())
        return copied

    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates for one row of input, bias excluded."""

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """The bias (out,), or None."""

    @abstractmethod
    def set_bias(self, bias: Tensor | None) -> None:
        """Set the bias (out,) to a copy of `bias`; None removes it."""

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        """True at weights that may be nonzero, (out, in); None if nothing was pruned."""
        return None

    @property
    def count(self) -> int:
        """The number of stored weights, for a format that stores one matrix as a whole."""
        return self.shape[0] * self.shape[1]

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Names of the tensors in a state dict that store the matrix in fewer bits than it is computed with."""
        return ()

    @property
    def source(self) -> "Format | None":
        """Another format whose tensors this one reads, or None."""
        return None

    def set_source(self, source: "Format") -> None:
        """Make this format read the tensors of `source`.

        Raises:
            UserError: this kind of format cannot read from a format of the kind of `source`.
        """
        raise UserError(f"A layer of the kind '{self.kind}' cannot read from another layer; got a '{source.kind}'.")

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        """Fit the stored numbers to another matrix, in place; zeros, codes and ranks stay.

        Args:
            target: the matrix to approximate.
            moment: H (in, in), positive definite. The error E minimises tr(E H E^T).
        """

    def unpack(self) -> None:
        """Convert the tensors of a loaded checkpoint to those that `forward` uses; a second call does nothing.

        Raises:
            UserError: the tensors are inconsistent.
        """

    def to_embedding(self, padding_idx: int | None) -> "Format":
        """The same matrix (width, vocabulary) as a word embedding, indexed by token.

        Args:
            padding_idx: the padding token, whose row gets no gradient; None for none.

        Raises:
            ValueError: this kind of format never replaces a word embedding.
        """
        raise ValueError(f"a word embedding has no bias, and is never stored as '{self.kind}'")

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Arguments of `empty` as JSON values."""

    @property
    def _sizes(self) -> dict[str, Any]:
        """The shape as arguments of the constructor, for `spec`."""
        return {"out_features": self.out_features, "in_features": self.in_features}

    @classmethod
    def uninitialized(cls: type[F], device: torch.device, *args: Any, **kwargs: Any) -> F:
        """A format on `device` whose tensors have no values yet; the arguments are those of the constructor."""
        with torch.device("meta"):
            layer = cls(*args, **kwargs)
        return layer.to_empty(device=device)

    @classmethod
    def empty(cls: type[F], **spec: Any) -> F:
        """An uninitialised format of this specification, whose tensors are loaded afterwards."""
        return cls(**spec)


class EmbeddingFormat(Format):
    """A format that is called with tokens. It has no bias."""

    is_embedding = True

    @property
    def bias(self) -> Tensor | None:
        return None

    def set_bias(self, bias: Tensor | None) -> None:
        if bias is not None:
            raise ValueError("a word embedding has no bias")

    def to_embedding(self, padding_idx: int | None) -> Format:
        return self


def copy_bias(bias: Tensor | None) -> nn.Parameter | None:
    """A copy of the bias as a new parameter; the bias of a masked-language head is tied to another tensor."""
    return None if bias is None else nn.Parameter(bias.detach().clone())


def set_bias(module: nn.Module, bias: Tensor | None) -> None:
    """Set the bias of a plain linear or of a format to a copy of `bias`.

    Example:
        >>> layer = nn.Linear(2, 3, bias=False)
        >>> set_bias(layer, torch.zeros(3))
        >>> layer.bias.shape
        torch.Size([3])
    """
    if isinstance(module, Format):
        module.set_bias(bias)
    else:
        module.register_parameter("bias", copy_bias(bias))


def embedding_weight(module: nn.Module) -> Float[Tensor, "width vocabulary"]:
    """The matrix (width, vocabulary) of a plain word embedding or of a format."""
    return module.dense() if isinstance(module, Format) else module.get_parameter("weight").T


def dense_weight(module: nn.Module) -> Float[Tensor, "out in"]:
    """The matrix (out, in) of a plain linear or of a format.

    Args:
        module: a module with a `weight` of shape (out, in), or a format.

    Example:
        >>> dense_weight(nn.Linear(2, 3)).shape
        torch.Size([3, 2])
    """
    return module.dense() if isinstance(module, Format) else module.get_parameter("weight")


@torch.no_grad()
def refit_weight(module: nn.Module, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
    """Fit the matrix of a format as `Format.refit` does; the matrix of a plain linear becomes the target."""
    if isinstance(module, Format):
        module.refit(target, moment)
    else:
        module.get_parameter("weight").copy_(target)


def weight_nbytes(module: nn.Module) -> int:
    """Bytes on disk of the weight of a plain linear or of a format, bias excluded.

    Args:
        module: a module with a `weight`, or a format.

    Example:
        >>> weight_nbytes(nn.Linear(2, 3))
        24
    """
    if isinstance(module, Format):
        return module.nbytes()
    weight = module.get_parameter("weight")
    return weight.numel() * weight.element_size()


def weight_macs(module: nn.Module) -> int:
    """Multiply-accumulates of a plain linear or a format for one row of input; 0 for an embedding.

    Args:
        module: a linear or an embedding, or a format.

    Example:
        >>> weight_macs(nn.Linear(2, 3)), weight_macs(nn.Embedding(2, 3))
        (6, 0)
    """
    if isinstance(module, Format):
        return module.macs()
    return 0 if isinstance(module, nn.Embedding) else module.get_parameter("weight").numel()


def byte_parameter(data: UInt8[Tensor, "*matrices bytes"]) -> nn.Parameter:
    """Bytes as a parameter without gradients, which transformers can load and tie."""
    return nn.Parameter(data, requires_grad=False)


def empty_bytes(count: int) -> nn.Parameter:
    """An uninitialised parameter of `count` bytes."""
    return byte_parameter(torch.empty(count, dtype=torch.uint8))
