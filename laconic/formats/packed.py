"""A matrix kept as codes of a few bits each, packed without gaps both on disk and in memory.

Every tensor is bytes: codes, the scales or values that they stand for, and the mask of what was pruned. So casting the
model to another dtype leaves them alone, and the file has the size of what is in memory. A product decodes the matrix,
multiplies and forgets it, one layer at a time being held in full; or a kernel multiplies by the codes, where that was
measured to be faster on this machine (`laconic.formats.kernel_cache`).
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor, nn
from torch.nn.functional import linear

from laconic.formats.autotune import Choice, autotune
from laconic.formats.base import EmbeddingFormat, Format, own_bias
from laconic.formats.kernel_cache import Ready, left_to_kernels
from laconic.formats.kernels import KernelFamily
from laconic.numerics.grid import LARGEST_SCALE
from laconic.numerics.packing import pack, pack_mask, packed_nbytes, take, unpack, unpack_mask
from laconic.numerics.tied import Sharing, refit_tied


class Coded(Format):
    """y = Ŵ x + bias, Ŵ decoded from `codes`; with a mask only the codes of the weights that are kept are there.

    A later step is shown the matrix as a whole; no gradient reaches it.
    """

    readers = ()
    holds = "codes"
    codes: nn.Parameter
    kept_bits: nn.Parameter | None
    shift: nn.Parameter | None
    """The bias."""

    def __init__(self, shape: tuple[int, int], bits: int, kept: int | None, bias: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.bits, self.kept = bits, kept
        self.codes = stored(packed_nbytes(self.count, bits))
        self.kept_bits = None if kept is None else stored(packed_nbytes(shape[0] * shape[1], 1))
        self.shift = nn.Parameter(torch.empty(shape[0])) if bias else None
        self._ready = Ready()
        self._whole: Tensor | None = None

    @abstractmethod
    def decoded(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        """What codes stand for, in fp32: of the whole matrix, or of these of its columns."""

    @abstractmethod
    def codes_for(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """The codes of the values nearest to `weight`, of those that this layer's codes can stand for."""

    def nearest(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """What `weight` comes to, in fp32; zero where it was pruned."""
        values, mask = self.decoded(self.codes_for(weight), None), self.support
        return values if mask is None else torch.where(mask, values, 0)

    def recode(self, weight: Float[Tensor, "out in"]) -> None:
        """Become the nearest to `weight`; scales or tables, and what was pruned, stay as they are."""
        self.encode(self.codes_for(weight), self.support)

    @property
    @abstractmethod
    def numbers(self) -> nn.Parameter:
        """The scales or the values, of 16 bits, that the codes stand for."""

    @abstractmethod
    def sharing(self, codes: Integer[Tensor, "out in"]) -> Sharing:
        """Which of the `numbers` the weight of each code has, and how many times."""

    @property
    def packed_names(self) -> tuple[str, ...]:
        return tuple(name for name, tensor in self.named_parameters() if not tensor.is_floating_point())

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def count(self) -> int:
        return self.out_features * self.in_features if self.kept is None else self.kept

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        return None if self.kept_bits is None else unpack_mask(self.kept_bits.detach(), self.shape)

    def encode(self, codes: Integer[Tensor, "out in"], mask: Bool[Tensor, "out in"] | None) -> None:
        """Keep these codes; of a matrix with a mask, those where it is True."""
        self.codes = frozen(pack(codes.reshape(-1) if mask is None else codes[mask], self.bits))
        if mask is not None:
            self.kept_bits = frozen(pack_mask(mask))

    def dense(self) -> Float[Tensor, "out in"]:
        codes, mask = self.unpacked(), self.support
        values = self.decoded(codes, None)
        return (values if mask is None else torch.where(mask, values, 0)).to(self.weight.dtype)

    def unpacked(self) -> Integer[Tensor, "out in"]:
        """The code of every weight; 0 where it was pruned."""
        mask = self.support
        if mask is None:
            return unpack(self.codes.detach(), self.bits, self.out_features * self.in_features).view(self.shape)
        codes = torch.zeros(self.shape, dtype=torch.uint8, device=mask.device)
        codes[mask] = unpack(self.codes.detach(), self.bits, int(mask.count_nonzero()))
        return codes

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        codes, mask = self.unpacked(), self.support
        places, factors = self.sharing(codes)
        shared = Sharing(places, factors if mask is None else factors * mask)
        with torch.no_grad():
            numbers = refit_tied(target, shared, from_bytes(self.numbers.detach()), moment)
            self.numbers.copy_(as_bytes(numbers.clamp(-LARGEST_SCALE, LARGEST_SCALE)))

    def columns(self, which: Integer[Tensor, " k"]) -> Float[Tensor, "out k"]:
        """Some columns of the matrix; where nothing was pruned no other is decoded."""
        if self.kept_bits is not None:
            return self.dense()[:, which]
        rows = torch.arange(self.out_features, device=which.device)[:, None]
        codes = take(self.codes.detach(), self.bits, rows * self.in_features + which)
        return self.decoded(codes, which).to(self.weight.dtype)

    @property
    def family(self) -> KernelFamily[Any] | None:
        """The kernels that can multiply by it; None where decoding is all there is."""
        return None

    @property
    def matrix(self) -> Any:
        """What those kernels are made of."""
        return None

    def choice(self, rows: int, dtype: torch.dtype = torch.float32) -> Choice | None:
        """The kernel that so many rows are multiplied with on this machine; measured now if it has not been before.

        None where the matrix is decoded whatever a measurement would say.
        """
        family = self.family
        return None if family is None or rows > family.most_rows else autotune(family, rows, self.shape, dtype)

    @property
    def kept_nbytes(self) -> int:
        """Bytes in memory beside its tensors: of the kernels that were called."""
        return self._ready.nbytes

    @property
    def kernels(self) -> dict[int, str]:
        """What was called, by the number of rows that it was measured for."""
        return self._ready.names

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context it multiplies by one decoded copy, kept for that long; its codes must stay as they are."""
        self._whole = self.dense()
        try:
            yield
        finally:
            self._whole = None

    def forward(self, x: Tensor) -> Tensor:
        if self._whole is not None:
            return linear(x, self._whole, self.bias)
        family = self.family if left_to_kernels(x, self.weight.dtype, self.shift) else None
        rows = x.shape[:-1].numel()
        if family is not None and rows <= family.most_rows:
            kernel = self._ready.kernel(
                (self.codes, self.numbers),
                rows,
                x.dtype,
                lambda: self.choice(rows, x.dtype),
                lambda name: family.makers[name](self.matrix, x.dtype),
            )
            if kernel is not None:
                y = kernel(x.reshape(-1, self.in_features), self.bias)
                return y.view(*x.shape[:-1], self.out_features)
        return linear(x, self.dense(), self.bias)

    def nbytes(self) -> int:
        return sum(self.get_parameter(name).numel() for name in self.packed_names)

    def macs(self) -> int:
        return self.out_features * self.in_features

    @property
    def bias(self) -> nn.Parameter | None:
        return self.shift

    def set_bias(self, bias: Tensor | None) -> None:
        self.shift = own_bias(bias)

    def for_lookup(self, padding_idx: int | None) -> Format:
        return CodedEmbedding.of(self, padding_idx)

    def coded_spec(self) -> dict[str, Any]:
        """What every kind says of itself."""
        kept = {} if self.kept is None else {"kept": self.kept}
        sizes = {"out_features": self.out_features, "in_features": self.in_features, "bits": self.bits}
        return {**sizes, **kept, "bias": self.bias is not None}


class CodedEmbedding(EmbeddingFormat):
    """y = Ŵ[:, token], decoded token by token from `matrix`, which is (width, vocabulary)."""

    kind = "coded-embedding"
    readers = ()
    holds = "matrix.codes"

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        # A parameter in front of the codes: sentence-transformers puts the modules behind a transformer into the dtype
        # of its first parameter, and there is no dense layer of bytes.
        del self.weight
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        # What it reads from is put here, as it is inside of every format that nests another.
        self.matrix = nn.Module()

    @classmethod
    def of(cls, matrix: Coded, padding_idx: int | None) -> "CodedEmbedding":
        """The embedding that reads from these codes."""
        layer = cls(padding_idx)
        layer.matrix = matrix
        return layer.to(matrix.weight.dtype)

    @property
    def coded(self) -> Coded:
        assert isinstance(self.matrix, Coded)
        return self.matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.coded.shape

    @property
    def count(self) -> int:
        return self.coded.count

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        return self.coded.support

    def forward(self, tokens: Tensor) -> Tensor:
        return self.coded.columns(tokens.reshape(-1)).T.reshape(*tokens.shape, self.shape[0])

    def dense(self) -> Float[Tensor, "out in"]:
        return self.coded.dense()

    def nbytes(self) -> int:
        return self.coded.nbytes()

    def nbytes_in(self, dtype: torch.dtype) -> int:
        # A shell of its own has no codes yet.
        return self.coded.nbytes_in(dtype)

    def macs(self) -> int:
        return 0

    def spec(self) -> dict[str, Any]:
        return {"padding_idx": self.padding_idx}

    @classmethod
    def shell(cls, **spec: Any) -> "CodedEmbedding":
        return cls(**spec)


def as_bytes(values: Tensor) -> UInt8[Tensor, " bytes"]:
    """Numbers of 16 bits as two bytes each, which no cast of a model touches."""
    return values.half().contiguous().view(-1).view(torch.uint8)


def from_bytes(stored: UInt8[Tensor, " bytes"]) -> Float[Tensor, " n"]:
    """The numbers, in fp32."""
    return stored.view(torch.float16).float()


def frozen(data: UInt8[Tensor, " bytes"]) -> nn.Parameter:
    """Bytes as a parameter, by which transformers finds, fills and ties them."""
    return nn.Parameter(data, requires_grad=False)


def stored(count: int) -> nn.Parameter:
    """Room for so many bytes."""
    return frozen(torch.empty(count, dtype=torch.uint8))
