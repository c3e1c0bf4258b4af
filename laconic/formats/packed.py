"""A matrix stored as codes of a few bits each, packed without gaps on disk and in memory.

All tensors are bytes, which a cast of the model does not change. A product decodes the matrix, multiplies and drops it;
or a kernel multiplies with the codes, where that is faster on this machine (`laconic.formats.autotune`).
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor, nn

from laconic.formats.autotune import Choice, KernelCache, autotune, can_use_kernels
from laconic.formats.base import EmbeddingFormat, Format, byte_parameter, copy_bias, empty_bytes
from laconic.formats.kernels import DECODED, Kernel, KernelFamily
from laconic.formats.products import multiply
from laconic.numerics.grid_search import LARGEST_SCALE
from laconic.numerics.packing import (
    as_bytes,
    from_bytes,
    pack,
    pack_mask,
    packed_nbytes,
    unpack,
    unpack_at,
    unpack_mask,
)
from laconic.numerics.scaling import TiedWeights, refit_tied

P = TypeVar("P", bound="PackedCodes")


class PackedCodes(Format):
    """y = Ŵ x + bias, Ŵ decoded from `codes`; base class of `Quantized`, `Codebook`, `DynamicInt8`, `GgmlBlocks`.

    Stored: `codes`, ⌈kept · bits / 8⌉ bytes; `kept_bits`, a bit for each weight of a pruned matrix; `shift`, the bias.

    Args:
        shape: (out, in).
        bits: bits of a code.
        kept: number of nonzero weights, as only their codes are stored; None if nothing was pruned.
        bias: whether there is a bias.

    Example:
        >>> from laconic.formats import DynamicInt8
        >>> codes, scales = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), torch.tensor([0.5, 1.0])
        >>> layer = DynamicInt8.from_codes(codes, scales, torch.float32, None)
        >>> isinstance(layer, PackedCodes), layer.bits, layer.dense().tolist()
        (True, 8, [[0.5, -1.0], [3.0, 4.0]])
    """

    input_modules = ()
    matrix_parameter = "codes"
    codes: nn.Parameter
    kept_bits: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(self, shape: tuple[int, int], bits: int, kept: int | None, bias: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.bits, self.kept = bits, kept
        self.codes = empty_bytes(packed_nbytes(self.count, bits))
        self.kept_bits = None if kept is None else empty_bytes(packed_nbytes(shape[0] * shape[1], 1))
        self.shift = nn.Parameter(torch.empty(shape[0])) if bias else None
        self.kernels = KernelCache()
        self._decoded: Tensor | None = None

    @abstractmethod
    def decode(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        """The values of codes in fp32: of the whole matrix, or of some of its `columns`."""

    @abstractmethod
    def nearest_codes(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """The code of the value nearest to each weight, among the values that this layer can represent."""

    def nearest(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The values nearest to `weight`, in fp32; zero where weights were pruned."""
        values, mask = self.decode(self.nearest_codes(weight), None), self.support
        return values if mask is None else torch.where(mask, values, 0)

    def requantize(self, weight: Float[Tensor, "out in"]) -> None:
        """Store the codes nearest to `weight`; scales, tables and pruned weights do not change."""
        self.encode(self.nearest_codes(weight), self.support)

    @property
    @abstractmethod
    def shared_values(self) -> nn.Parameter:
        """The 16-bit scales or values that the codes refer to, as bytes."""

    @abstractmethod
    def tied_weights(self, codes: Integer[Tensor, "out in"]) -> TiedWeights:
        """For each weight, the index of its value among the `shared_values`, and the factor of this value."""

    @property
    def packed_names(self) -> tuple[str, ...]:
        return tuple(name for name, tensor in self.named_parameters() if not tensor.is_floating_point())

    @property
    def count(self) -> int:
        return self.out_features * self.in_features if self.kept is None else self.kept

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        return None if self.kept_bits is None else unpack_mask(self.kept_bits.detach(), self.shape)

    def encode(self, codes: Integer[Tensor, "out in"], mask: Bool[Tensor, "out in"] | None) -> None:
        """Store the codes of all weights, or only of those where `mask` is True."""
        self.codes = byte_parameter(pack(codes.reshape(-1) if mask is None else codes[mask], self.bits))
        if mask is not None:
            self.kept_bits = byte_parameter(pack_mask(mask))

    def dense(self) -> Float[Tensor, "out in"]:
        values, mask = self.decode(self.unpack_codes(), None), self.support
        return (values if mask is None else torch.where(mask, values, 0)).to(self.weight.dtype)

    def unpack_codes(self) -> Integer[Tensor, "out in"]:
        """The code of every weight; 0 for pruned weights."""
        mask = self.support
        if mask is None:
            return unpack(self.codes.detach(), self.bits, self.out_features * self.in_features).view(self.shape)
        codes = torch.zeros(self.shape, dtype=torch.uint8, device=mask.device)
        codes[mask] = unpack(self.codes.detach(), self.bits, int(mask.count_nonzero()))
        return codes

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        codes, mask = self.unpack_codes(), self.support
        indices, factors = self.tied_weights(codes)
        shared = TiedWeights(indices, factors if mask is None else factors * mask)
        with torch.no_grad():
            numbers = refit_tied(target, shared, from_bytes(self.shared_values.detach()), moment)
            self.shared_values.copy_(as_bytes(numbers.clamp(-LARGEST_SCALE, LARGEST_SCALE)))

    def decode_columns(self, which: Integer[Tensor, " k"]) -> Float[Tensor, "out k"]:
        """Some columns of the matrix; without a mask no other column is decoded."""
        if self.kept_bits is not None:
            return self.dense()[:, which]
        starts = torch.arange(self.out_features, device=which.device)[:, None] * self.in_features
        codes = unpack_at(self.codes.detach(), self.bits, starts + which)
        return self.decode(codes, which).to(self.weight.dtype)

    def decode_rows(self, which: Integer[Tensor, " k"]) -> Float[Tensor, "k in"]:
        """Some rows of the matrix."""
        return self.dense()[which]

    @property
    def kernel_family(self) -> KernelFamily[Any] | None:
        """The kernels that can multiply by the codes; None if the matrix is always decoded."""
        return None

    @property
    def matrix(self) -> Any:
        """The argument of the constructors of these kernels."""
        return None

    def kernel_choice(self, rows: int, dtype: torch.dtype = torch.float32) -> Choice | None:
        """The fastest kernel for `rows` input rows, measured at the first call; None if matrices are always decoded."""
        family = self.kernel_family
        return None if family is None or rows > family.max_rows else autotune(family, rows, self.shape, dtype)

    @property
    def kernel_nbytes(self) -> int:
        """Bytes in memory that the called kernels keep in addition to the codes."""
        return self.kernels.nbytes

    @property
    def kernel_names(self) -> dict[int, str]:
        """The kernels that were called, by the number of rows that they were measured for."""
        return self.kernels.names

    def drop_kernels(self) -> None:
        """Free what the called kernels keep; they are made again at the next product."""
        self.kernels = KernelCache()

    @contextmanager
    def keep_decoded(self) -> Iterator[None]:
        """A context in which the layer multiplies by one decoded copy; its codes must not change meanwhile."""
        self._decoded = self.dense()
        try:
            yield
        finally:
            self._decoded = None

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.find_kernel(x, decodes=True) if self._decoded is None else None
        if kernel is None:
            return multiply(x, self.dense() if self._decoded is None else self._decoded, self.bias)
        return kernel(x.reshape(-1, self.in_features), self.bias).view(*x.shape[:-1], self.out_features)

    def find_kernel(self, x: Float[Tensor, "... in"], decodes: bool = False) -> Kernel | None:
        """The kernel for these inputs; None if there is none, or unless `decodes` if the matrix should be decoded."""
        family = self.kernel_family
        if family is None or not can_use_kernels(x, self.weight.dtype, self.shift):
            return None
        name = self.kernels.choose(x.shape[:-1].numel(), x.dtype, self.kernel_choice)
        if name is None or (name == DECODED and not (decodes and family.keeps_decoder)):
            return None
        tensors, make = (self.codes, self.shared_values), family.makers[name]
        return self.kernels.kernel(tensors, name, x.dtype, lambda: make(self.matrix, x.dtype))

    def nbytes(self) -> int:
        return sum(self.get_parameter(name).numel() for name in self.packed_names)

    def macs(self) -> int:
        return self.out_features * self.in_features

    @property
    def bias(self) -> nn.Parameter | None:
        return self.shift

    def set_bias(self, bias: Tensor | None) -> None:
        self.shift = copy_bias(bias)

    def to_embedding(self, padding_idx: int | None) -> Format:
        return PackedEmbedding.from_codes(self, padding_idx)

    def coded_spec(self) -> dict[str, Any]:
        """The part of `spec` that all kinds share."""
        kept = {} if self.kept is None else {"kept": self.kept}
        return {**self._sizes, "bits": self.bits, **kept, "bias": self.bias is not None}

    @classmethod
    def empty(cls: type[P], **spec: Any) -> P:
        return cls((spec.pop("out_features"), spec.pop("in_features")), **spec)


