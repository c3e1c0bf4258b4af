"""Parameters in the blocks that stay dense because no linear layer holds them, like fused experts: told, or refused.

Codes are the last word on a matrix: a step that would make another of it is refused before any work.

Zeros that an earlier step chose stay zeros: a method that would fill them is refused before any work.

What `keep` came to, where the sizes of a method lie too far apart to reach it: bits are whole numbers.
"""

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
"""The largest part of what was asked for that may stay dense without being asked for."""


def check_dense(lm: LanguageModel, targets: Sequence[str], allowed: bool) -> None:
    """Raise UserError where more than `MOST` of what `targets` name in the blocks of `lm` can only stay dense.

    Args:
        lm: the model; its weights may be absent.
        targets: of the step.
        allowed: that was asked for.
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
    """How many parameters of the blocks `targets` names but no step can compress, for the record of a step.

    Experts stacked in one tensor are such parameters. The record is empty where there are none; else it is
    `{"dense": {"parameters": 12288, "of": 13200, "share": 0.931, "names": ["mlp.experts.gate_up_proj"]}}`.
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
    """Look at every matrix that is targeted.

    Raises:
        UserError: one of them is quantized.
    """
    for unit in all_units(groups):
        for site in unit.sites:
            if isinstance(site.module, (PackedCodes, PackedEmbedding)):
                raise UserError(
                    f"The layer '{site.name}' is quantized already; put this step before the one that quantizes, "
                    f"or choose other targets."
                )


def check_zeros_stay(groups: Sequence[TiedGroup], method: Method, plan: Plan | None) -> None:
    """Look at what each unit would be solved by.

    Raises:
        UserError: a layer is pruned, and its method does not keep the zeros.
    """
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
    """What to tell of a step that was to keep `keep` of the bytes in `dtype`, of which `after` are left by site.

    Empty where every budget is met within 1 %; else `{"reached": [{"keep": 0.5, "kept": 0.26}]}`, a line for each
    budget that is not.
    """
    lines = []
    for budget, members in split_by_group(keep, groups):
        sites = [site for group in members for unit in group[0] for site in unit.sites]
        dense = sum(site.shape[0] * site.shape[1] for site in sites) * dtype.itemsize
        reached = sum(after[site.name] for site in sites) / dense
        if reached < (1 - CLOSE) * budget:
            lines.append({"keep": budget, "kept": round(reached, 4)})
    return {REACHED: lines} if lines else {}
