"""What the sizes of a unit cost and what may be spent: counted from their shapes, or timed on this machine."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from laconic.allocate import Budget, Currency, budget_of
from laconic.allocate.products import Product, ProductTimes, knots, times_on
from laconic.calibrate.profile import Profile, Workload, profile
from laconic.compress.units import Unit
from laconic.methods import Ladder, Rung
from laconic.model import LanguageModel
from laconic.progress import Track

Ladders = Mapping[str, Ladder]
"""By the name of the unit."""


class Pricing(ABC):
    """How `keep` becomes a budget."""

    @abstractmethod
    def priced(self, units: Sequence[Unit], ladders: Ladders) -> Ladders:
        """The ladders of `units` with all that `budget` needs to know of their rungs."""

    @abstractmethod
    def budget(self, ladders: Sequence[Ladder], keep: float) -> Budget:
        """`keep` of the dense cost, for priced ladders of every matrix by itself."""


@dataclass(frozen=True)
class Counted(Pricing):
    """`keep` is of what the matrices themselves cost."""

    currency: Currency

    def priced(self, units: Sequence[Unit], ladders: Ladders) -> Ladders:
        return ladders

    def budget(self, ladders: Sequence[Ladder], keep: float) -> Budget:
        return budget_of(ladders, keep, self.currency)


@dataclass(frozen=True)
class Timed(Pricing):
    """`keep` is of the latency of the whole model.

    The table says how the products compare, the profile what part of the pass the dense ones are; the rest is fixed.
    """

    profile: Profile
    times: ProductTimes

    def priced(self, units: Sequence[Unit], ladders: Ladders) -> Ladders:
        dense = [product for unit in units for _, product in self._executed(unit, _dense(ladders[unit.name]))]
        thin = [
            knot
            for unit in units
            for rung in ladders[unit.name].rungs
            if rung.method is not None
            for _, product in self._executed(unit, rung)
            for knot in knots(product)
        ]
        self.times.prepare([*dense, *thin])
        return {
            unit.name: Ladder(
                tuple(replace(rung, nanoseconds=self._nanoseconds(unit, rung)) for rung in ladders[unit.name].rungs)
            )
            for unit in units
        }

    def budget(self, ladders: Sequence[Ladder], keep: float) -> Budget:
        of_matrices = budget_of(ladders, keep, "latency")
        share = sum(use.share for use in self.profile.uses.values())
        whole = round(of_matrices.dense / share) if share else 0
        return replace(of_matrices, dense=whole, fixed=whole - of_matrices.dense)

    def _nanoseconds(self, unit: Unit, rung: Rung) -> int:
        read = self.times.exact if rung.method is None else self.times.between
        return sum(calls * read(product) for calls, product in self._executed(unit, rung))

    def _executed(self, unit: Unit, rung: Rung) -> Iterator[tuple[int, Product]]:
        """The products of one pass, with how often each is made.

        Of a unit of several matrices the common factor is multiplied by once, and each has a last factor of its own.
        """
        for rows, calls in Counter(self.profile.uses[unit.sites[0].name].rows).items():
            for out_features, in_features in rung.products:
                is_last = out_features == sum(unit.rows)
                for part in unit.rows if is_last else (out_features,):
                    yield calls, Product(rows, part, in_features)


def pricing_of(
    currency: Currency, lm: LanguageModel, units: Sequence[Unit], workload: Workload, track: Track
) -> Pricing:
    """By what `keep` counts; a latency is measured now."""
    if currency != "latency":
        return Counted(currency)
    sites = list({site.name: site for unit in units for site in unit.sites}.values())
    return Timed(profile(lm, sites, workload, track), times_on(lm.device))


def _dense(ladder: Ladder) -> Rung:
    return next(rung for rung in ladder.rungs if rung.method is None)
