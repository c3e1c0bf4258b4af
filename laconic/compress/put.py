"""One solved unit, put in its place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.calibrate import Problem
from laconic.compress.units import Unit
from laconic.formats import Format, LowRank, divided
from laconic.methods import Method
from laconic.model import LanguageModel


def put(lm: LanguageModel, unit: Unit, method: Method, problem: Problem) -> dict[str, int] | None:
    """Solve `problem` and replace the sites of `unit`; the bytes of each afterwards.

    None where a format no smaller than the matrices was not put in their place.
    """
    weight = problem.weight.to(lm.dtype)
    whole = method.compress(weight, problem.known)
    if whole.nbytes() >= weight.nbytes:
        return None
    formats = _divided(whole, unit)
    biases = _biases(problem, formats, unit)
    sizes = {site.name: format.nbytes() for site, format in zip(unit.sites, formats, strict=True)}
    for site, format, bias in zip(unit.sites, formats, biases, strict=True):
        lm.replace(site, format, bias)
    return sizes


def _divided(whole: Format, unit: Unit) -> tuple[Format, ...]:
    if len(unit.sites) == 1:
        return (whole,)
    assert isinstance(whole, LowRank), "only methods that make an input factor are given several matrices"
    return divided(whole, unit.rows)


def _biases(problem: Problem, formats: Sequence[Format], unit: Unit) -> Sequence[Tensor | None]:
    with torch.no_grad():
        moved = problem.bias(torch.cat([format.dense() for format in formats]))
    return [None] * len(formats) if moved is None else moved.float().split(unit.rows)
