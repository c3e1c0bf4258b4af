"""Shorten a model: drop whole blocks, or their attentions and feed-forwards."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from laconic.calibrate import Calibration
from laconic.calibrate.collect_stats import check_not_empty
from laconic.calibrate.passes import evaluating
from laconic.compress.depth.cuts import (
    Cut,
    Limits,
    Parts,
    all_cuts,
    choose_lowest,
    dropped_blocks,
    dropped_paths,
    is_inside,
    join_stacks,
    parse_cuts,
    spell_cuts,
)
from laconic.compress.depth.fitting import find_map_place
from laconic.compress.depth.selection import BY_PLACE, MEASURED, Select, Selection
from laconic.compress.depth.trial import Replacement, Trial, check_maps, check_places, drop_cuts, make_fitter
from laconic.compress.kept_choice import keep_choice, read_choice
from laconic.compress.replacing import check_weight
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError, unknown
from laconic.model import LanguageModel
from laconic.model.depth import check_rescalable
from laconic.model.depth_config import DropChecker
from laconic.model.layers import can_drop, check_depths, check_droppable, find_layers, fits_cache

Number = Annotated[int, Field(ge=0)]
Blocks = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Shorten(Step):
    """Drop the blocks, or the sub-blocks, that the predictions need least.

    Args:
        drop: number of blocks to drop, at least 0. For an encoder-decoder, the number in both stacks together, or the
            number in each: `{encoder: 1, decoder: 2}`.
        blocks: the blocks to drop, in place of `drop`, by number from 0: `[3, 4]`. `4.ffn` is a part of a block. For an
            encoder-decoder: `{encoder: [3]}`.
        select: how blocks are chosen. `influence` drops the least Block Influence, `angular` the run with the least
            angular distance, `taylor` the least first-order importance of a gate, `greedy` one after another by the
            measured divergence, `dp` the runs with the least measured divergence. `first`, `last` and `alternate`
            choose by position.
        replace: the replacement of each run of dropped blocks: `nothing`, a `bias`, or a `linear` map with a bias. It
            is left out if it does not lower the KL divergence on rows that it was not fitted on.
        parts: `blocks`, or `sublayers` to choose attentions, cross-attentions and feed-forwards separately; `drop` is
            then their number.
        contiguous: drop a single run of neighbours.

    Raises:
        UserError: both or neither of drop and blocks are given, or parameters contradict each other.

    Example:
        >>> Shorten(drop=2, select="last").needs_data
        False
    """

    name = "shorten"
    family = "depth"
    example = "drop=1"
    size_parameters = ("drop", "blocks")

    drop: Number | dict[str, Number] | None = None
    blocks: Blocks | dict[str, Blocks] | None = None
    select: Select = "dp"
    replace: Replacement = "nothing"
    parts: Parts = "blocks"
    contiguous: bool = False

    def __post_init__(self) -> None:
        if (self.drop is None) == (self.blocks is None):
            raise UserError("The step 'shorten' needs a size: give either shorten:drop=N or shorten:blocks=[N,…].")
        if self.blocks is not None and (self.select != "dp" or self.contiguous or self.parts != "blocks"):
            raise UserError("select, parts and contiguous must be left out if blocks is given.")
        if self.replace == "linear" and (self.parts == "sublayers" or _name_parts(self.blocks)):
            raise UserError(
                "replace must be nothing or bias if parts of blocks are dropped: a map replaces whole blocks."
            )
        if self.contiguous and self.select == "alternate":
            raise UserError("contiguous must be left out if select is alternate, which drops no neighbours.")

    @property
    def needs_data(self) -> bool:
        return self._drops and (self.replace != "nothing" or (self.blocks is None and self.select not in BY_PLACE))

    @property
    def _drops(self) -> bool:
        drop = self.drop if self.blocks is None else self.blocks
        return any(drop.values()) if isinstance(drop, dict) else bool(drop)

    def check(self, lm: LanguageModel) -> None:
        if self.blocks is None:
            self._check_numbers(lm)
        cuts = self._fixed_cuts(lm)
        if cuts is not None:
            checker, counts = DropChecker(lm), dict[str, int]()
            for layers in find_layers(lm):
                numbers = dropped_blocks(cuts, layers.name)
                check_droppable(lm, layers, numbers)
                check_rescalable(lm, layers, numbers)
                checker.check(layers, numbers)
                counts[layers.name] = len(numbers)
            check_depths(lm, counts)
        elif self._drops and self.parts == "blocks":
            for layers in find_layers(lm):
                # Any block may be dropped, and the later ones are then renumbered; dropping the first affects all.
                check_rescalable(lm, layers, (0,))
        if self.replace == "linear" and self._drops:
            check_maps(lm, cuts)

    def _check_numbers(self, lm: LanguageModel) -> None:
        cuts = all_cuts(lm, self.parts)
        for stacks, drop in self._quotas(lm).items():
            # At least one block of each stack stays.
            most = sum(max(len(cuts[stack]) - 1, 0) for stack in stacks)
            if drop > most:
                part = "block" if self.parts == "blocks" else "sub-block"
                place = "in the model" if stacks == ("blocks",) else " and ".join(f"in the {stack}" for stack in stacks)
                raise UserError(f"drop must be at most {most}, because one {part} stays {place}; got {drop}.")
        if isinstance(self.drop, dict) and self.parts == "blocks":
            check_depths(lm, self.drop)

    def dry_run(self, lm: LanguageModel) -> None:
        cuts = self._fixed_cuts(lm)
        drop_cuts(lm, self._last_cuts(lm) if cuts is None else cuts, None, lm.shallow_copy())

    def _last_cuts(self, lm: LanguageModel) -> list[Cut]:
        """The last cuts that are allowed, as a stand-in for those that the data would choose."""
        cuts = all_cuts(lm, self.parts)
        limits, chosen = self._limits(lm, None), []
        for stacks, drop in self._quotas(lm).items():
            row = join_stacks(cuts, stacks)
            scores = {cut: -float(place) for place, cut in enumerate(row) if cut is not None}
            chosen += choose_lowest(row, scores, drop, limits.alone)
        return chosen

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Choose the blocks, drop them, and fit their replacements.

        Args:
            lm: the model, changed in place.
            data: calibration data; None is allowed if nothing is measured or fitted.

        Returns:
            The bytes of every layer before and after, and the numbers of the dropped blocks.

        Raises:
            UserError: data is needed and missing or empty, or the blocks cannot be dropped or replaced.
        """
        if self.needs_data and data is None:
            raise UserError("The step 'shorten' needs calibration data; name a source of it.")
        if self.needs_data and data is not None:
            check_not_empty(data)
        self.check(lm)
        # Weights on disk are checked when they are read.
        if self.needs_data and lm.loans is None:
            for name, parameter in lm.model.named_parameters():
                check_weight(name, parameter)
        sites = lm.sites(("blocks",))
        before = lm.stored_nbytes(sites)
        with evaluating(lm):
            original = lm.shallow_copy()
            trial = self._trial(original, data)
            cuts = self._fixed_cuts(lm)
            if cuts is None:
                chosen = read_choice(lm)
                if chosen is None:
                    quotas, limits = self._quotas(original), self._limits(original, data)
                    cuts = self._selection.choose(original, data, all_cuts(original, self.parts), quotas, limits, trial)
                    chosen = keep_choice(lm, spell_cuts(cuts))
                cuts = parse_cuts(lm, chosen)
            replacement, divergences = self._choose_replacement(trial, cuts)
            dropped = dropped_paths(lm, cuts)
            added = drop_cuts(lm, cuts, make_fitter(original, data, replacement), original)
        after = {name: 0 if is_inside(name, dropped) else size for name, size in before.items()}
        # After renumbering, the path of a map may equal the former path of a dropped module, hence the suffix.
        after |= {f"{path} (map)": size for path, size in added.items() if size}
        return Outcome(plan={}, before=before, after=after, dropped=spell_cuts(cuts), found=divergences)

    def measure(self, lm: LanguageModel, data: Calibration) -> None:
        """Score the blocks of a streamed model as `apply` does, and drop none; a stack may have a single block."""
        cuts = all_cuts(lm, self.parts)
        for stacks, drop in self._quotas(lm).items() if self.needs_data else ():
            if drop:
                self._selection.score(lm, data, {stack: cuts[stack] for stack in stacks if cuts[stack]}, drop)

    def stream_obstacle(self, lm: LanguageModel) -> str | None:
        if not self._drops:
            return None
        if self.replace != "nothing":
            return f"replace: {self.replace} runs the original beside the shorter model; leave out replace"
        if self.blocks is None and self.select in MEASURED:
            return (
                f"select: {self.select} runs the whole model without each block in turn; select influence, angular or "
                "taylor, or name the blocks"
            )
        return None

    def _trial(self, original: LanguageModel, data: Calibration | None) -> Trial | None:
        """The trial that measures cuts or replacements; None if nothing needs to be measured."""
        measures = self.replace != "nothing" or (self.blocks is None and self.select in MEASURED)
        if data is None or not self._drops or not measures:
            return None
        longest = max(self._quotas(original).values()) if self.blocks is None else 1
        return Trial.of(original, data, self.replace, longest)

    def _choose_replacement(self, trial: Trial | None, cuts: list[Cut]) -> tuple[Replacement, dict[str, str | float]]:
        """The replacement of `cuts`, and the divergences that decided it.

        Raises:
            UserError: the model has no place for the replacement.
        """
        if trial is None or self.replace == "nothing":
            return self.replace, {}
        check_places(trial.lm, cuts, trial.data)
        if not trial.held_out:
            return self.replace, {}
        measured = trial.measure(cuts)
        means = {f"kl_{kind}": divergences.mean for kind, divergences in measured.divergences.items()}
        return measured.replacement, {"kept": measured.replacement, **means}

    @property
    def _selection(self) -> Selection:
        return Selection(select=self.select, contiguous=self.contiguous)

    def _limits(self, lm: LanguageModel, data: Calibration | None) -> Limits:
        stacks = {layers.name: layers for layers in find_layers(lm)}
        # Stacks whose first block must stay, because the model has no place for a replacement in front of it.
        keeps_first = {
            name
            for name, layers in stacks.items()
            if self.replace != "nothing" and data is not None and find_map_place(lm, layers, 0, data.batches[0]) is None
        }
        checker = DropChecker(lm)

        def alone(cuts: Iterable[Cut]) -> bool:
            cuts = list(cuts)
            dropped = [(layers, dropped_blocks(cuts, name)) for name, layers in stacks.items()]
            return all(
                can_drop(lm, layers, numbers)
                and not (layers.name in keeps_first and 0 in numbers)
                and checker.accepts(layers, numbers)
                for layers, numbers in dropped
            )

        def together(cuts: Iterable[Cut]) -> bool:
            cuts = list(cuts)
            return alone(cuts) and fits_cache(lm, {name: len(dropped_blocks(cuts, name)) for name in stacks})

        return Limits(alone, together)

    def _fixed_cuts(self, lm: LanguageModel) -> list[Cut] | None:
        """The cuts if they do not depend on data; else None."""
        if self.blocks is None:
            if self.select not in BY_PLACE:
                return None
            cuts, limits = all_cuts(lm, self.parts), self._limits(lm, None)
            return self._selection.choose(lm, None, cuts, self._quotas(lm), limits)
        names = [layers.name for layers in find_layers(lm)]
        if not isinstance(self.blocks, dict):
            if len(names) > 1:
                raise UserError(f"blocks must be given for each stack: {{{names[0]}: [...], {names[1]}: [...]}}.")
            return parse_cuts(lm, {names[0]: self.blocks})
        _check_stacks(self.blocks, names)
        return parse_cuts(lm, self.blocks)

    def _quotas(self, lm: LanguageModel) -> dict[tuple[str, ...], int]:
        names = [layers.name for layers in find_layers(lm)]
        if not isinstance(self.drop, dict):
            return {tuple(names): self.drop or 0}
        _check_stacks(self.drop, names)
        return {(name,): number for name, number in self.drop.items()}


def _name_parts(blocks: Blocks | dict[str, Blocks] | None) -> bool:
    rows = blocks.values() if isinstance(blocks, dict) else (blocks or (),)
    return any("." in str(word) for row in rows for word in row)


def _check_stacks(stacks: Iterable[str], names: list[str]) -> None:
    for name in stacks:
        if name not in names:
            raise unknown("stack", name, names)
