"""Brings a compressed model nearer to the original without training: biases, factors, kept weights, scales, tables.

A whole model corrected in forward order: each layer on inputs as those before it have become.

One layer brought as near as it can be to the outputs that are wanted of it, from the inputs that it has now.

With x̃ these inputs and y* the outputs to be reached, C = Cov(x̃) and D = Cov(y*, x̃), or the uncentred moments where
the layer has no bias, the numbers that its format stores are those of least

    E‖y* − Ŵ x̃‖² + λ ‖Ŵ − Ŵ₀‖² = const + tr((W* − Ŵ) H (W* − Ŵ)^T),    H = C + λ I,  W* = (D + λ Ŵ₀) H^{-1},

Ŵ₀ being what it multiplies by now. λ is chosen by cross-validation over two halves of the batches, from no change at
all down, as if the layer could be W* itself, so that one solution in the format is enough; there, where fewer numbers
are free to follow the noise, a part of that λ is taken. Then b̂ = E[y*] − Ŵ E[x̃] leaves no mean error. (AA-SVD, arXiv
2604.02119, is this for a low rank; GPTAQ, arXiv 2504.02692, for codes, which stay here.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.calibrate import Calibration
from laconic.calibrate.anchor import FOLDS, Moments, choose_ridge, squared_error, wanted
from laconic.calibrate.calibration import held_out_count, split_held_out
from laconic.calibrate.passes import evaluating
from laconic.compress import Outcome, Step
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.errors import UserError, must_be
from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.recover.correct.comparison import Comparison
from laconic.recover.correct.pairs import bias_of, matrix_of, pair_stacks, shape_of


@dataclass(frozen=True, kw_only=True)
class Correct(Step):
    """Make up for the errors of the steps before, layer by layer, as far as the numbers that are stored can.

    refit:    numbers beside zeros, codes and ranks move by least squares; otherwise, or where that does not help,
              biases alone.
    held_out: fraction of the calibration rows that decides whether anything changes.
    """

    name = "correct"

    refit: bool = True
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise must_be("held_out", "in (0, 1)", self.held_out)

    @property
    def needs_original(self) -> bool:
        return True

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        """What it cannot correct it leaves as it is."""

    def check_data(self, data: Calibration | None) -> None:
        held_out_count(self._require_data(data).batches, self.held_out, self.name)

    def _require_data(self, data: Calibration | None) -> Calibration:
        if data is None:
            raise UserError("The step 'correct' needs calibration data; name a source of it.")
        return data

    def dry_run(self, lm: LanguageModel) -> None:
        """The structure stays."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Correct a copy of the model, and keep that where it diverges less from the original on held-out rows.

        Raises:
            UserError: data or the original is missing, there are too few rows, or the blocks are not those of the
                original.
        """
        data = self._require_data(data)
        original = lm.original
        if original is None:
            raise UserError(
                "The step 'correct' needs the original to compare with; run it in one recipe with the steps before it."
            )
        pair_stacks(lm, original)
        fitting, judging = split_held_out(data.batches, self.held_out, data.seed, self.name)
        data = replace(data, batches=fitting)
        with evaluating(lm, original):
            metric = KLMetric(original, judging)
            before = metric.each(lm)
            kept, after = (
                self._correct_if_better(lm, original, data, metric, before) if before.mean else ("nothing", before)
            )
        found = {"kl_before": before.mean, "kl_after": after.mean, "kept": kept}
        return Outcome(plan={}, before={}, after={}, found=found)

    def _correct_if_better(
        self, lm: LanguageModel, original: LanguageModel, data: Calibration, metric: KLMetric, before: Divergences
    ) -> tuple[str, Divergences]:
        """What was kept of the ways to correct, the one that moves most first, and the divergence then."""
        for candidate_name, refits in (("refit", True), ("biases", False)):
            if refits and not self.refit:
                continue
            candidate = lm.copy()
            correct(candidate, original, data, refits)
            after = metric.each(candidate)
            if after.beats(before):
                _copy_parameters(lm, candidate)
                return candidate_name, after
        return "nothing", before


@torch.no_grad()
def _copy_parameters(lm: LanguageModel, other: LanguageModel) -> None:
    """The numbers of `other`, a copy of `lm`, in place."""
    for mine, theirs in zip(lm.model.parameters(), other.model.parameters(), strict=True):
        mine.copy_(theirs)


def correct(lm: LanguageModel, original: LanguageModel, data: Calibration, refits: bool) -> None:
    """Change the biases of the layers of `lm`, in place, and where it `refits` what else they store.

    Raises:
        UserError: inputs or outputs of a layer are not finite.
    """
    for pairs, anchor in Comparison(lm, original, data).steps():
        for pair in pairs:
            layer = lm.model.get_submodule(pair.name)
            centred = bias_of(layer) is not None
            whole, folds = anchor.moments(pair.name, centred)
            if isinstance(layer, nn.LayerNorm):
                correct_norm(lm, layer, whole, folds if refits else [])
                continue
            if refits and reads_inputs(layer, whole) and not _is_shared(lm, layer):
                refit(lm, layer, whole, folds)
            if centred:
                correct_bias(lm, layer, whole)


def _is_shared(lm: LanguageModel, layer: nn.Module) -> bool:
    """Whether another module has a tensor of the layer's matrix too, as the embedding has that of a tied head."""
    bias = bias_of(layer)
    own = {id(tensor) for tensor in layer.parameters() if tensor is not bias}
    inside = set(layer.modules())
    others = (module for module in lm.model.modules() if module not in inside)
    return any(id(tensor) in own for module in others for tensor in module.parameters(recurse=False))


