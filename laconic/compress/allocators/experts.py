"""Sizes of the experts of a stack, which all get the same one: its cost and loss are the sums over the experts."""

from collections.abc import Sequence
from dataclasses import replace

from laconic.allocate import Currency
from laconic.compress.solve_groups import LayerSet
from laconic.errors import UserError
from laconic.methods import Candidate, Candidates


def check_currency(currency: Currency, layer_sets: Sequence[LayerSet]) -> None:
    """Raise UserError if the currency counts work and experts are targeted: the router decides the work of each."""
    stack = next((group.stack for layer_set in layer_sets for group in layer_set.joint if group.stack), None)
    if currency in ("macs", "latency") and stack is not None:
        raise UserError(
            f"The currency {currency} counts each matrix once for a token, but the router decides which experts of "
            f"'{stack}' a token has; take bytes or parameters, or leave experts out of the targets."
        )


def add_candidates(parts: Sequence[Candidates]) -> Candidates:
    """Return the candidates of a stack: each size that all of its matrices offer, with the sum of costs and losses.

    Args:
        parts: the candidates of each matrix.
    """
    if len(parts) == 1:
        return parts[0]
    by_method = [{option.method: option for option in part.all} for part in parts]
    common = [method for method in by_method[0] if all(method in options for options in by_method)]
    return Candidates(tuple(_add_options([options[method] for options in by_method]) for method in common))


def _add_options(options: Sequence[Candidate]) -> Candidate:
    return replace(
        options[0],
        nbytes=sum(option.nbytes for option in options),
        parameters=sum(option.parameters for option in options),
        loss=sum(option.loss for option in options),
    )
