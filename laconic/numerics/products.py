"""The product of two large matrices in fp32.

torch multiplies by MKL, which leaves the wider half of the vector registers of some processors unused. oneDNN, which
torch has too, does not. Which of them multiplies depends on the processor alone, so that results can be repeated.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def product(A: Float[Tensor, "m k"], B: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """A B, by oneDNN in fp32 on processors with AVX-512.

    Example:
        >>> product(torch.ones(1, 2), torch.eye(2))
        tensor([[1., 1.]])
    """
    single = A.dtype is B.dtype is torch.float32 and A.device.type == B.device.type == "cpu"
    if single and _uses_onednn():
        return torch.ops.mkldnn._linear_pointwise(A, B.T, None, "none", [], "")
    return A @ B


def _uses_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
