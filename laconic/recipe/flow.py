"""What a recipe and `laconic.compress` share: calibration data, the steps in order, and what they changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, get_args

from laconic import processes
from laconic.allocate import Plan
from laconic.calibrate import Calibration, Labels, LayerStats
from laconic.calibrate.corpus import Corpus, batches, sample
from laconic.compress import Allocation, Compress, Outcome, Step
from laconic.compress.allocators import ALLOCATORS
from laconic.compress.size_spec import uses_inputs
from laconic.errors import UserError, must_be
from laconic.methods import Method
from laconic.model import Batch, LanguageModel
from laconic.progress import Track
from laconic.recipe.order import needs_original
from laconic.typed import Typed

FROM_DATA: Labels = "data"
LARGEST_SEED = 2**32 - 1
"""NumPy's generator, which transformers' Trainer seeds beside torch's, takes no more than 32 bits."""
Walk = Literal["sequential", "anchored"]
"""How matrices are solved on what earlier ones have made of their inputs; the fields of `Compress`."""
ALLOCATIONS: dict[str, Allocation] = {name: name for name in get_args(Allocation)}


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a list of steps did together.

    Args:
        plans: for each step, the method of every targeted site, None for one that stayed dense; empty for a step that
            uses no method.
        matrices: how many matrices were targeted, factors of earlier ones included.
        nbytes: bytes of these matrices after the last step.
        dense_nbytes: their bytes before the first step.
        untied: sites that no longer share their matrix with another.
        predicted_losses: for each step in nats per prediction; None where nothing was predicted.
        dropped: for each step that dropped blocks, their numbers by stack, as they were before it.
        found: further results of each step.
        files: content by path, to be written beside the saved model.
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
        """The method of every site, factors that a later step targeted included."""
        return {site: method for plan in self.plans for site, method in plan.items()}


@dataclass(frozen=True, kw_only=True)
class Sampling(metaclass=Typed):
    """How a corpus becomes calibration data.

    Args:
        samples: rows that are drawn.
        seed: of the drawing, up to 2³² − 1.
        max_length: tokens of a row at most.
        batch_size: rows of a batch.
        labels: where the labels of the Fisher information come from.

    Example:
        >>> Sampling(samples=0)
        Traceback (most recent call last):
            ...
        laconic.errors.UserError: samples must be at least 1; got 0.
    """

    name: ClassVar[str] = "sampling"

    samples: int = 128
    seed: int = 0
    max_length: int = 128
    batch_size: int = 16
    labels: Labels = "auto"

    def __post_init__(self) -> None:
        for name, least in {"samples": 1, "max_length": 2, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise must_be(name, f"at least {least}", getattr(self, name))
        if not 0 <= self.seed <= LARGEST_SEED:
            raise must_be("seed", f"in [0, {LARGEST_SEED}]", self.seed)

    def of(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Calibration:
        """Draw rows and encode them.

        Args:
            lm: the model whose tokenizer reads them.
            corpus: the rows.
            track: shows the progress of collecting statistics later.
        """
        drawn = sample(corpus, self.samples, self.seed)
        tokens = batches(
            lm,
            drawn,
            batch_size=self.batch_size,
            max_length=self.max_length,
            seed=self.seed,
            labelled=self.labels == FROM_DATA,
        )
        return Calibration(
            tokens,
            self.labels,
            self.seed,
            track,
            corpus,
            max_length=self.max_length,
            batch_size=self.batch_size,
            samples=self.samples,
        )


def steps_of(
    lines: Sequence[Method | Step],
    keep: float | Mapping[str, float] | None,
    allocate: str,
    targets: tuple[str, ...],
    walk: Walk | None = None,
    *,
    allow_dense: bool = False,
) -> tuple[Step, ...]:
    """The steps among `lines`, and a `compress` step for each method.

    Args:
        lines: methods and steps in their order.
        keep: fraction of the targeted bytes kept, for the methods whose size is not set; None where there is none.
        allocate: how the budget is allocated.
        targets: groups or globs.
        walk: solve block by block, for the methods that this changes anything for; None for one pass.
        allow_dense: go on where much can only stay dense.

    Raises:
        UserError: a method lacks a size, or `keep` or `walk` serves none of them, or a value is out of range.
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
    """The walk for two options; an anchored one is sequential too.

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
    """Whether a walk changes anything for it: a step, such as `narrow`, is told so by a parameter of its own."""
    return isinstance(line, Method) and (walk == "anchored" or uses_inputs([line]))


def allocation_of(method: Method, shared: Allocation, lines: Sequence[Method | Step]) -> Allocation:
    """How the budget of one method is allocated: as asked for, or `uniform` where that is meant for other methods.

    A method whose size is set has no use for one threshold over all scores, and leaves no bytes to allocate.

    Args:
        method: one of `lines`.
        shared: the allocation that was asked for.
        lines: all methods and steps.
    """
    aside = method.has_size and not serves(shared, method) and any(serves(shared, line) for line in lines)
    return "uniform" if aside else shared


def serves(allocation: str, line: Method | Step) -> bool:
    """Whether an allocation means anything for `line`. Names that are no allocation are refused elsewhere."""
    if allocation not in ALLOCATIONS:
        return True
    return isinstance(line, Method) and ALLOCATORS[ALLOCATIONS[allocation]].serves(line)


def takes_keep(line: Method | Step) -> bool:
    """Whether a common `keep` applies to `line`: a step, and a method whose size is set, say their own."""
    return isinstance(line, Method) and not line.has_size


def apply_steps(
    lm: LanguageModel,
    steps: Sequence[Step],
    data: Calibration | None,
    known: Mapping[str, LayerStats] | None = None,
) -> tuple[LanguageModel, Changes]:
    """Change a model in place, step by step. Several processes continue from each step with the weights of the first.

    Args:
        lm: the model.
        steps: in order.
        data: the calibration data; None where no step needs any.
        known: statistics by site, collected before: all that the first step, which must be one that `collects_stats`,
            would collect. None to collect them.

    Returns:
        The model in the end, which may be another one, and what was changed.
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
            data = replace(data, batches=_read_again(now, data, data.corpus))
        lm = now or lm
        lm = replace(lm, dropped=() if lm.original is None else (*lm.dropped, outcomes[-1].dropped))
        processes.copy_from_first({**dict(lm.model.named_parameters()), **dict(lm.model.named_buffers())})
    return replace(lm, original=None, dropped=()), _together(outcomes)


def _read_again(lm: LanguageModel, data: Calibration, corpus: Corpus) -> list[Batch]:
    """The same rows, as another model reads them."""
    # A plain encoder has a row for each text of a pair.
    samples = data.samples or sum(len(batch["input_ids"]) for batch in data.batches)
    drawn = sample(corpus, samples, data.seed)
    return batches(
        lm,
        drawn,
        batch_size=data.batch_size,
        max_length=data.max_length,
        seed=data.seed,
        labelled=data.labels == FROM_DATA,
    )


def _together(outcomes: Sequence[Outcome]) -> Changes:
    # A later step may aim at a factor of a matrix; what counts as dense is the matrix it came from.
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
