"""The tensors of compressed-tensors.

`pack-quantized`: `weight_packed` holds the codes of a row in 32-bit words, the first in the lowest bits, which is the
order of laconic's own codes; `weight_zero_point` holds the zero points of a group, packed along the rows of the matrix.
`int-quantized`: `weight` holds int8 codes. `weight_scale` holds s of ŵ = s (c − z).

vLLM computes with packed scales in the dtype of the model, so they are stored in it. laconic's scales are float16: they
are exact in a model of float16 or float32, and rounded in a model of bfloat16. Scales of int8 are float32, and exact.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.export.coded_linear import CodedLinear, repeat_groups
from laconic.export.compressed_tensors.schemes import Scheme
from laconic.formats import DynamicInt8, Quantized
from laconic.numerics.packing import from_bytes, pack, unpack

WORD = torch.int32


class CompressedLinear(CodedLinear):
    """A linear layer whose buffers are the tensors of the exported file.

    Args:
        layer: the quantized layer.
        scheme: how it is stored.
        dtype: the dtype of the model.

    Example:
        >>> layer = DynamicInt8.from_codes(torch.tensor([[1, -2]], dtype=torch.int8), scale=torch.tensor([0.5]))
        >>> stored = CompressedLinear(layer, Scheme(bits=8, rounds_inputs=True), torch.float32)
        >>> stored.weight.tolist(), stored.weight_scale.tolist(), stored.dense().tolist()
        ([[1, -2]], [[0.5]], [[0.5, -1.0]])
    """

    weight_scale: Tensor

    def __init__(self, layer: Quantized | DynamicInt8, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        self.scheme = scheme
        if isinstance(layer, DynamicInt8):
            self.register_buffer("weight", layer.codes.detach().view(torch.int8).view(layer.shape))
            self.register_buffer("weight_scale", from_bytes(layer.scales.detach())[:, None])
        else:
            self._store_packed(layer)

    def _store_packed(self, layer: Quantized) -> None:
        (rows, columns), scheme = self.shape, self.scheme
        grid = layer.grid
        scale, zero = (repeat_groups(numbers, rows, columns, scheme.group) for numbers in (grid.scale, grid.zero))
        # A copy, as a view of other words needs aligned bytes.
        self.register_buffer("weight_packed", layer.codes.detach().clone().view(WORD).view(rows, -1))
        self.register_buffer("weight_scale", scale.to(self.dtype))
        change = (self.weight_scale.float() - scale.float()).norm() / scale.float().norm()
        self.scale_rounding = change.nan_to_num().item()
        self.register_buffer("weight_shape", torch.tensor([rows, columns]))
        if not scheme.symmetric:
            packed = pack(zero.T.reshape(-1).to(torch.uint8), scheme.bits).view(WORD).view(zero.shape[1], -1)
            self.register_buffer("weight_zero_point", packed.T.contiguous())

    def dense(self) -> Float[Tensor, "out in"]:
        (rows, columns), scheme = self.shape, self.scheme
        if scheme.rounds_inputs:
            return (self.get_buffer("weight").float() * self.weight_scale).to(self.dtype)
        codes = _unpack(self.get_buffer("weight_packed"), scheme.bits).view(rows, self.weight_scale.shape[1], -1)
        zero = torch.full_like(self.weight_scale, 2 ** (scheme.bits - 1), dtype=torch.float32)
        if not scheme.symmetric:
            zero = _unpack(self.get_buffer("weight_zero_point").T.contiguous(), scheme.bits).view(-1, rows).T.float()
        values = (codes.float() - zero[..., None]) * self.weight_scale[..., None].float()
        return values.view(rows, columns).to(self.dtype)


def _unpack(words: Tensor, bits: int) -> Tensor:
    stream = words.reshape(-1).view(torch.uint8)
    return unpack(stream, bits, 8 * len(stream) // bits)
