"""The plan of a step on a streamed model, in a file of its scratch folder, so that a killed run does not plan again.

Of several processes, the first one reads and writes it.
"""

import json
from pathlib import Path

from laconic.allocate import parse_plan, plan_to_config
from laconic.compress.allocators import AllocationResult
from laconic.errors import UserError
from laconic.files import store_json
from laconic.model import LanguageModel
from laconic.processes import on_rank_zero

PLAN = "plan.json"


def read_plan(lm: LanguageModel) -> AllocationResult | None:
    """Return the plan of an earlier run of the step; None if there is none that can be read, or for a model in memory.

    Args:
        lm: the model.
    """
    return None if lm.loans is None else on_rank_zero(_read)(lm.loans.scratch / PLAN)


def _read(file: Path) -> AllocationResult | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return AllocationResult(parse_plan(content["plan"], PLAN), content["predicted_loss"], content["record"])
    except (OSError, ValueError, LookupError, TypeError, UserError):
        # It is made anew. Parts that were solved by another plan are not taken over.
        return None


def write_plan(lm: LanguageModel, result: AllocationResult) -> None:
    """Keep a plan; for a model in memory, nothing is written.

    Args:
        lm: the model.
        result: the plan.

    Raises:
        UserError: the file cannot be written.
    """
    if lm.loans is None:
        return
    content = {
        "plan": plan_to_config(result.plan),
        "predicted_loss": result.predicted_loss,
        "record": dict(result.record),
    }
    on_rank_zero(store_json)(lm.loans.scratch / PLAN, content)
