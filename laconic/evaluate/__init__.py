"""Quality (GLUE, LAMA, BLiMP, perplexity, exact match, fidelity) and cost (bytes, operations, time, memory)."""

from laconic.evaluate.comparable import check_comparable
from laconic.evaluate.conditions import Conditions
from laconic.evaluate.contamination import made_with
from laconic.evaluate.cost import Cost, measure_cost
from laconic.evaluate.fidelity import Fidelity, compared, fidelity
from laconic.evaluate.reference import Reference, References
from laconic.evaluate.run import Evaluation, evaluate
from laconic.evaluate.speed import Latency, latency
from laconic.evaluate.tasks import check_task, check_tasks

__all__ = [
    "Conditions",
    "Cost",
    "Evaluation",
    "Fidelity",
    "Latency",
    "Reference",
    "References",
    "check_comparable",
    "check_task",
    "check_tasks",
    "compared",
    "evaluate",
    "fidelity",
    "latency",
    "made_with",
    "measure_cost",
]