FORMAT_RIDGE = 1 / 3
"""The part of λ that is taken for a format."""


def reads_inputs(layer: nn.Module, moments: Moments) -> bool:
    """Whether its matrix multiplies what was measured: a part that was dropped may be given nothing at all."""
    return shape_of(layer)[1] == len(moments.x)


@torch.no_grad()
def refit(lm: LanguageModel, layer: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Change what `layer` stores of its matrix, where what one half of the batches asks for helps the other."""
    present = matrix_of(layer).double()
    ridge = choose_ridge(present, folds)
    if ridge is None:
        return
    if isinstance(layer, Format):
        ridge *= FORMAT_RIDGE
    target, level = wanted(present, whole, ridge), ridge * whole.C.diagonal().mean()
    if isinstance(layer, Format):
        layer.refit(target, whole.C + level * torch.eye(len(whole.C), dtype=target.dtype, device=target.device))
    else:
        layer.get_parameter("weight").copy_(target.T if isinstance(layer, Conv1D) else target)
    for tensor in layer.parameters():
        if tensor.is_floating_point():
            # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
            tensor.copy_(tensor.to(lm.dtype))


@torch.no_grad()
def correct_bias(lm: LanguageModel, layer: nn.Module, moments: Moments) -> None:
    """Give `layer`, which has a bias, the one that leaves no mean error."""
    bias = bias_of(layer)
    assert bias is not None
    through = matrix_of(layer).double() @ moments.x if reads_inputs(layer, moments) else 0
    bias.copy_((moments.y - through).to(lm.dtype))


@torch.no_grad()
def correct_norm(lm: LanguageModel, norm: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Give a norm with the outputs x̃ the bias, and the gain of each channel, that bring them nearest to y*.

    Gains stay where those of one of the `folds` err more on the other than none, or where there are too few.
    """
    gain, one = _gain(whole), torch.ones_like(whole.x)
    pairs = list(zip(folds, reversed(folds), strict=True)) if len(folds) == FOLDS else []
    tried = sum(squared_error(_gain(fold).diag(), other) for fold, other in pairs)
    if not tried < sum(squared_error(one.diag(), fold) for fold, _ in pairs):
        gain = one
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    bias.copy_((gain * bias.double() + whole.y - gain * whole.x).to(lm.dtype))
    weight.copy_((gain * weight.double()).to(lm.dtype))


def _gain(moments: Moments) -> Float[Tensor, " d"]:
    variances = moments.C.diagonal()
    return torch.where(variances > 0, moments.D.diagonal() / variances.clamp(min=torch.finfo(variances.dtype).tiny), 1)
