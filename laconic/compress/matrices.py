"""Lifts any method of one matrix to a whole model: measure, share out the budget, solve each matrix, replace it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field

from laconic.allocate import Currency, Plan, choose, uniform
from laconic.calibrate import Calibration, Known, Statistic, survey, walk
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError, must_be, unknown
from laconic.methods import Method, statistics_for
from laconic.model import DEFAULT_TARGETS, LanguageModel, Site
from laconic.progress import silent

Keep = Annotated[float, Field(gt=0, le=1)]
Allocation = Literal["uniform", "spectrum"]


@dataclass(frozen=True, kw_only=True)
class Compress(Step):
    """Compress every targeted matrix by one method.

    keep:       fraction of the targeted bytes kept, for all or by group (`{attention: 0.5, ffn: 0.3}`); None when
                the method says its own size.
    allocate:   `uniform` gives every matrix the same fraction, `spectrum` spends where the predicted loss falls most.
    currency:   what `keep` counts under `spectrum`: bytes, parameters or MACs.
    sequential: solve block by block, each on inputs that carry the errors of the blocks before.
    plan:       reuse a plan instead of making one; its sites are then the targets.
    """

    name = "compress"

    method: Method
    keep: Keep | dict[str, Keep] | None = None
    allocate: Allocation = "uniform"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    currency: Currency = "bytes"
    sequential: bool = False
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if self.plan is None and self.keep is None and not self.method.has_size:
            raise UserError(f"The method '{self.method.name}' needs a size: give keep, or a size of its own like rank.")
        if self.plan is None and self.keep is not None and self.method.has_size:
            raise UserError(
                f"The method '{self.method.name}' says its own size, so keep must be left out; got {self.keep}."
            )
        for keep in self.keep.values() if isinstance(self.keep, dict) else (self.keep,):
            if keep is not None and not 0 < keep <= 1:
                raise must_be("keep", "in (0, 1]", keep)

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        """The statistics that planning and solving ask for."""
        if self.plan is not None:
            return statistics_for((method for method in self.plan.values() if method), predicting=False)
        return statistics_for((self.method,), self._predicts)

    @property
    def needs_data(self) -> bool:
        return bool(self.needs)

    @property
    def _predicts(self) -> bool:
        return self.allocate == "spectrum" and self.keep is not None and self.plan is None

    @property
    def _walks(self) -> bool:
        return self.sequential and self.needs_data

    def check(self, lm: LanguageModel) -> None:
        sites = self.sites(lm)
        if self.keep is not None and self.plan is None:
            self._budgets(sites)

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Measure, plan and solve.

        Raises:
            UserError: data is needed and missing or empty, or targets, groups or the budget do not fit the model.
        """
        if self.needs and data is None:
            raise UserError(f"The method '{self.method.name}' needs calibration data; name a source of it.")
        sites = self.sites(lm)
        known = {site.name: Known() for site in sites}
        # A walk measures for itself; only a prediction of losses must come before it.
        if data is not None and (self._predicts or not self._walks):
            known = survey(lm, data, self.needs, sites)
        return self.solve(lm, known, data)

    def sites(self, lm: LanguageModel) -> list[Site]:
        """The targeted sites of `lm`."""
        if self.plan is None:
            return lm.sites(self.targets)
        every = {site.name: site for site in lm.sites(("all", "*"))}
        for name in self.plan:
            if name not in every:
                near = get_close_matches(name, list(every), n=3, cutoff=0) or list(every)[:3]
                raise unknown("site of this model", name, near)
        return [every[name] for name in self.plan]

    def solve(self, lm: LanguageModel, known: Mapping[str, Known], data: Calibration | None = None) -> Outcome:
        """Plan and replace, on statistics that were collected before (and so can serve several sizes)."""
        sites = self.sites(lm)
        untied = tuple(lm.untied_by(sites))
        before = lm.stored_nbytes(sites)
        plan, predicted = self._plan(lm, sites, known, data)
        after = dict(before)
        was_training = lm.model.training
        # A walk runs the blocks as they are; dropout would blur what it measures.
        lm.model.eval()
        for site, what in self._in_order(lm, sites, known, data):
            method = plan[site.name]
            nbytes = None if method is None else _replace(lm, site, method, what)
            if nbytes is None:
                plan[site.name] = None
            else:
                after[site.name] = nbytes
        lm.model.train(was_training)
        return Outcome(
            plan=plan,
            before=before,
            after=after,
            untied=tuple(name for name in untied if plan[name] is not None),
            predicted_loss=predicted,
        )

    def _in_order(
        self, lm: LanguageModel, sites: Sequence[Site], known: Mapping[str, Known], data: Calibration | None
    ) -> Iterable[tuple[Site, Known]]:
        if self._walks and data is not None:
            for of_block in walk(lm, data, self.needs, sites):
                yield from of_block
        else:
            track = data.track if data is not None else silent
            for site in track(sites, "Compressing the layers"):
                yield site, known[site.name]

    def _plan(
        self, lm: LanguageModel, sites: Sequence[Site], known: Mapping[str, Known], data: Calibration | None
    ) -> tuple[Plan, float | None]:
        if self.plan is not None:
            return dict(self.plan), None
        if self.keep is None:
            return {site.name: self.method for site in sites}, None
        plan: Plan = {}
        predicted = 0.0
        track = data.track if data is not None else silent
        for keep, group in self._budgets(sites):
            if self.allocate == "uniform":
                plan |= uniform(self.method, {site.name: site.shape for site in group}, keep)
                continue
            ladders = {
                site.name: self.method.ladder(site.weight().to(lm.dtype), known[site.name])
                for site in track(group, "Predicting the loss")
            }
            chosen = choose(ladders, keep, self.currency)
            plan |= {name: rung.method for name, rung in chosen.items()}
            predicted += sum(rung.loss for rung in chosen.values())
        return plan, predicted if self.allocate == "spectrum" else None

    def _budgets(self, sites: Sequence[Site]) -> list[tuple[float, list[Site]]]:
        """(keep, the sites that share it): one budget over all, or one for each group."""
        if not isinstance(self.keep, dict):
            assert self.keep is not None
            return [(self.keep, list(sites))]
        groups = {site.group.value for site in sites}
        for name in self.keep:
            if name not in groups:
                raise unknown("targeted group", name, groups)
        for name in groups - self.keep.keys():
            raise UserError(f"keep must name every targeted group; '{name}' is missing.")
        return [(keep, [site for site in sites if site.group == name]) for name, keep in self.keep.items()]


def _replace(lm: LanguageModel, site: Site, method: Method, known: Known) -> int | None:
    """Bytes of the site afterwards; None where a format no smaller than the matrix was not put in its place."""
    weight = site.weight().to(lm.dtype)
    format = method.compress(weight, known)
    nbytes = format.nbytes()
    if nbytes >= weight.nbytes:
        return None
    lm.replace(site, format)
    return nbytes
