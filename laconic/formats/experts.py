"""Stacks that hold one matrix of every expert of a layer, all of one kind and size."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from laconic.formats.base import Format, copy_bias
from laconic.formats.routing import Routing, grouped_product

Stack = TypeVar("Stack", bound="ExpertStack")


class ExpertStack(nn.Module, ABC):
    """One matrix (out, in) of every expert of a layer, all of one kind and size, with their biases.

    Subclasses are final. They are to an `ExpertLayer` what a `Format` is to a linear layer.

    Args:
        experts: the number of matrices.
        out_features: rows of each.
        in_features: columns of each.
        bias: whether there are biases.

    Example:
        >>> stack: ExpertStack = DenseExpertStack(4, 3, 2, bias=True)
        >>> stack.shape, stack.nbytes(), stack.slice(0)
        ((3, 2), 96, Linear(in_features=2, out_features=3, bias=True))
    """

    kind: ClassVar[str]
    """The name of the kind in the configuration of a saved model."""
    matrix_parameter: ClassVar[str | None] = None
    """The parameter that has all matrices as they are, which a later step compresses. None if the matrices consist of
    several others, which a later step compresses one by one."""
    input_modules: ClassVar[tuple[str, ...]] = ()
    """Names of the stacks inside it that read its input, and so share its statistics."""

    def __init__(self, experts: int, out_features: int, in_features: int, bias: bool) -> None:
        super().__init__()
        self.experts, self.out_features, self.in_features = experts, out_features, in_features
        self.register_parameter("bias", nn.Parameter(torch.empty(experts, out_features)) if bias else None)
        self.bias: nn.Parameter | None

    def requires_grad_(self, requires_grad: bool = True) -> "ExpertStack":
        """Like the method of torch, but only for floating-point parameters; codes have no gradient."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(requires_grad)
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix of one expert."""
        return self.out_features, self.in_features

    def forward(self, x: Float[Tensor, "pairs in"], routing: Routing) -> Float[Tensor, "pairs out"]:
        """Multiply the rows of each expert by its matrix, and add its bias.

        Args:
            x: the rows, sorted by expert.
            routing: the expert of each row.
        """
        product = self.product(x, routing)
        return product if self.bias is None else product + self.bias[routing.experts]

    @abstractmethod
    def product(self, x: Float[Tensor, "pairs in"], routing: Routing) -> Float[Tensor, "pairs out"]:
        """`forward` without the biases."""

    @abstractmethod
    def slice(self, index: int) -> Format | nn.Linear:
        """The matrix and the bias of one expert as a format or a linear layer, on the same tensors where possible.

        Args:
            index: the number of the expert.
        """

    def dense(self, index: int) -> Float[Tensor, "out in"]:
        """The matrix of one expert, without gradient; where possible it is a view of the stored tensor."""
        matrix = self.slice(index)
        return (matrix.dense() if isinstance(matrix, Format) else matrix.weight).detach()

    def support(self, index: int) -> Bool[Tensor, "out in"] | None:
        """True at weights of one expert that may be nonzero; None if nothing was pruned."""
        return None

    @abstractmethod
    def set_slice(self, index: int, matrix: Format | nn.Module) -> None:
        """Copy the matrix of one expert, and its bias if there is one, into the stack.

        Args:
            index: the number of the expert.
            matrix: a format or a linear layer, of the kind and size of `slice`.
        """

    def _set_bias_of(self, index: int, bias: Tensor | None) -> None:
        if self.bias is not None and bias is not None:
            self.bias.detach()[index] = bias.detach()

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Names of the tensors in a state dict that store the matrices in fewer bits than they are computed with."""
        return ()

    def unpack(self) -> None:
        """Convert the tensors of a loaded checkpoint to those that `forward` uses; a second call does nothing.

        Raises:
            UserError: the tensors are inconsistent.
        """

    def set_bias(self, bias: Tensor | None) -> None:
        """Set the biases (experts, out) to a copy of `bias`; None removes them."""
        self.bias = copy_bias(bias)

    @property
    def count(self) -> int:
        """The number of stored weights of all experts, for a stack that stores each matrix as a whole."""
        return self.experts * self.out_features * self.in_features

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes on disk of all matrices in the present dtype, without the biases."""

    @abstractmethod
    def nbytes_in(self, dtype: torch.dtype) -> int:
        """`nbytes` after a cast to `dtype`."""

    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates for one pair of a token and an expert, bias excluded."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Arguments of `empty` as JSON values."""

    @property
    def _sizes(self) -> dict[str, Any]:
        """The arguments of this class as arguments of the constructor, for `spec`."""
        sizes = {"experts": self.experts, "out_features": self.out_features, "in_features": self.in_features}
        return {**sizes, "bias": self.bias is not None}

    @classmethod
    def empty(cls: type[Stack], **spec: Any) -> Stack:
        """An uninitialised stack of this specification, whose tensors are loaded afterwards."""
        return cls(**spec)


