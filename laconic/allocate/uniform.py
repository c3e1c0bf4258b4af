"""Every matrix keeps the same fraction of its bytes."""

from collections.abc import Mapping

import torch

from laconic.allocate.budget import check_overhead
from laconic.allocate.plan import Plan
from laconic.methods import Method


def uniform(
    method: Method, shapes: Mapping[str, tuple[int, int]], keep: float, dtype: torch.dtype = torch.float32
) -> Plan:
    """`method` set to `keep` for each shape (out, in); keeping everything leaves the matrices as they are.

    Raises:
        UserError: `keep` is no more than the overhead of the method.
    """
    check_overhead(method, keep, dtype)
    return {name: None if keep >= 1 else method.at(keep, shape, dtype) for name, shape in shapes.items()}
