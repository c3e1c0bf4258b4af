"""The code that recipes and `laconic.compress` share: it makes steps of methods, and applies the steps in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from laconic import processes
from laconic.allocate import Plan
from laconic.calibrate import Calibration, LayerStats
from laconic.compress import Allocation, Compress, Outcome, Step
from laconic.compress.allocators import ALLOCATORS
from laconic.compress.checks import keep_error, uses_inputs
from laconic.errors import UserError, must_be
from laconic.methods import Method
from laconic.model import LanguageModel
from laconic.recipe.checks import needs_original
from laconic.recipe.sampling import draw_again

SequentialMode = Literal["sequential", "anchored"]
"""The two modes of sequential calibration, by the field of `Compress` that turns them on."""
ALLOCATIONS: dict[str, Allocation] = {name: name for name in get_args(Allocation)}


@dataclass(frozen=True, kw_only=True)
class CombinedOutcome:
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
        found: further results of each step, by name, such as learning curves.
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


def to_steps(
    lines: Sequence[Method | Step],
    keep: float | Mapping[str, float] | None,
    allocate: str,
    targets: tuple[str, ...],
    *,
    sequential: SequentialMode | None = None,
    allow_dense: bool = False,
) -> tuple[Step, ...]:
    """Wrap each method in a `compress` step; steps are returned unchanged.

    Args:
        lines: methods and steps, in order.
        keep: the fraction of the bytes of the targeted matrices to keep, or a fraction for each group of them. It
            applies to methods without a rank or another parameter that sets their size. None if no method needs it.
        allocate: how the budget is distributed over the matrices.
        targets: names of groups of layers, or globs of their paths.
        sequential: the mode of sequential calibration, for the methods whose result it changes; None for none.
        allow_dense: accept a model of which a large part can only stay dense.

    Raises:
        UserError: a method lacks a size, `keep` or `sequential` applies to no method, or a value is out of range.
    """
    allocation = ALLOCATIONS.get(allocate)
    if allocation is None:
        raise must_be("allocate", f"one of {', '.join(ALLOCATIONS)}", allocate)
    methods = methods_in(lines)
    if keep is not None and all(method.has_size for method in methods):
        first = lines[0]
        if isinstance(first, Method):
            raise keep_error(first, keep)
        raise _keep_error(first, keep)
    anchored = sequential == "anchored"
    if sequential is not None and not (methods if anchored else uses_inputs(methods)):
        raise _no_effect_error(lines, sequential)
    kept = dict(keep) if isinstance(keep, Mapping) else keep
    return tuple(
        line
        if isinstance(line, Step)
        else Compress(
            method=line,
            keep=None if line.has_size else kept,
            allocate=allocation_for(line, allocation, methods),
            targets=targets,
            sequential=sequential == "sequential" and uses_inputs([line]),
            anchored=anchored,
            allow_dense=allow_dense,
        )
        for line in lines
    )


def _keep_error(step: Step, keep: object) -> UserError:
    """The error for a `keep` without a method, beside the parameters of `step` that set its size."""
    sizes = [f"{step.name}:{name}=…" for name in step.size_parameters]
    remedy = f", and set its size by {' or '.join(sizes)}" if sizes else ""
    return UserError(f"keep does not apply to '{step.name}', because it is a step: leave keep out{remedy}; got {keep}.")


def methods_in(lines: Sequence[Method | Step]) -> list[Method]:
    """The methods among methods and steps."""
    return [line for line in lines if isinstance(line, Method)]


def _no_effect_error(lines: Sequence[Method | Step], option: SequentialMode) -> UserError:
    steps = [line.name for line in lines if isinstance(line, Step) and option in {field.name for field in fields(line)}]
    remedy = f"; the step has a parameter for it: {steps[0]}:{option}=true" if steps else ""
    quoted = ", ".join(f"'{line.name}'" for line in lines)
    return UserError(f"{option} must be left out, because it changes nothing for {quoted}{remedy}.")


def allocation_for(method: Method, allocation: Allocation, methods: Sequence[Method]) -> Allocation:
    """The allocation for one method of several: the requested one, or `uniform` if that one applies to others only.

    A method with a fixed size leaves no bytes to distribute and needs no common threshold over scores. It gets
    `uniform` if the requested allocation applies to another method.

    Args:
        method: one of `methods`.
        allocation: the requested allocation.
        methods: all methods.
    """
    for_others = any(supports(allocation, other) for other in methods)
    return "uniform" if method.has_size and for_others and not supports(allocation, method) else allocation


def supports(allocation: str, method: Method) -> bool:
    """Whether an allocation applies to a method.

    True for an unknown name, so that the check of allocation names reports it.
    """
    return allocation not in ALLOCATIONS or ALLOCATORS[ALLOCATIONS[allocation]].supports(method)


def apply_steps(
    lm: LanguageModel,
    steps: Sequence[Step],
    data: Calibration | None,
    stats: Mapping[str, LayerStats] | None = None,
) -> tuple[LanguageModel, CombinedOutcome]:
    """Apply steps to a model in place, one after another.

    In a run of several processes, all processes take over the weights of the first one after each step.

    Args:
        lm: the model.
        steps: the steps, in order.
        data: the calibration data; None if no step needs any.
        stats: statistics that were collected before, by the path of the layer. They must be all that the first step
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
        if lm.loans is not None:
            lm.loans.begin(str(index))
        with processes.sync_errors():
            first_stats = stats if index == 0 else None
            outcomes.append(step.apply(lm, data) if first_stats is None else step.apply_with(lm, first_stats, data))
        replacement = outcomes[-1].now
        if replacement is not None and data is not None and data.corpus is not None:
            data = draw_again(replacement, data, data.corpus)
        lm = replacement or lm
        lm = replace(lm, dropped=() if lm.original is None else (*lm.dropped, outcomes[-1].dropped))
        tensors = {**dict(lm.model.named_parameters()), **dict(lm.model.named_buffers())}
        processes.broadcast_tensors({name: tensor for name, tensor in tensors.items() if not tensor.is_meta})
    return replace(lm, original=None, dropped=()), _combine(outcomes)


def _combine(outcomes: Sequence[Outcome]) -> CombinedOutcome:
    # If a later step targets a low-rank factor, the dense size is that of the matrix that was factored.
    originals: dict[str, int] = {}
    for outcome in outcomes:
        originals |= {
            name: size
            for name, size in outcome.before.items()
            if not any(name == whole or name.startswith(f"{whole}.") for whole in originals)
        }
    dense = sum(originals.values())
    saved = sum(outcome.dense_nbytes - outcome.nbytes for outcome in outcomes)
    return CombinedOutcome(
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
