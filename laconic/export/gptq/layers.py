"""The tensors of the GPTQ format (AutoGPTQ, GPT-QModel).

    W[o, i] = s[g, o] (q[i, o] − z[g, o]) with g = g_idx[i]

`qweight` holds q, packed along the inputs, and `qzeros` holds z along the outputs, each as one stream of bits in words
of 32, the lowest first. In the layout `gptq` z is stored less one, in `gptq_v2` as it is. `scales` holds s in float16,
as laconic does.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.export.coded_linear import CodedLinear, repeat_groups
from laconic.formats import Quantized
from laconic.model.checkpoints.quantized.coded_matrix import CodedMatrix, unpack_rows
from laconic.model.checkpoints.quantized.integers import row_bytes
from laconic.numerics.packing import pack

WORD = torch.int32


@dataclass(frozen=True)
class GptqScheme:
    """The one scheme of a GPTQ checkpoint.

    Args:
        bits: 2, 3, 4 or 8.
        group: columns that share a scale; None for whole rows.
        symmetric: all zero points are 2^(bits − 1).
        zero_offset: what zero points are stored less: 1 in the layout `gptq`, 0 in `gptq_v2`.

    Example:
        >>> GptqScheme(4, 128, True).label
        'GPTQ, 4 bits, groups of 128, symmetric'
    """

    bits: int
    group: int | None
    symmetric: bool
    zero_offset: int = 1

    @property
    def label(self) -> str:
        """Its description in reports."""
        groups = "a scale for each row" if self.group is None else f"groups of {self.group}"
        return f"GPTQ, {self.bits} bits, {groups}, {'symmetric' if self.symmetric else 'asymmetric'}"


class GptqLinear(CodedLinear):
    """A linear layer whose buffers are the tensors of the exported file.

    Args:
        layer: the quantized layer; the codes of a row and the zero points of a column fill whole words.
        scheme: the scheme of the checkpoint.
        dtype: the dtype of the model.

    Example:
        >>> from laconic.numerics.grid import Grid
        >>> grid = Grid(torch.full((32, 1), 0.5), torch.full((32, 1), 8.0), bits=4, group=32)
        >>> layer = Quantized.from_codes(torch.full((32, 32), 10), grid, symmetric=True)
        >>> stored = GptqLinear(layer, GptqScheme(4, None, True), torch.float32)
        >>> stored.qweight.shape, stored.qzeros[0, 0].item() == 0x77777777, stored.dense()[0, 0].item()
        (torch.Size([4, 32]), True, 1.0)
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor

    def __init__(self, layer: Quantized, scheme: GptqScheme, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        (rows, columns), self.scheme = self.shape, scheme
        grid = layer.grid
        scale, zero = (repeat_groups(numbers, rows, columns, scheme.group) for numbers in (grid.scale, grid.zero))
        # A copy, as a view of other words needs aligned bytes.
        words = layer.codes.detach().clone().view(WORD).view(rows, -1)
        stored_zero = (zero.T.int() - scheme.zero_offset).to(torch.uint8)
        self.register_buffer("qweight", words.T.contiguous())
        self.register_buffer("qzeros", pack(stored_zero.reshape(-1), scheme.bits).view(WORD).view(zero.shape[1], -1))
        self.register_buffer("scales", scale.T.contiguous().half())
        self.register_buffer("g_idx", torch.arange(columns, dtype=torch.int32) // (columns // scale.shape[1]))

    def dense(self) -> Float[Tensor, "out in"]:
        zero = unpack_rows(self.qzeros.view(torch.uint8), self.scheme.bits).int() + self.scheme.zero_offset
        matrix = CodedMatrix(
            packed=row_bytes(self.qweight),
            shape=self.shape,
            bits=self.scheme.bits,
            scale=self.scales.T.contiguous(),
            zero=zero.T.contiguous(),
        )
        return matrix.dense().to(self.dtype)
