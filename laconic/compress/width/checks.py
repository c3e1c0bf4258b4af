"""What a model must have so that heads and channels can go: several of them, apart from each other, finite weights."""

from collections.abc import Sequence

from laconic.compress.width.counts import Price, chunk_of
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel
from laconic.model.prunable_group import CoupledGroups, PrunableGroup


def check_several(lm: LanguageModel, families: Sequence[CoupledGroups]) -> None:
    """Raise UserError where each of `families` has but one part, which stays."""
    if not any(family[0].count > 1 for family in families):
        raise UserError(
            f"Nothing of what is to be narrowed in this '{lm.model.config.model_type}' has several parts, and one must "
            "stay: heads that share their keys are one, and what is dropped has none; leave out the step."
        )


def check_enough(families: Sequence[CoupledGroups], keep: float, price: Price, multiple: int) -> None:
    """Raise UserError where what must stay in every layer costs more than `keep` of the whole."""
    whole = sum(price(family) * family[0].count for family in families)
    least = sum(price(family) * chunk_of(family, multiple) for family in families) / whole
    if keep < least:
        raise must_be("keep", f"at least {least:.4f}, which the fewest heads and channels that must stay are", keep)


def check_apart(lm: LanguageModel, families: Sequence[CoupledGroups]) -> None:
    """Raise UserError where several attentions must lose the same heads."""
    if any(len(family) > 1 for family in families):
        raise UserError(
            f"Attentions of '{lm.model.config.model_type}' share a position bias and so lose the same heads, which no "
            "walk from block to block can choose; leave out sequential and anchored."
        )


def check_finite(inners: Sequence[PrunableGroup]) -> None:
    """Raise UserError where a weight is no number."""
    for site in (site for inner in inners for site in inner.sites):
        if not site.weight().isfinite().all():
            raise UserError(f"The weights of '{site.name}' are not finite; take a checkpoint that is whole.")
