"""One budget, many matrices: ladders of options in, a plan out."""

from laconic.allocate.plan import Plan, plan_from, plan_text, read_plan, spell_plan, write_plan
from laconic.allocate.spectrum import Currency, choose, spectrum
from laconic.allocate.uniform import uniform

__all__ = [
    "Currency",
    "Plan",
    "choose",
    "plan_from",
    "plan_text",
    "read_plan",
    "spectrum",
    "spell_plan",
    "uniform",
    "write_plan",
]