class PackedEmbedding(EmbeddingFormat):
    """y = Ŵ[:, token], decoded only for the tokens of the input.

    Stored: `matrix`, a `PackedCodes` of shape (width, vocabulary), or (vocabulary, width) by rows.

    Args:
        padding_idx: the padding token; None for none.
        by_rows: whether the rows of `matrix` are tokens, as in a head, which may be the same module.

    Example:
        >>> from laconic.calibrate import LayerStats
        >>> from laconic.methods import Rtn
        >>> codes = Rtn(bits=8).compress(torch.eye(3), LayerStats())
        >>> PackedEmbedding.from_codes(codes, padding_idx=None)(torch.tensor([1])).round(decimals=2)
        tensor([[0., 1., 0.]])
    """

    kind = "coded-embedding"
    input_modules = ()
    matrix_parameter = "matrix.codes"

    def __init__(self, padding_idx: int | None, by_rows: bool = False) -> None:
        super().__init__()
        self.padding_idx, self.by_rows = padding_idx, by_rows
        # sentence-transformers casts what follows to the dtype of the first parameter, which cannot be that of codes.
        del self.weight
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.matrix = nn.Module()  # The codes are set later, as nested formats are when a model is loaded.

    @classmethod
    def from_codes(cls, matrix: PackedCodes, padding_idx: int | None, by_rows: bool = False) -> "PackedEmbedding":
        """The embedding that reads these codes."""
        layer = cls(padding_idx, by_rows)
        layer.matrix = matrix
        return layer.to(matrix.weight.device, matrix.weight.dtype)

    @property
    def coded(self) -> PackedCodes:
        """The codes of the matrix."""
        assert isinstance(self.matrix, PackedCodes)
        return self.matrix

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.coded.shape
        return (columns, rows) if self.by_rows else (rows, columns)

    @property
    def count(self) -> int:
        return self.coded.count

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        return self.coded.support

    def forward(self, tokens: Tensor) -> Tensor:
        which = tokens.reshape(-1)
        rows = self.coded.decode_rows(which) if self.by_rows else self.coded.decode_columns(which).T
        return rows.reshape(*tokens.shape, self.shape[0])

    def dense(self) -> Float[Tensor, "out in"]:
        return self.coded.dense().T if self.by_rows else self.coded.dense()

    def nbytes(self) -> int:
        return self.coded.nbytes()

    def macs(self) -> int:
        return 0

    def spec(self) -> dict[str, Any]:
        return {"padding_idx": self.padding_idx, **({"by_rows": True} if self.by_rows else {})}
