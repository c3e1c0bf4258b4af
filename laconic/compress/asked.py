"""What may be asked for together: ways to share a budget, what it counts, and how large the error may be."""

from collections.abc import Mapping
from math import inf

from laconic.allocate import Currency
from laconic.calibrate import GradientStatistic, Statistic
from laconic.calibrate.profile import USUAL, Workload
from laconic.errors import UserError, must_be
from laconic.methods import Method


def check_latency(currency: Currency, allocate: str, keep: float | Mapping[str, float] | None) -> None:
    """Raise UserError where a budget of time cannot be shared out as asked."""
    if currency != "latency" or keep is None:
        return
    if isinstance(keep, Mapping):
        raise must_be("keep", "one number where currency is latency, which is that of the whole model", dict(keep))
    if allocate != "spectrum":
        raise must_be("allocate", "spectrum where currency is latency", allocate)


def check_error(allocate: str, error: float | None, keep: object, method: Method, walks: bool) -> None:
    """Raise UserError unless an error is given where, and only where, sizes are searched by it."""
    if allocate != "threshold":
        if error is not None:
            raise must_be("error", "left out unless allocate is threshold", error)
        return
    if error is None:
        raise UserError("allocate: threshold needs error in a recipe's step: the nats that it allows, like 0.01.")
    if not 0 < error < inf:
        raise must_be("error", "in (0, ∞)", error)
    if keep is not None:
        raise must_be("keep", "left out where allocate is threshold, which takes error", keep)
    if method.has_size:
        raise UserError(f"allocate: threshold finds the sizes, so '{method.name}' must be given without one.")
    if walks:
        raise UserError(
            "sequential and anchored must be left out where allocate is threshold, which measures what it puts in "
            "place; the plan that it finds can be used with them."
        )


def check_used(currency: Currency, allocate: str, workload: Workload) -> None:
    """Raise UserError where something is asked for that would change nothing."""
    if currency != "bytes" and allocate != "spectrum":
        raise must_be("currency", "left out unless allocate is spectrum", currency)
    if workload != USUAL and currency != "latency" and allocate != "threshold":
        raise must_be("workload", "left out unless time counts: currency latency, or allocate threshold", workload)


def check_refresh(refresh: int | None, walks: bool, needs: frozenset[type[Statistic]]) -> None:
    """Raise UserError where gradients cannot be collected anew as asked."""
    if refresh is None:
        return
    if refresh < 1:
        raise must_be("refresh", "at least 1", refresh)
    if not walks:
        raise UserError("refresh must be left out, or come with sequential or anchored, which have stages.")
    if not any(issubclass(kind, GradientStatistic) for kind in needs):
        raise must_be("refresh", "left out where no gradients are asked for", refresh)
