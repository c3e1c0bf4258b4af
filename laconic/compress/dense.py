"""Parameters in the blocks that stay dense because no linear layer holds them, like fused experts: told, or refused."""

from collections.abc import Sequence
from typing import Any

from laconic.errors import UserError
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
