"""One budget, many matrices: ladders of options in, a plan out."""

from laconic.allocate.budget import Budget, Currency, budget_of, check_overhead
from laconic.allocate.option import Alternatives
from laconic.allocate.plan import (
    Plan,
    plan_from,
    plan_text,
    read_plan,
    site_names,
    spell_plan,
    unit_name,
    write_plan,
)
from laconic.allocate.spectrum import choose, spectrum
from laconic.allocate.uniform import uniform

__all__ = [
    "Alternatives",
    "Budget",
    "Currency",
    "Plan",
    "budget_of",
    "check_overhead",
    "choose",
    "plan_from",
    "plan_text",
    "read_plan",
    "site_names",
    "spectrum",
    "spell_plan",
    "uniform",
    "unit_name",
    "write_plan",
]
