"""A solved matrix, or the empty format of one, put in the place of the layers that it was made of."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Problem
from laconic.compress.solve_groups import SolveGroup
from laconic.errors import UserError
from laconic.formats import Format, LowRank, divided
from laconic.methods import Method
from laconic.model import LanguageModel


def finite_weight(lm: LanguageModel, unit: SolveGroup, problem: Problem) -> Float[Tensor, "out in"]:
    """The matrix to solve, in the dtype that `lm` is stored in.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    weight = problem.weight.to(lm.dtype)
    if not weight.isfinite().all():
        raise UserError(f"The weights of '{unit.name}' are not finite; take a checkpoint that is whole.")
    return weight


def replace_layers(lm: LanguageModel, unit: SolveGroup, whole: Format, problem: Problem) -> dict[str, int] | None:
    """Replace the layers of a unit by the format that a method made of its problem.

    Args:
        lm: the model, changed in place.
        unit: the layers to replace.
        whole: the compressed matrix of all of them, (Σ out, in).
        problem: what was solved; its means give the biases that make up for the error.

    Returns:
        The bytes of each site afterwards. None where nothing was replaced, because the format is no smaller than the
        present one. A format with more zeros is put in place even where its mask is larger than what it saves.
    """
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
    return sum(lm.site_nbytes(site) for site in unit.sites)


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
