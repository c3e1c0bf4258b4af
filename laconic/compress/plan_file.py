"""The plan of a step on a streamed model, in a file of its scratch folder, so that a killed run does not plan again."""

import json

from laconic.allocate import parse_plan, plan_to_config
from laconic.compress.allocators import AllocationResult
from laconic.errors import UserError
from laconic.files import replacing, report_unwritable
from laconic.model import LanguageModel

PLAN = "plan.json"


def read_plan(lm: LanguageModel) -> AllocationResult | None:
    """Return the plan of an earlier run of the step; None if there is none that can be read, or for a model in memory.

    Args:
        lm: the model.
    """
    if lm.loans is None:
        return None
    try:
        content = json.loads((lm.loans.scratch / PLAN).read_text(encoding="utf-8"))
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
    file = lm.loans.scratch / PLAN
    with report_unwritable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, flush=True) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
