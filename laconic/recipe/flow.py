"""The code that recipes and `laconic.compress` share: it makes steps of methods, and applies the steps in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from laconic import processes
from laconic.allocate import Plan
from laconic.calibrate import Calibration, LayerStats
from laconic.compress import Allocation, Compress, Outcome, Step
from laconic.compress.allocators import ALLOCATORS
from laconic.compress.size_spec import uses_inputs
from laconic.errors import UserError, must_be
from laconic.methods import Method
from laconic.model import LanguageModel
from laconic.recipe.order import needs_original
from laconic.recipe.sampling import draw_again

Walk = Literal["sequential", "anchored"]
"""How layers are compressed one block after another, on inputs that come from the blocks compressed before.

The values are the names of the fields of `Compress` that they set.
"""
ALLOCATIONS: dict[str, Allocation] = {name: name for name in get_args(Allocation)}


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The combined results of a list of steps.

    Args:
        plans: for each step, a mapping from each targeted layer to its method, or to None if the layer stayed dense.
            The mapping is empty for a step that uses no method.
        matrices: the number of matrices that were targeted. Low-rank factors of an earlier step that a later step
            targeted count as well.
        nbytes: bytes of these matrices after the last step.
        dense_nbytes: their bytes before the first step.
        untied: paths of layers that shared their matrix with another layer before, and no longer do.
        predicted_losses: for each step, the predicted increase of the loss in nats per prediction; None for a step
            that predicts nothing.
        dropped: for each step that dropped blocks, the indices of these blocks before the step, by stack.
        found: further results of each step, by name.
        files: content of files that are saved in the folder of the model, by path.
    """

    plans: tuple[Plan, ...]
    matrices: int
    nbytes: int
    dense_nbytes: int
    untied: tuple[str, ...]
    predicted_losses: tuple[float | None, ...]
    dropped: tuple[Mapping[str, tuple[int | str, ...]], ...] = ()
    found: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The method of every targeted layer over all steps, including low-rank factors that a later step targeted."""
        return {site: method for plan in self.plans for site, method in plan.items()}


def steps_of(
    lines: Sequence[Method | Step],
    keep: float | Mapping[str, float] | None,
    allocate: str,
    targets: tuple[str, ...],
    walk: Walk | None = None,
    *,
    allow_dense: bool = False,
) -> tuple[Step, ...]:
    """Wrap each method in a `compress` step; steps are returned unchanged.

    Args:
        lines: methods and steps, in order.
        keep: the fraction of the bytes of the targeted matrices to keep, or a fraction for each group of them. It
            applies to methods without a rank or another parameter that sets their size. None if no method needs it.
        allocate: how the budget is distributed over the matrices.
        targets: names of groups of layers, or globs of their paths.
        walk: compress block by block, with the methods for which this changes the result; None for one pass over the
            original model.
        allow_dense: accept a model of which a large part can only stay dense.

    Raises:
        UserError: a method lacks a size, `keep` or `walk` applies to no method, or a value is out of range.
    """
    shared = ALLOCATIONS.get(allocate)
    if shared is None:
        raise must_be("allocate", f"one of {', '.join(ALLOCATIONS)}", allocate)
    if keep is not None and not any(takes_keep(line) for line in lines):
        raise UserError(f"keep must be left out, because '{lines[0].name}' says its own size; got {keep}.")
    if walk is not None and not any(_walked(line, walk) for line in lines):
        raise _no_walk(lines, walk)
    kept = dict(keep) if isinstance(keep, Mapping) else keep
    return tuple(
        line
        if isinstance(line, Step)
        else Compress(
            method=line,
            keep=kept if takes_keep(line) else None,
            allocate=allocation_of(line, shared, lines),
            targets=targets,
            sequential=walk == "sequential" and _walked(line, walk),
            anchored=walk == "anchored",
            allow_dense=allow_dense,
        )
        for line in lines
    )


def walk_of(*, sequential: bool, anchored: bool) -> Walk | None:
    """The value of `Walk` for two options of the command line; `anchored` implies `sequential`.

    >>> walk_of(sequential=True, anchored=True)
    'anchored'
    """
    if anchored:
        return "anchored"
    return "sequential" if sequential else None


def _no_walk(lines: Sequence[Method | Step], walk: Walk) -> UserError:
    own = [line.name for line in lines if isinstance(line, Step) and walk in {field.name for field in fields(line)}]
    remedy = f"; a step says so itself, as {own[0]}:{walk}=true" if own else ""
    named = ", ".join(f"'{line.name}'" for line in lines)
    return UserError(f"{walk} must be left out, because it changes nothing for {named}{remedy}.")


def _walked(line: Method | Step, walk: Walk) -> bool:
    """Whether a walk changes the result of a method. False for steps: `narrow`, for one, has its own parameter."""
    return isinstance(line, Method) and (walk == "anchored" or uses_inputs([line]))


def allocation_of(method: Method, shared: Allocation, lines: Sequence[Method | Step]) -> Allocation:
    """The allocation for one method of several: the requested one, or `uniform` if that one applies to others only.

    A method with a fixed size leaves no bytes to distribute and needs no common threshold over scores. It gets
    `uniform` if the requested allocation applies to another method in `lines`.

    Args:
        method: one of `lines`.
        shared: the requested allocation.
        lines: all methods and steps.
    """
    aside = method.has_size and not serves(shared, method) and any(serves(shared, line) for line in lines)
    return "uniform" if aside else shared


def serves(allocation: str, line: Method | Step) -> bool:
    """Whether an allocation applies to a method; always False for a step.

    True for an unknown name, so that the check of allocation names reports it.
    """
    if allocation not in ALLOCATIONS:
        return True
    return isinstance(line, Method) and ALLOCATORS[ALLOCATIONS[allocation]].serves(line)


def takes_keep(line: Method | Step) -> bool:
    """Whether a common `keep` applies: it does to a method without a size of its own, and not to a step."""
    return isinstance(line, Method) and not line.has_size


def apply_steps(
    lm: LanguageModel,
    steps: Sequence[Step],
    data: Calibration | None,
    known: Mapping[str, LayerStats] | None = None,
) -> tuple[LanguageModel, Changes]:
    """Apply steps to a model in place, one after another.

    In a run of several processes, all processes take over the weights of the first one after each step.

    Args:
        lm: the model.
        steps: the steps, in order.
        data: the calibration data; None if no step needs any.
        known: statistics that were collected before, by the path of the layer. They must be all that the first step
            needs, and that step must have `collects_stats`. None to collect them now.

    Returns:
        The final model, which is another object if a step replaced the model, and the results of the steps.

    Raises:
        UserError: the data do not suit a step, or a step cannot be applied.
    """
    for step in steps:
        step.check_data(data)
    outcomes = []
    for index, step in enumerate(steps):
        if needs_original(lm, steps[index:]):
            lm = replace(lm, original=lm.copy())
        with processes.sync_errors():
            here = known if index == 0 else None
            outcomes.append(step.apply(lm, data) if here is None else step.apply_with(lm, here, data))
        now = outcomes[-1].now
        if now is not None and data is not None and data.corpus is not None:
            data = draw_again(now, data, data.corpus)
        lm = now or lm
        lm = replace(lm, dropped=() if lm.original is None else (*lm.dropped, outcomes[-1].dropped))
        processes.broadcast_tensors({**dict(lm.model.named_parameters()), **dict(lm.model.named_buffers())})
    return replace(lm, original=None, dropped=()), _together(outcomes)


def _together(outcomes: Sequence[Outcome]) -> Changes:
    # If a later step targets a low-rank factor, the dense size is that of the matrix that was factored.
    originals: dict[str, int] = {}
    for outcome in outcomes:
        here = outcome.before.items()
        originals |= {name: size for name, size in here if not any(_is_within(name, whole) for whole in originals)}
    dense = sum(originals.values())
    saved = sum(outcome.dense_nbytes - outcome.nbytes for outcome in outcomes)
    return Changes(
        plans=tuple(outcome.plan for outcome in outcomes),
        matrices=len({name for outcome in outcomes for name in outcome.before}),
        nbytes=dense - saved,
        dense_nbytes=dense,
        untied=tuple(name for outcome in outcomes for name in outcome.untied),
        predicted_losses=tuple(outcome.predicted_loss for outcome in outcomes),
        dropped=tuple(outcome.dropped for outcome in outcomes if outcome.dropped),
        found=tuple(outcome.found for outcome in outcomes),
        files={path: content for outcome in outcomes for path, content in outcome.files.items()},
    )


def _is_within(site: str, whole: str) -> bool:
    return site == whole or site.startswith(f"{whole}.")
