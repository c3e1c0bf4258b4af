"""Stacks of quantized matrices: the bytes of one matrix of every expert, stacked on the first axis.

A product decodes only the matrices of experts that have rows. They are multiplied at once where torch has a fast
grouped product, and elsewhere one by one, by the kernel that is fastest for as many rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import pad

from laconic.formats.base import Format, byte_parameter
from laconic.formats.code_matrix import CodeMatrix
from laconic.formats.codebook import Codebook
from laconic.formats.experts import ExpertStack
from laconic.formats.ggml import GgmlBlocks
from laconic.formats.int8 import DynamicInt8
from laconic.formats.packed import PackedCodes
from laconic.formats.products import multiply
from laconic.formats.quantized import Quantized, unpack_grid
from laconic.formats.routing import Routing, can_group, grouped_product
from laconic.numerics.packing import from_bytes, packed_nbytes, unpack_mask

GROUPED_NBYTES = 2**26
"""Bytes of the matrices that are decoded for one grouped product."""
DECODED_NBYTES = 2**22
"""Bytes of the matrices without a kernel that are decoded together, then multiplied alone: they should stay in the
cache."""


class _Slices:
    """The matrices of a stack as formats on its tensors. They are made again if the tensors change."""

    def __init__(self) -> None:
        self._slices: list[PackedCodes] = []
        self._versions: tuple[object, ...] = ()

    def __deepcopy__(self, memo: object) -> "_Slices":
        return _Slices()

    def __reduce__(self) -> tuple[type["_Slices"], tuple[()]]:
        return _Slices, ()

    def of(self, stack: "PackedStack") -> list[PackedCodes]:
        """The slices of a stack, without biases."""
        tensors = (stack.weight, *stack.packed.values())
        versions = tuple(
            (tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version) for tensor in tensors
        )
        if versions != self._versions:
            self._slices, self._versions = [stack.slice_without_bias(index) for index in range(stack.experts)], versions
        return self._slices

    @property
    def cached(self) -> Sequence[PackedCodes]:
        """The slices that exist already."""
        return self._slices


class PackedStack(ExpertStack):
    """y = Ŵ_e x + b_e, with Ŵ_e decoded from the codes of expert e; base class of stacks of `PackedCodes`.

    Stored: the tensors of the format, stacked on the first axis, and the biases in the dtype of the model. If earlier
    pruning left different numbers of weights, the codes of each expert take as many bytes as those of the expert with
    the most.

    Args:
        experts: the number of matrices.
        out_features: rows of each.
        in_features: columns of each.
        bias: whether there are biases.
        **matrix: the other arguments of `empty` of the format of one matrix.
    """

    format: ClassVar[type[PackedCodes]]
    matrix_parameter = "codes"
    codes: nn.Parameter
    weight: Tensor

    def __init__(self, experts: int, out_features: int, in_features: int, bias: bool = False, **matrix: Any) -> None:
        super().__init__(experts, out_features, in_features, bias)
        self.matrix = matrix
        # As in a format: it has the dtype that the matrices are decoded to.
        self.register_buffer("weight", torch.empty(0))
        with torch.device("meta"):
            template = self._template()
        for name, tensor in template.named_parameters():
            self.register_parameter(name, byte_parameter(torch.empty(experts, *tensor.shape, dtype=torch.uint8)))
        self._slices = _Slices()
        self._decoded: Tensor | None = None

    def _template(self) -> PackedCodes:
        sizes = {"out_features": self.out_features, "in_features": self.in_features}
        return self.format.empty(**sizes, bias=False, **self.matrix)

    @classmethod
    def like(cls, matrix: Format, experts: int) -> "PackedStack":
        """An uninitialised stack of matrices like this one, without biases."""
        spec = {name: value for name, value in matrix.spec().items() if name != "bias"}
        with torch.device("meta"):
            stack = cls(experts, **spec, bias=False)
        return stack.to_empty(device=matrix.weight.device).to(matrix.weight.dtype)

    @property
    def packed(self) -> dict[str, nn.Parameter]:
        """The stacked bytes by name."""
        return {name: tensor for name, tensor in self.named_parameters() if not tensor.is_floating_point()}

    def set_slice(self, index: int, matrix: Format | nn.Module) -> None:
        assert isinstance(matrix, self.format)
        for name, tensor in matrix.named_parameters():
            if not tensor.is_floating_point():
                self._set_bytes(name, index, tensor.detach())
        if matrix.kept is not None:
            self.matrix = {**self.matrix, "kept": max(self.matrix["kept"], matrix.kept)}
        self._set_bias_of(index, matrix.bias)

    def _set_bytes(self, name: str, index: int, content: Tensor) -> None:
        stacked = self.packed[name]
        if len(content) > stacked.shape[1]:
            stacked = byte_parameter(pad(stacked.detach(), (0, len(content) - stacked.shape[1])))
            self.register_parameter(name, stacked)
        stacked.detach()[index] = pad(content, (0, stacked.shape[1] - len(content)))

    def slice(self, index: int) -> PackedCodes:
        layer = self.slice_without_bias(index)
        layer.set_bias(None if self.bias is None else self.bias.detach()[index])
        return layer

    def support(self, index: int) -> Bool[Tensor, "out in"] | None:
        kept = self.packed.get("kept_bits")
        return None if kept is None else unpack_mask(kept.detach()[index], self.shape)

    def slice_without_bias(self, index: int) -> PackedCodes:
        """The matrix of one expert on the same bytes."""
        with torch.device("meta"):
            layer = self._template()
        layer.weight = self.weight
        for name, stacked in self.packed.items():
            layer.register_parameter(name, byte_parameter(stacked.detach()[index]))
        if layer.kept_bits is not None and not layer.codes.is_meta:
            layer.kept = int(unpack_mask(layer.kept_bits.detach(), self.shape).count_nonzero())
            layer.codes = byte_parameter(layer.codes.detach()[: packed_nbytes(layer.kept, layer.bits)])
        return layer

    def product(self, x: Float[Tensor, "pairs in"], routing: Routing) -> Float[Tensor, "pairs out"]:
        if self._decoded is not None:
            return grouped_product(x, self._decoded, routing.ends)
        dtype = self.weight.dtype
        if x.is_meta:
            empty = torch.empty(self.experts, *self.shape, dtype=dtype, device="meta")
            return grouped_product(x, empty, routing.ends)
        counts = routing.counts.tolist()
        hit = [expert for expert, count in enumerate(counts) if count]
        if not hit:
            return x.new_empty(0, self.out_features, dtype=dtype)
        slices, rows = self._slices.of(self), x.to(dtype).split(counts)
        if can_group(x.device, dtype, self.shape):
            return torch.cat([self._grouped(chunk, rows) for chunk in self._chunks(hit, GROUPED_NBYTES)])
        products: dict[int, Tensor] = {}
        for expert in hit:
            kernel = slices[expert].find_kernel(rows[expert], decodes=True)
            if kernel is not None:
                products[expert] = kernel(rows[expert], None)
        for chunk in self._chunks([expert for expert in hit if expert not in products], DECODED_NBYTES):
            for expert, matrix in zip(chunk, self.decode(chunk), strict=True):
                products[expert] = multiply(rows[expert], matrix, None)
        return torch.cat([products[expert] for expert in hit])

    def _chunks(self, experts: Sequence[int], nbytes: int) -> Iterator[Sequence[int]]:
        """The experts in parts whose decoded matrices take at most `nbytes`, or of one."""
        at_once = max(1, nbytes // (self.macs() * self.weight.dtype.itemsize))
        for start in range(0, len(experts), at_once):
            yield experts[start : start + at_once]

    def _grouped(self, experts: Sequence[int], rows: Sequence[Tensor]) -> Float[Tensor, "pairs out"]:
        """The products of some experts, by one grouped product."""
        counts = torch.tensor([len(rows[expert]) for expert in experts], device=self.weight.device)
        mine = torch.cat([rows[expert] for expert in experts])
        return grouped_product(mine, self.decode(experts), counts.cumsum(0, dtype=torch.int32))

    def decode(self, experts: Sequence[int]) -> Float[Tensor, "some out in"]:
        """The matrices of some experts."""
        slices = self._slices.of(self)
        return torch.stack([slices[expert].dense() for expert in experts])

    @contextmanager
    def keep_decoded(self) -> Iterator[None]:
        """A context in which the stack multiplies by decoded copies of all matrices; its codes must not change."""
        self._decoded = self.decode(range(self.experts))
        try:
            yield
        finally:
            self._decoded = None

    @property
    def cached_slices(self) -> Sequence[PackedCodes]:
        """The matrices of the experts on the tensors of the stack, with the kernels that they have called; empty before
        the first product."""
        return self._slices.cached

    @property
    def kernel_nbytes(self) -> int:
        """Bytes in memory that the called kernels keep in addition to the codes."""
        return sum(slice.kernel_nbytes for slice in self.cached_slices)

    @property
    def count(self) -> int:
        kept = self.packed.get("kept_bits")
        if kept is None:
            return super().count
        if kept.is_meta:
            return self.experts * self.matrix["kept"]
        return sum(slice.count for slice in self._slices.of(self))

    def nbytes(self) -> int:
        return sum(tensor.numel() for tensor in self.packed.values())

    def nbytes_in(self, dtype: torch.dtype) -> int:
        return self.nbytes()

    def macs(self) -> int:
        return self.out_features * self.in_features

    def spec(self) -> dict[str, Any]:
        return {**self._sizes, **self.matrix}


class QuantizedStack(PackedStack):
    """A stack of `Quantized`; see `PackedStack`.

    Example:
        >>> stack = QuantizedStack(experts=4, out_features=6, in_features=8, bits=4, group=8, symmetric=True)
        >>> stack.codes.shape, stack.nbytes()  # 24 bytes of codes and 12 of scales for each expert
        (torch.Size([4, 24]), 144)
    """

    kind = "quantized-experts"
    format = Quantized

    def decode(self, experts: Sequence[int]) -> Float[Tensor, "some out in"]:
        bits, group, (out, width) = self.matrix["bits"], self.matrix["group"], self.shape
        if group is None or "kept" in self.matrix or width % group or out * width // group * bits % 8:
            return super().decode(experts)
        # Codes and scales fill whole bytes, so the rows of several matrices are decoded as those of one.
        chosen, rows = (
            {name: _select(tensor.detach(), experts) for name, tensor in self.packed.items()},
            len(experts) * out,
        )
        grid = unpack_grid(chosen["scales"], chosen.get("zeros"), (rows, width // group), bits, group)
        matrix = CodeMatrix(chosen["codes"], grid, (rows, width), None)
        if "column_scales" not in chosen:
            return matrix.dense(self.weight.dtype).view(-1, out, width)
        columns = from_bytes(chosen["column_scales"]).view(-1, 1, width)
        return matrix.dense(torch.float32).view(-1, out, width).mul_(columns).to(self.weight.dtype)


def _select(stacked: UInt8[Tensor, "experts bytes"], experts: Sequence[int]) -> UInt8[Tensor, " n"]:
    """The bytes of some experts one after another; they are not copied if they already lie so in the stack."""
    first, last = experts[0], experts[-1]
    if list(experts) == list(range(first, last + 1)):
        return stacked[first : last + 1].view(-1)
    return stacked.index_select(0, torch.tensor(experts, device=stacked.device)).view(-1)


class CodebookStack(PackedStack):
    """A stack of `Codebook`; see `PackedStack`."""

    kind = "codebook-experts"
    format = Codebook


class Int8Stack(PackedStack):
    """A stack of `DynamicInt8`; see `PackedStack`."""

    kind = "dynamic-int8-experts"
    format = DynamicInt8


class GgmlStack(PackedStack):
    """A stack of `GgmlBlocks`; see `PackedStack`."""

    kind = "ggml-blocks-experts"
    format = GgmlBlocks
