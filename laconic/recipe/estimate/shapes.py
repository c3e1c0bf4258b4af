"""The memory and the disk space of a recipe, from the shapes of the model and of the calibration batches alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from laconic.calibrate import Calibration
from laconic.calibrate.losses import DRAWS
from laconic.calibrate.statistics import GradientStatistic
from laconic.compress import Compress, Narrow, Shorten, Step
from laconic.compress.solve_groups import all_groups, find_layer_sets
from laconic.compress.width_parts import BY_GATES
from laconic.model import Batch, Group, LanguageModel, Site
from laconic.model.batch import LABELS
from laconic.model.site import has_module
from laconic.model.size import module_size
from laconic.model.stock import text_config
from laconic.processes import world_size
from laconic.recipe.estimate.copies import copies_of
from laconic.recipe.estimate.in_memory import DOUBLE, FLOAT, step_memory, weight_memory

PLACES = 3
"""Places of hidden states that are on disk together: before the last block that is finished, which is kept for a run
that goes on after a stop, and before and after the current one."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a recipe needs.

    Args:
        in_memory: memory of a run in memory, beyond that of the program itself.
        scratch: the largest size of the scratch folder of a streamed run.
        output: the saved weights.
    """

    in_memory: int
    scratch: int
    output: int


def sizes_of(lm: LanguageModel, steps: Sequence[Step], data: Calibration | None) -> Sizes:
    """Compute what a recipe needs from shapes.

    Args:
        lm: the model without weights.
        steps: steps that have passed `check_order`.
        data: the calibration data; None if there are none.

    Raises:
        UserError: as `check` of a step.
    """
    batches = [] if data is None else data.batches
    memory = scratch = peak = 0
    before = lm
    for given, step in zip(steps, map(_with_size, steps), strict=True):
        copies = copies_of(before, given, batches)
        after = before.shallow_copy()
        if not _keeps_sizes(step):
            after = step.dry_run(after) or after
        memory = max(memory, step_memory(before, step, batches))
        # Dropping blocks changes none of the others.
        sizes = {} if isinstance(step, Shorten) else _part_sizes(after, _changed_sites(step, before))
        parts = sum(sizes.values())
        without_experts = _parts_without_experts(before, step)
        gradients = _needs_gradients(given)
        states = _states(before, given, batches)
        # With gradients the hidden states of a block are larger than its part, and are dropped once it is written.
        beside = max((sizes.get(path, 0) for path in _blocks(after)), default=0) if gradients else parts
        first_copy = 0 if copies is None else parts
        peak = max(peak, scratch + first_copy + without_experts + states + beside)
        # At the first block all parts are written, and only the hidden states around this block are left.
        around = _states(before, given, batches, place=0) if gradients else 0
        solutions = _solutions(before, given)
        # Gates are differentiated before anything is written.
        gates = _states(before, step, batches, by_gates=True)
        # Solutions are written by the pass before the plan, at the end of which its states are left, and read by the
        # pass that writes the parts.
        written = max(solutions + max(parts, around), parts + around, gates)
        peak = max(peak, scratch + first_copy + without_experts + written)
        if copies is not None:
            peak = max(peak, scratch + solutions + parts + max(copies.measured, parts + copies.judged))
        scratch += without_experts + parts
        before = after
    output = before.size()[1]
    # The saved model is a copy in the stored dtype, which is then loaded again to compare both.
    return Sizes(max(memory, weight_memory(before) + 2 * output), max(peak, scratch), output)


def _with_size(step: Step) -> Step:
    """A step whose structure has the size that an allocator would reach: that of equal fractions."""
    if isinstance(step, Compress) and step.plan is None and step.keep is not None:
        return replace(step, allocate="uniform", currency="bytes")
    return step


def _keeps_sizes(step: Step) -> bool:
    """Whether the size depends on measured errors, so that the present one is only an upper bound."""
    return isinstance(step, Compress) and step.plan is None and step.error is not None


def _changed_sites(step: Step, lm: LanguageModel) -> Sequence[Site]:
    """The layers that a step changes; none if they are all layers of the blocks."""
    if step.needs_original:
        return [site for site in lm.sites(("*",)) if site.block is not None or site.group is Group.HEAD]
    return step.sites(lm)


def _part_sizes(lm: LanguageModel, sites: Sequence[Site]) -> dict[str, int]:
    """Bytes of each part that a step writes back, by path; all blocks if the layers that it changes are not known."""
    changed = {site.block or site.name for site in sites} or set(_blocks(lm))
    modules = {path: lm.model.get_submodule(path) for path in changed if has_module(lm.model, path)}
    return {path: module_size(module, lm.dtype)[1] for path, module in modules.items()}


def _blocks(lm: LanguageModel) -> list[str]:
    """The paths of all blocks."""
    return [path for _, found in lm.stacks() for path, _ in found]


def _parts_without_experts(lm: LanguageModel, step: Step) -> int:
    """Bytes of the copy of all blocks that `narrow` writes without experts, before it removes heads and channels."""
    if not isinstance(step, Narrow) or step.experts in (None, 1):
        return 0
    if (step.heads, step.channels, step.keep) == (None, None, None):
        return 0
    after = lm.shallow_copy()
    Narrow(experts=step.experts).dry_run(after)
    return sum(_part_sizes(after, ()).values())


def _solutions(lm: LanguageModel, step: Step) -> int:
    """Bytes of the solutions of all layers, which a step that plans from them keeps until all parts are written."""
    if not isinstance(step, Compress):
        return 0
    groups = all_groups(find_layer_sets(step.sites(lm), step.share_inputs))
    shapes = [group.shape for group in groups] if step.solves_once(groups) else []
    # The factors at full rank, and the loss of every rank.
    return sum(min(shape) * (sum(shape) * lm.dtype.itemsize + DOUBLE) for shape in shapes)


def _states(
    lm: LanguageModel, step: Step, batches: Sequence[Batch], *, by_gates: bool = False, place: int | None = None
) -> int:
    """Bytes of the hidden states that a step keeps on disk at once: an upper bound.

    Args:
        lm: the model without weights.
        step: the step.
        batches: the calibration batches.
        by_gates: in the pass that differentiates gates, if the step has one.
        place: the number of the block that a backward pass has come to; None for the last one, where it begins.
    """
    if not step.needs_data:
        return 0
    places = [_places(step, len(blocks)) for _, blocks in lm.stacks()]
    if _needs_gradients(step) or (by_gates and _differentiates_gates(step)):
        # The inputs of all blocks up to the current one and its outputs, and the gradients of each loss at both.
        losses = DRAWS if lm.task.predicts_once_per_row else 1
        numbers = [len(blocks) - 1 if place is None else place for _, blocks in lm.stacks()]
        places = [number + 2 + 2 * losses for number in numbers]
    tokens = [sum(batch["input_ids"].numel() for batch in batches)]
    # The second stack is a decoder, which reads the targets.
    tokens.append(sum(batch.get(LABELS, batch["input_ids"]).numel() for batch in batches))
    width = text_config(lm.model.config).hidden_size
    return sum(FLOAT * width * count * number for count, number in zip(tokens, places, strict=False))


def _places(step: Step, blocks: int) -> int:
    """The number of places of a stack whose hidden states are on disk together in a pass without gradients.

    Args:
        step: the step.
        blocks: the number of blocks of the stack.
    """
    if isinstance(step, Shorten) and step.select in ("influence", "angular"):
        # The points of the longest run that is compared, those of the current block, and the one after the last block.
        cuts = 1 if step.parts == "blocks" else 2
        drops = step.drop.values() if isinstance(step.drop, dict) else (step.drop or 0,)
        length = max(drops, default=0) if step.select == "angular" else 1
        return PLACES + min(length, cuts * blocks) + cuts + 1
    # The original runs beside the model, in every process on all rows.
    return PLACES * (2 * world_size() if step.needs_original else 1)


def _differentiates_gates(step: Step) -> bool:
    """Whether the importance of blocks, heads or channels is measured by the gradients of gates."""
    if isinstance(step, Narrow):
        return step.importance in BY_GATES and (step.heads, step.channels, step.keep) != (None, None, None)
    return isinstance(step, Shorten) and step.blocks is None and step.select == "taylor"


def _needs_gradients(step: Step) -> bool:
    return any(issubclass(kind, GradientStatistic) for kind in step.needs)
