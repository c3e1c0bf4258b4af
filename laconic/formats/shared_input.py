"""One product for several layers: the first that is called with a tensor multiplies, the others take what it got."""

from collections.abc import Callable

import torch
from torch import Tensor


class SharedInput:
    """f(x) for `shared_by` layers that are called with the same tensor x in turn; both are let go with the last."""

    def __init__(self, shared_by: int) -> None:
        self.shared_by = shared_by
        # (x, its version and whether gradients were on, f(x), how many layers have yet to ask for it)
        self._latest: tuple[Tensor, tuple[int, bool], Tensor, int] | None = None

    def __deepcopy__(self, memo: object) -> "SharedInput":
        # What is held belongs to one call of one model.
        return SharedInput(self.shared_by)

    def of(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """f(x), computed unless the latest call was with this very tensor."""
        if self.shared_by == 1 or torch.compiler.is_compiling():
            # A compiler merges equal products by itself.
            return f(x)
        held = self._latest
        # What was changed in place is another input, though it is the same tensor; inference tensors keep no count.
        state = (0 if x.is_inference() else x._version, torch.is_grad_enabled())
        if held is not None and held[0] is x and held[1] == state:
            _, _, z, left = held
        else:
            z, left = f(x), self.shared_by
        self._latest = (x, state, z, left - 1) if left > 1 else None
        return z
