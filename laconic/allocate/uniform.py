"""Every matrix keeps the same fraction of its bytes."""

from collections.abc import Mapping

from laconic.allocate.plan import Plan
from laconic.methods import Method


def uniform(method: Method, shapes: Mapping[str, tuple[int, int]], keep: float) -> Plan:
    """`method` set to `keep` for each shape (out, in); keeping everything leaves the matrices as they are."""
    return {name: None if keep >= 1 else method.at(keep, shape) for name, shape in shapes.items()}
