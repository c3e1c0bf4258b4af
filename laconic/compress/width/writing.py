"""The output projection of an attention or a feed-forward that has lost parts: its columns, refitted, and its bias."""

from collections.abc import Sequence

from laconic.calibrate import InputCovariance, Problem
from laconic.model import LanguageModel
from laconic.model.prunable_group import PrunableGroup
from laconic.model.width import keep_parts
from laconic.numerics.structured import columns_of, damped, refitted


def take_out(
    lm: LanguageModel, inner: PrunableGroup, problem: Problem, parts: Sequence[int], *, refit: bool, centre: bool
) -> None:
    """Leave `inner` with `parts`; the columns that write make up for the rest by least squares where they `refit`, and
    their bias does where that, or `centre`, is asked for and it may move."""
    columns = columns_of(parts, inner.size).to(problem.weight.device)
    weight = problem.weight[:, columns]
    if refit:
        # Rounded as they are stored, so that the bias makes up for that too.
        weight = refitted(problem.weight, damped(problem.known[InputCovariance].matrix), columns).to(lm.dtype)
    bias = None
    if problem.means is not None and (refit or centre):
        bias = problem.means.y - weight.double() @ problem.means.x[columns]
    keep_parts(lm, inner, parts, weight, bias)
