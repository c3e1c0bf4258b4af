"""Checks that `Compress` makes before any work, and entries of its record about dense parameters and budgets."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from laconic.allocate import Plan
from laconic.allocate.uniform import CLOSE
from laconic.compress.solve_groups import TiedGroup, all_units, methods_by_unit, split_by_group
from laconic.errors import UserError
from laconic.formats import PackedCodes, PackedEmbedding
from laconic.methods import Method
from laconic.model import LanguageModel

DENSE = "dense"
MOST = 0.1
"""Largest fraction of the targeted parameters that may stay dense without `allow_dense`."""


def check_dense(lm: LanguageModel, targets: Sequence[str], allowed: bool) -> None:
    """Raise UserError if more than `MOST` of the targeted parameters are in no layer that can be compressed.

    Args:
        lm: the model; its weights need not be loaded.
        targets: the targets of the step.
        allowed: the step has `allow_dense`, so the check is skipped.
    """
    found = lm.coverage(targets)
    if found.share > MOST and not allowed:
        raise UserError(
            f"{found.share:.1%} of the parameters that {', '.join(targets)} name in the blocks of "
            f"'{lm.model.config.model_type}' ({found.count:,d} of {found.total:,d}) are in no layer that can be "
            f"compressed and would stay dense: {found.named}; compress the others alone with allow_dense: true "
            "(--allow-dense), or name other targets."
        )


def dense_share(lm: LanguageModel, targets: Sequence[str]) -> dict[str, Any]:
    """List the targeted parameters of the blocks that no step can compress, for the record of a step.

    Experts that are stacked in one tensor are such parameters.

    Args:
        lm: the model.
        targets: the targets of the step.

    Returns:
        `{"dense": {"parameters": 12288, "of": 13200, "share": 0.931, "names": ["mlp.experts.gate_up_proj"]}}`, or an
            empty dictionary if there are none.
    """
    found = lm.coverage(targets)
    if not found.dense:
        return {}
    return {
        DENSE: {
            "parameters": found.count,
            "of": found.total,
            "share": round(found.share, 4),
            "names": list(found.kinds),
        }
    }


def check_not_coded(groups: Sequence[TiedGroup]) -> None:
    """Raise UserError if a targeted layer is quantized already; its codes cannot be compressed further."""
    for unit in all_units(groups):
        for site in unit.sites:
            if isinstance(site.module, (PackedCodes, PackedEmbedding)):
                raise UserError(
                    f"The layer '{site.name}' is quantized already; put this step before the one that quantizes, "
                    f"or choose other targets."
                )


def check_zeros_stay(groups: Sequence[TiedGroup], method: Method, plan: Plan | None) -> None:
    """Raise UserError if a layer is pruned and its method would not keep the zeros."""
    for unit, chosen in methods_by_unit(groups, method, plan):
        for site in unit.sites:
            if not chosen.keeps_support and site.support is not None:
                raise UserError(
                    f"The layer '{site.name}' is pruned, and '{chosen.name}' would fill its zeros; "
                    f"prune after '{chosen.name}', or choose other targets."
                )


REACHED = "reached"


def shortfall(
    keep: float | Mapping[str, float], groups: Sequence[TiedGroup], after: Mapping[str, int], dtype: torch.dtype
) -> dict[str, Any]:
    """List the budgets of which more than 1 % was left unspent, because the sizes of the method are too coarse.

    Args:
        keep: the fraction of bytes to keep, or one fraction for each group.
        groups: the targeted layers.
        after: bytes of each layer after the step.
        dtype: the dtype that the model is stored in.

    Returns:
        `{"reached": [{"keep": 0.5, "kept": 0.26}]}` with one entry for each such budget, or an empty dictionary.
    """
    lines = []
    for budget, members in split_by_group(keep, groups):
        sites = [site for group in members for unit in group[0] for site in unit.sites]
        dense = sum(site.shape[0] * site.shape[1] for site in sites) * dtype.itemsize
        reached = sum(after[site.name] for site in sites) / dense
        if reached < (1 - CLOSE) * budget:
            lines.append({"keep": budget, "kept": round(reached, 4)})
    return {REACHED: lines} if lines else {}