class DenseExpertStack(ExpertStack):
    """The matrices of all experts in one parameter, as the model stores them.

    Args:
        experts: the number of matrices.
        out_features: rows of each.
        in_features: columns of each.
        bias: whether there are biases.
        is_transposed: whether the parameter is (experts, in, out) instead of (experts, out, in).

    Example:
        >>> stack = DenseExpertStack(4, 3, 2, bias=False)
        >>> stack.weight.shape, stack.slice(1).weight.shape, stack.macs()
        (torch.Size([4, 3, 2]), torch.Size([3, 2]), 6)
    """

    kind = "dense"
    matrix_parameter = "weight"

    def __init__(
        self, experts: int, out_features: int, in_features: int, bias: bool, is_transposed: bool = False
    ) -> None:
        super().__init__(experts, out_features, in_features, bias)
        self.is_transposed = is_transposed
        rows, columns = (in_features, out_features) if is_transposed else (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(experts, rows, columns))

    @classmethod
    def of(
        cls, weight: nn.Parameter, bias: nn.Parameter | None = None, is_transposed: bool = False
    ) -> "DenseExpertStack":
        """A stack of the parameters of a model, which stay the same objects.

        Args:
            weight: (experts, out, in), or (experts, in, out) if `is_transposed`.
            bias: (experts, out), or None.
            is_transposed: the layout of `weight`.
        """
        experts, rows, columns = weight.shape
        shape = (columns, rows) if is_transposed else (rows, columns)
        with torch.device("meta"):
            stack = cls(experts, *shape, bias=bias is not None, is_transposed=is_transposed)
        stack.weight, stack.bias = weight, bias
        return stack

    @property
    def matrices(self) -> Float[Tensor, "experts out in"]:
        """The matrices in one layout for all models."""
        return self.weight.transpose(-2, -1) if self.is_transposed else self.weight

    def product(self, x: Float[Tensor, "pairs in"], routing: Routing) -> Float[Tensor, "pairs out"]:
        return grouped_product(x, self.matrices, routing.ends)

    def dense(self, index: int) -> Float[Tensor, "out in"]:
        return self.matrices.detach()[index]

    def slice(self, index: int) -> nn.Linear:
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(self.matrices.detach()[index], requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach()[index], requires_grad=False)
        return linear

    def set_slice(self, index: int, matrix: Format | nn.Module) -> None:
        assert isinstance(matrix, nn.Linear)
        self.matrices.detach()[index] = matrix.weight.detach()
        self._set_bias_of(index, matrix.bias)

    def nbytes(self) -> int:
        return self.weight.nbytes

    def nbytes_in(self, dtype: torch.dtype) -> int:
        return self.weight.numel() * dtype.itemsize

    def macs(self) -> int:
        return self.out_features * self.in_features

    def spec(self) -> dict[str, Any]:
        return {**self._sizes, "is_transposed": self.is_transposed}


class ViewedExpertStack(DenseExpertStack):
    """The matrices of all experts that another module has as parameters, whichever tensors these are at the moment.

    Args:
        owner: the module.
        name: the name of the parameter; biases are in `<name>_bias`.
        is_transposed: the layout of the parameter.

    Example:
        >>> owner = nn.Module()
        >>> owner.down_proj = nn.Parameter(torch.zeros(4, 3, 2))
        >>> stack = ViewedExpertStack(owner, "down_proj", is_transposed=False)
        >>> owner.down_proj = nn.Parameter(torch.ones(4, 3, 2))
        >>> stack.weight is owner.down_proj, stack.slice(1).weight.sum().item()
        (True, 6.0)
    """

    def __init__(self, owner: nn.Module, name: str, is_transposed: bool) -> None:
        weight = owner.get_parameter(name)
        experts, *sides = weight.shape
        shape = reversed(sides) if is_transposed else sides
        has_bias = owner._parameters.get(f"{name}_bias") is not None
        with torch.device("meta"):
            super().__init__(experts, *shape, bias=has_bias, is_transposed=is_transposed)
        self._parameters.clear()
        # Outside of the registry of modules: the owner is no part of the stack.
        vars(self)["_owned"] = (owner, {"weight": name, "bias": f"{name}_bias"})

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias") and "_owned" in self.__dict__:
            owner, names = self.__dict__["_owned"]
            return owner._parameters.get(names[name])
        return super().__getattr__(name)
