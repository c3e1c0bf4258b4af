"""The product of two large matrices in fp32.

torch multiplies by MKL, which leaves the wider half of the vector registers of some processors unused. oneDNN, which
torch has too, does not. Which of them multiplies depends on the processor alone, so that results can be repeated.
"""

from collections.abc import Callable

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
    linear = _onednn_linear() if single else None
    return A @ B if linear is None else linear(A, B.T, None, "none", [], "")


def _onednn_linear() -> Callable[..., Tensor] | None:
    """The linear of oneDNN; None if torch has none, or if MKL is as fast on this processor."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    # It is not part of torch's public interface, so that another version may lack it.
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
