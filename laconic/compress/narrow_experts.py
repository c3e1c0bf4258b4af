"""Choose which experts of a mixture stay, and remove the others.

`reap` ranks experts by router-weighted expert activation (REAP; M. Lasby et al., "REAP the Experts: Why Pruning
Prevails for One-Shot MoE Compression", arXiv 2510.13999, equation 9):

    S_e = mean over the tokens x that the router sends to e of  w_e(x) · ‖f_e(x)‖₂

with the weight w_e(x) of the router and the output f_e(x) of the expert before that weight. `frequency` counts the
tokens that the router sends to an expert. `random` is a baseline.

`laconic.calibrate.expert_activity` measures both.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import processes
from laconic.calibrate import Calibration
from laconic.calibrate.expert_activity import measure_experts
from laconic.compress.kept_choice import choose_once
from laconic.compress.step import Outcome
from laconic.errors import Notice, UserError
from laconic.model import LanguageModel
from laconic.model.expert_removal import check_removable, count_kept, describe_kept, keep_experts
from laconic.model.mixture import Mixture, find_mixtures
from laconic.model.size import module_size

ExpertImportance = Literal["reap", "frequency", "random"]

MEASURED: frozenset[ExpertImportance] = frozenset({"reap", "frequency"})
"""The importances that need calibration data."""


def check_expert_options(experts: float | None, importance: ExpertImportance, seed: int, ranking: str | None) -> None:
    """Check that the parameters of the step that concern experts do not contradict each other.

    Args:
        experts: as in `Narrow`.
        importance: `expert_importance` of `Narrow`.
        seed: as in `Narrow`.
        ranking: as in `Narrow`.

    Raises:
        UserError: a parameter has no effect beside the others.
    """
    if experts is None and importance != "reap":
        raise UserError("expert_importance must be left out without experts, because it ranks only experts.")
    if seed and importance != "random":
        raise UserError("seed must be left out without expert_importance: random, because nothing else is drawn.")
    if experts is not None and ranking == "global":
        raise UserError(
            "ranking must be local or left out with experts, because the configuration of a model has one number of "
            "experts for all blocks."
        )


def score_experts(
    lm: LanguageModel, data: Calibration | None, importance: ExpertImportance, seed: int
) -> dict[str, Float[Tensor, " experts"]]:
    """Score the experts of every block; those with the lowest scores are removed.

    Args:
        lm: the model.
        data: the calibration data; used by `reap` and `frequency`.
        importance: how experts are ranked.
        seed: seed of `random`.

    Returns:
        Scores by `Mixture.path`.

    Raises:
        UserError: calibration data are needed and missing.
    """
    if importance == "random":
        return {mixture.path: _random_scores(mixture, seed) for mixture in find_mixtures(lm.model)}
    if data is None:
        raise UserError("The step 'narrow' needs calibration data; name a source of it.")
    measured = measure_experts(lm, data)
    return {path: each.saliency if importance == "reap" else each.tokens for path, each in measured.items()}


def _random_scores(mixture: Mixture, seed: int) -> Float[Tensor, " experts"]:
    # The path makes blocks differ, and a block keeps its scores if others are dropped before it.
    digest = sha256(f"{seed} {mixture.path}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    return torch.rand(mixture.count, generator=generator)


def choose_experts(scores: Float[Tensor, " experts"], kept: int, groups: int = 1) -> list[int]:
    """Return the numbers of the experts with the highest scores, ascending; of equal ones the first.

    Args:
        scores: one score for each expert.
        kept: the number of experts that stay.
        groups: the number of groups of consecutive experts, each of which keeps the same number.

    Example:
        >>> choose_experts(torch.tensor([4.0, 1.0, 2.0, 3.0]), 2)
        [0, 3]
        >>> choose_experts(torch.tensor([4.0, 1.0, 2.0, 3.0, 6.0, 5.0]), 2, groups=2)
        [0, 4]
    """
    best = scores.view(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : kept // groups].sort(dim=1).values
    first = torch.arange(groups, device=best.device)[:, None] * (len(scores) // groups)
    return (best + first).flatten().tolist()


@dataclass(frozen=True)
class RemovedExperts:
    """The record of a removal of experts.

    Args:
        kept: the numbers of the experts that stay, by `Mixture.path`.
        per_token: the number of experts that read a token afterwards.
        before: bytes of the experts of each block before the removal.
        after: the same after it.
    """

    kept: Mapping[str, list[int]]
    per_token: int
    before: Mapping[str, int]
    after: Mapping[str, int]

    def add_to(self, outcome: Outcome) -> Outcome:
        """Return the record of a step with this removal added."""
        found = {"experts": {"kept": dict(self.kept), "per_token": self.per_token}}
        return replace(
            outcome,
            before={**outcome.before, **self.before},
            after={**outcome.after, **self.after},
            found={**outcome.found, **found},
        )


@dataclass(frozen=True)
class ExpertRemoval:
    """Remove the experts with the lowest scores from every block, equally many from each.

    Args:
        keep: the fraction of the experts that stays, in (0, 1).
        importance: how experts are ranked.
        seed: seed of `random`.
    """

    keep: float
    importance: ExpertImportance
    seed: int

    @property
    def needs_data(self) -> bool:
        """True if `apply` needs calibration data."""
        return self.importance in MEASURED

    def check(self, lm: LanguageModel) -> None:
        """Raise UserError if experts of `lm`, whose weights need not be loaded, cannot be removed."""
        check_removable(lm, self.keep)

    def dry_run(self, lm: LanguageModel) -> None:
        """Remove all but the first experts of each group, to give a model without weights its later structure."""
        keep_experts(
            lm,
            {
                mixture.path: choose_experts(torch.zeros(mixture.count), count_kept(mixture, self.keep), mixture.groups)
                for mixture in find_mixtures(lm.model)
            },
        )

    def apply(self, lm: LanguageModel, data: Calibration | None) -> RemovedExperts:
        """Choose and remove the experts.

        Args:
            lm: the model, changed in place; it has passed `check`.
            data: the calibration data; None if `needs_data` is False.
        """
        before, sentence = _experts_nbytes(lm), describe_kept(find_mixtures(lm.model)[0], self.keep)
        with _own_scratch(lm):
            kept = choose_once(lm, lambda: self._choose(lm, data))
            keep_experts(lm, kept)
        if sentence is not None and processes.is_rank_zero():
            warnings.warn(sentence, Notice, stacklevel=2)
        return RemovedExperts(kept, find_mixtures(lm.model)[0].per_token, before, _experts_nbytes(lm))

    def _choose(self, lm: LanguageModel, data: Calibration | None) -> dict[str, list[int]]:
        scores = score_experts(lm, data, self.importance, self.seed)
        return {
            mixture.path: choose_experts(scores[mixture.path], count_kept(mixture, self.keep), mixture.groups)
            for mixture in find_mixtures(lm.model)
        }


@contextmanager
def _own_scratch(lm: LanguageModel) -> Iterator[None]:
    """Within the context a streamed model has a scratch folder of its own, apart from that of the step.

    The blocks are written once without the experts, and again without heads and channels.
    """
    if lm.loans is None:
        yield
        return
    step = lm.loans.scratch.name
    lm.loans.begin(f"{step}.experts")
    yield
    lm.loans.begin(step)


def _experts_nbytes(lm: LanguageModel) -> dict[str, int]:
    """Bytes on disk of the experts of each block, by `Mixture.path`."""
    return {mixture.path: module_size(mixture.experts, lm.dtype)[1] for mixture in find_mixtures(lm.model)}
