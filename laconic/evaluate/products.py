"""The matrix products of a forward pass, in float32 or in bfloat16.

In float32 the faster of torch's two libraries multiplies (`laconic.formats.products`). In bfloat16 the inputs, the
matrix and the outputs of every product are rounded to 8 significant bits, and sums are in float32. Norms, attention and
the residual stream stay in float32, and so does the head: rounded logits would add to every divergence.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from laconic.errors import UserError, must_be
from laconic.formats import Codebook, PackedCodes, Quantized
from laconic.formats.products import multiply
from laconic.model import LanguageModel

FLOAT32, BFLOAT16 = "float32", "bfloat16"
DTYPES = (FLOAT32, BFLOAT16)


def check_dtype(dtype: str, device: torch.device) -> None:
    """Check that a device can multiply in a dtype.

    Args:
        dtype: one of `DTYPES`.
        device: the device of the model.

    Raises:
        UserError: the dtype is unknown, or the processor has no products in bfloat16.
    """
    if dtype not in DTYPES:
        raise must_be("dtype", " or ".join(DTYPES), dtype)
    if dtype == BFLOAT16 and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UserError("This processor has no products in bfloat16, which dtype asks for; use float32.")


def with_products(lm: LanguageModel, dtype: str = FLOAT32) -> LanguageModel:
    """A copy of a model on the same tensors, whose linears multiply in a dtype.

    Args:
        lm: the model, in float32.
        dtype: one of `DTYPES`. The head multiplies in float32.

    Raises:
        UserError: as `check_dtype`.

    Example:
        >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
        >>> config = GPTNeoXConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
        >>> lm = LanguageModel.of(GPTNeoXForCausalLM(config))
        >>> copy = with_products(lm)
        >>> copy.model.get_output_embeddings().weight is lm.model.get_output_embeddings().weight
        True
    """
    check_dtype(dtype, lm.device)
    twin = lm.shallow_copy()
    head = twin.model.get_output_embeddings()
    for name, module in list(twin.model.named_modules()):
        if type(module) is nn.Linear:
            rounds = dtype == BFLOAT16 and module is not head
            twin.model.set_submodule(name, (RoundedLinear if rounds else FastLinear)(module))
        elif isinstance(module, (Quantized, Codebook)) and dtype == BFLOAT16 and module is not head:
            twin.model.set_submodule(name, RoundedCodes(module))
    return twin


class FastLinear(nn.Linear):
    """A linear on the tensors of another, which multiplies by the faster library.

    Args:
        layer: the other linear.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        return multiply(input, self.weight, self.bias)


class RoundedLinear(FastLinear):
    """The same with products in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        return _multiply_rounded(input, self.weight, self.bias)


class RoundedCodes(nn.Module):
    """A quantized layer whose decoded matrix is rounded to bfloat16 and multiplied in it.

    Args:
        layer: the quantized layer.
    """

    def __init__(self, layer: PackedCodes) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        """As `Format.weight`, for code of transformers that reads its dtype."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return _multiply_rounded(x, self.layer.dense(), self.layer.bias)


def _multiply_rounded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias, the product in bfloat16 and all else in the dtype of `x`."""
    y = linear(x.bfloat16(), weight.bfloat16()).to(x.dtype)
    return y if bias is None else y + bias
