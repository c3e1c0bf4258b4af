"""The problems of a model's units: as the model is now, remembered from an earlier run, or met on a walk."""

from collections.abc import Iterator, Mapping, Sequence

from laconic.calibrate import Calibration, Course, Known, Problem, Statistic, stack, walk
from laconic.compress.pricing import every_unit
from laconic.compress.units import Family, Unit
from laconic.model import LanguageModel


def problems_of(lm: LanguageModel, families: Sequence[Family], known: Mapping[str, Known]) -> dict[str, Problem]:
    """Of every unit, from what is `known` by site; the matrices in the dtype that they are stored in."""
    single = {
        site.name: Problem(weight=site.weight().to(lm.dtype), known=known.get(site.name, Known()))
        for family in families
        for unit in family[0]
        for site in unit.sites
    }
    return {unit.name: stack([single[site.name] for site in unit.sites]) for unit in every_unit(families)}


def with_known(problems: Mapping[str, Problem], known: Mapping[str, Known]) -> dict[str, Problem]:
    """The same matrices with what is `known` by unit."""
    return {name: Problem(weight=problem.weight, known=known.get(name, Known())) for name, problem in problems.items()}


def on_a_walk(
    lm: LanguageModel,
    data: Calibration,
    units: Sequence[Unit],
    needs: frozenset[type[Statistic]],
    course: Course,
    surveyed: Mapping[str, Known] | None,
) -> Iterator[tuple[Unit, Problem]]:
    """Each unit with its problem once all before it are replaced."""
    sites = [site for unit in units for site in unit.sites]
    for step in walk(lm, data, needs, sites, course, surveyed):
        problems = {site.name: problem for site, problem in step}
        for unit in units:
            if unit.sites[0].name in problems:
                yield unit, stack([problems[site.name] for site in unit.sites])
