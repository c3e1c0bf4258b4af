"""The memory of a streamed run from shapes alone, for whoever must place a run before anything is measured.

A trial (`laconic.recipe.estimate.trial`) measures the memory; this is an upper bound.
"""

from collections.abc import Sequence

from laconic.calibrate.losses import LOGITS
from laconic.calibrate.statistics import GradientStatistic
from laconic.compress import Step
from laconic.errors import UserError
from laconic.model import Batch, Group, LanguageModel, Site
from laconic.recipe.estimate.in_memory import FLOAT, step_memory
from laconic.recipe.estimate.truncation import truncate


def streamed_memory(lm: LanguageModel, steps: Sequence[Step], batches: Sequence[Batch]) -> int:
    """Bytes that streamed steps need, beyond the memory of the program itself.

    They are those of the same steps on a model in memory that has one block of each kind, and only the embeddings and
    heads that are measured. If a step cannot run on such a model, they are those of the whole model.

    Args:
        lm: the model without weights; it is not changed.
        steps: the steps.
        batches: the calibration batches; only their shapes are used.
    """
    small = lm.shallow_copy()
    try:
        truncate(small)
        return max((_step_memory(small, step, batches) for step in steps), default=0)
    except UserError:
        return max((step_memory(lm, step, batches) for step in steps), default=0)


def _step_memory(small: LanguageModel, step: Step, batches: Sequence[Batch]) -> int:
    """Bytes that a step needs on a model with one block of each kind."""
    targeted = {site.name for site in step.sites(small)}
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in step.needs)
    outside = [site for site in small.sites(("*",)) if site.block is None]
    heads = {site.name for site in outside if site.group is Group.HEAD}
    read = targeted | heads if with_gradients else targeted
    memory = step_memory(small, step, batches, None if heads & targeted else LOGITS)
    return memory - FLOAT * _numel([site for site in outside if site.name not in read], outside)


def _numel(sites: Sequence[Site], outside: Sequence[Site]) -> int:
    """The numbers in some layers outside the blocks, without those that are tied to another one of these layers."""
    others = {id(tensor) for site in outside if site not in sites for tensor in site.places[0].module.parameters()}
    own = {id(tensor): tensor.numel() for site in sites for tensor in site.places[0].module.parameters()}
    return sum(count for key, count in own.items() if key not in others)
