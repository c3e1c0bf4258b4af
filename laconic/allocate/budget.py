"""What an allocation may spend, and what each size costs: bytes, parameters, multiply-accumulates or time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch

from laconic.errors import UserError, must_be
from laconic.methods import Candidate, Candidates, Method

Currency = Literal["bytes", "parameters", "macs", "latency"]

COST: dict[Currency, Callable[[Candidate], int]] = {
    "bytes": lambda rung: rung.nbytes,
    "parameters": lambda rung: rung.parameters,
    "macs": lambda rung: rung.macs,
    "latency": lambda rung: rung.nanoseconds,
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`keep` of the cost of everything as it was, `dense`, of which `fixed` is what no choice can save."""

    keep: float
    cost: Callable[[Candidate], int]
    dense: int
    fixed: int = 0

    @property
    def limit(self) -> int:
        """What may be spent on the rungs."""
        return int(self.keep * self.dense) - self.fixed

    def too_small(self, smallest: int) -> UserError:
        """The mistake of asking for less than the cheapest rungs cost."""
        return too_small(self.keep, (smallest + self.fixed) / max(self.dense, 1))


def too_small(keep: float, least: float) -> UserError:
    """The mistake of asking for `keep` where the smallest sizes on offer keep `least`."""
    # Rounded up, so that what is said can be asked for.
    return must_be("keep", f"at least {ceil(1e4 * least) / 1e4:.4f}, which the smallest sizes on offer here keep", keep)


def budget_of(ladders: Iterable[Candidates], keep: float, currency: Currency) -> Budget:
    """`keep` of what the dense matrices of `ladders` cost."""
    cost = COST[currency]
    return Budget(keep=keep, cost=cost, dense=sum(cost(ladder.dense) for ladder in ladders))


def check_overhead(method: Method, keep: float, dtype: torch.dtype, stored: float = 1.0) -> None:
    """Raise UserError where `keep` of the bytes in `dtype`, or of the part of them that is `stored`, leaves no room for
    any number beside the overhead."""
    if keep <= (least := method.overhead(dtype) / stored):
        raise must_be("keep", f"more than {least:g}, which '{method.name}' takes to say where the zeros are", keep)
