"""What may be asked for together: ways to share a budget, what it counts, and how large the error may be."""

from collections.abc import Mapping

from laconic.allocate import Currency
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
    if not error > 0:
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
