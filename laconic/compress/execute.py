"""Units solved and put in their places, one by one, and what that did to the model."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from laconic.allocate import Plan, site_names
from laconic.calibrate import Problem
from laconic.calibrate.passes import evaluating
from laconic.compress.solve_groups import SolveGroup
from laconic.compress.step import Outcome
from laconic.errors import UserError
from laconic.formats import Format, LowRank, divided
from laconic.methods import Method
from laconic.model import LanguageModel, Site


def execute_plan(
    lm: LanguageModel,
    sites: Sequence[Site],
    plan: Plan,
    predicted: float | None,
    problems: Iterable[tuple[SolveGroup, Problem]],
) -> Outcome:
    """Do what `plan` says of each of the `problems`, which may depend on those before; `sites` are all of them."""
    untied = lm.untied_by(sites)
    before = lm.stored_nbytes(sites)
    done, after = dict(plan), dict(before)
    # A walk runs the blocks as they are; dropout would blur what it measures.
    with evaluating(lm):
        for unit, problem in problems:
            method = plan[unit.name]
            sizes = None if method is None else replace_layers(lm, unit, method, problem)
            if sizes is None:
                done[unit.name] = None
            else:
                after |= sizes
    compressed = {name for unit, method in done.items() if method for name in site_names(unit)}
    return Outcome(
        plan=done,
        before=before,
        after=after,
        untied=tuple(name for name in untied if name in compressed),
        predicted_loss=predicted,
    )


def replace_layers(lm: LanguageModel, unit: SolveGroup, method: Method, problem: Problem) -> dict[str, int] | None:
    """Solve `problem` and replace the sites of `unit`; the bytes of each afterwards.

    None where a format no smaller than what is there was not put in its place. Zeros were asked for by number, so a few
    more of them are put there even where their mask is larger than what they save.

    Raises:
        UserError: a weight is NaN or infinite, or the method's size does not fit the matrix.
    """
    weight = problem.weight.to(lm.dtype)
    if not weight.isfinite().all():
        raise UserError(f"The weights of '{unit.name}' are not finite; take a checkpoint that is whole.")
    return place(lm, unit, method.compress(weight, problem.known), problem)


def place(lm: LanguageModel, unit: SolveGroup, whole: Format, problem: Problem) -> dict[str, int] | None:
    """Replace the sites of `unit` by `whole`, what some method made of `problem`; as `replace_layers` otherwise."""
    kept = unit.shape[0] * unit.shape[1] if whole.support is None else int(whole.support.count_nonzero())
    if whole.nbytes() >= _stored(lm, unit) and kept >= _kept(unit):
        return None
    formats = _divided(whole, unit)
    biases = _biases(problem, whole, unit)
    sizes = {site.name: format.nbytes() for site, format in zip(unit.sites, formats, strict=True)}
    for site, format, bias in zip(unit.sites, formats, biases, strict=True):
        lm.replace(site, format, bias)
    return sizes


def put_form(lm: LanguageModel, unit: SolveGroup, method: Method) -> None:
    """As `replace_layers`, where `lm` has no weights: the format as `method` makes it, without numbers."""
    kept, every = _kept(unit), unit.shape[0] * unit.shape[1]
    whole = method.empty_format(unit.shape, kept if kept < every else None).to(lm.dtype)
    left = every if whole.support is None else whole.count
    if whole.nbytes() >= _stored(lm, unit) and left >= kept:
        return
    for site, format in zip(unit.sites, _divided(whole, unit), strict=True):
        lm.replace(site, format)


def _stored(lm: LanguageModel, unit: SolveGroup) -> int:
    """Bytes in a file of what is there now."""
    return sum(lm.nbytes_of(site) for site in unit.sites)


def _kept(unit: SolveGroup) -> int:
    """Weights that no step has made zero yet."""
    modules = [(site.module, site.shape) for site in unit.sites]
    return sum(
        module.count if isinstance(module, Format) and module.support is not None else shape[0] * shape[1]
        for module, shape in modules
    )


def _divided(whole: Format, unit: SolveGroup) -> tuple[Format, ...]:
    if len(unit.sites) == 1:
        return (whole,)
    assert isinstance(whole, LowRank), "only methods that make an input factor are given several matrices"
    return divided(whole, unit.rows)


@torch.no_grad()
def _biases(problem: Problem, whole: Format, unit: SolveGroup) -> Sequence[Tensor | None]:
    # The factors are stored rounded, but multiplied in float32: so is what the bias makes up for.
    moved = problem.bias(deepcopy(whole).float().dense())
    return [None] * len(unit.sites) if moved is None else moved.float().split(unit.rows)
