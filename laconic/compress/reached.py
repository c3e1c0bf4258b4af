"""What `keep` came to, where the sizes of a method lie too far apart to reach it: bits are whole numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from laconic.allocate.uniform import CLOSE
from laconic.compress.planning import split_by_group
from laconic.compress.solve_groups import TiedGroup

REACHED = "reached"


def shortfall(
    keep: float | Mapping[str, float], of: Sequence[TiedGroup], after: Mapping[str, int], dtype: torch.dtype
) -> dict[str, Any]:
    """What to tell of a step that was to keep `keep` of the bytes in `dtype`, of which `after` are left by site.

    Empty where every budget is met within 1 %; else `{"reached": [{"keep": 0.5, "kept": 0.26}]}`, a line for each
    budget that is not.
    """
    lines = []
    for asked, families in split_by_group(keep, of):
        sites = [site for family in families for unit in family[0] for site in unit.sites]
        dense = sum(site.shape[0] * site.shape[1] for site in sites) * dtype.itemsize
        reached = sum(after[site.name] for site in sites) / dense
        if reached < (1 - CLOSE) * asked:
            lines.append({"keep": asked, "kept": round(reached, 4)})
    return {REACHED: lines} if lines else {}
