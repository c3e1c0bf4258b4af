"""Correct a compressed model in closed form: fit the outputs of each layer to those of the original.

Let x̃ be the inputs of a layer in the compressed model, and y* the target outputs. Let C = Cov(x̃) and D = Cov(y*, x̃),
or the uncentred moments if the layer has no bias. The values that the layer's format stores are chosen to minimise

E‖y* − Ŵ x̃‖² + λ ‖Ŵ − Ŵ₀‖² = const + tr((W* − Ŵ) H (W* − Ŵ)^T),    H = C + λ I,  W* = (D + λ Ŵ₀) H^{-1},

where Ŵ₀ is the present matrix. λ is chosen by cross-validation over two halves of the batches with the dense solution
W*, so that the format is solved only once. A format has fewer free values than a dense matrix and overfits less, so it
uses a third of that λ. Then the bias b̂ = E[y*] − Ŵ E[x̃] removes the mean error.

AA-SVD (arXiv 2604.02119) does this for low-rank factors, and GPTAQ (arXiv 2504.02692) for codes; here codes stay fixed.
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
from laconic.calibrate.anchor import (
    FOLDS,
    Moments,
    choose_ridge,
    held_out_count,
    solve_anchored,
    split_held_out,
    squared_error,
)
from laconic.calibrate.passes import evaluating
from laconic.compress import Outcome, Step
from laconic.compress.kept_choice import choose_once
from laconic.compress.kl_metric import KLMetric
from laconic.errors import UserError
from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.model.loans_parts import read_records
from laconic.recover.comparison import ModelPair
from laconic.recover.layer_pairs import bias_of, matrix_of, pair_stacks, shape_of

REFIT, BIASES, NOTHING = "refit", "biases", "nothing"
"""The kinds of correction in the record."""


@dataclass(frozen=True, kw_only=True)
class Correct(Step):
    """Compensate for the errors of the steps before, layer by layer, without training.

    Args:
        refit: fit factors, kept weights and scales by least squares; zeros, codes and ranks stay. Otherwise, or if that
            does not help, only biases are corrected.
        held_out: fraction of the calibration rows, in (0, 1), that decides whether a correction is kept.

    Example:
        >>> Correct(refit=False).needs_original
        True
    """

    name = "correct"

    refit: bool = True
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25

    @property
    def needs_original(self) -> bool:
        return True

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        """Accept every model; `apply` does not change layers that it cannot correct."""

    def check_data(self, data: Calibration | None) -> None:
        held_out_count(self._require_data(data).batches, self.held_out, self.name)

    def _require_data(self, data: Calibration | None) -> Calibration:
        if data is None:
            raise UserError("The step 'correct' needs calibration data; name a source of it.")
        return data

    def dry_run(self, lm: LanguageModel) -> None:
        """The structure does not change."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Correct a copy of the model, and keep it if its divergence from the original on held-out rows is lower.

        Args:
            lm: the model, changed in place.
            data: calibration data.

        Returns:
            An outcome with the divergences before and after, and the kind of correction that was kept.

        Raises:
            UserError: data or the original is missing, there are too few rows, or the blocks cannot be paired with
                those of the original.
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
            found = choose_once(lm, lambda: self._correct_if_better(lm, original, data, KLMetric(original, judging)))
        if lm.loans is not None and found["kept"] != NOTHING:
            for path in read_records(lm.loans.scratch):
                lm.restore(path)
        return Outcome(plan={}, before={}, after={}, found=found)

    def _correct_if_better(
        self, lm: LanguageModel, original: LanguageModel, data: Calibration, metric: KLMetric
    ) -> dict[str, str | float]:
        """Try a refit, then a correction of the biases only, and keep the first that helps.

        The corrected parts of a streamed model are then in its scratch folder.

        Returns:
            The divergences before and after, and the kind of correction.
        """
        before = metric.each(lm)
        kinds = [(REFIT, True), (BIASES, False)][0 if self.refit else 1 :] if before.mean else []
        for kind, refits in kinds:
            candidate = lm.copy()
            if candidate.loans is not None:
                candidate.loans.separate(candidate.model)
            correct(candidate, original, data, refits)
            after = metric.each(candidate)
            if after.beats(before):
                if lm.loans is None:
                    _copy_parameters(lm, candidate)
                return {"kl_before": before.mean, "kl_after": after.mean, "kept": kind}
        return {"kl_before": before.mean, "kl_after": before.mean, "kept": NOTHING}

    def stream_obstacle(self, lm: LanguageModel) -> str | None:
        return None


@torch.no_grad()
def _copy_parameters(lm: LanguageModel, other: LanguageModel) -> None:
    """Copy the parameters of `other`, a corrected copy of `lm`, into `lm`."""
    for mine, theirs in zip(lm.model.parameters(), other.model.parameters(), strict=True):
        mine.copy_(theirs)


def correct(lm: LanguageModel, original: LanguageModel, data: Calibration, refits: bool) -> None:
    """Correct the layers of a model in forward order, each on inputs from the layers already corrected.

    Args:
        lm: the model, changed in place.
        original: the original model.
        data: calibration data.
        refits: refit factors, unpruned weights and scales as well as biases.

    Raises:
        UserError: inputs or outputs of a layer are not finite.
    """
    models = ModelPair(lm, original, data)
    models.delete_states()
    for pairs, anchor in models.steps():
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
    models.delete_states()


def _is_shared(lm: LanguageModel, layer: nn.Module) -> bool:
    """Whether another module shares a parameter with the layer's matrix, as the embedding does with a tied head."""
    bias = bias_of(layer)
    own = {id(tensor) for tensor in layer.parameters() if tensor is not bias}
    inside = set(layer.modules())
    others = (module for module in lm.model.modules() if module not in inside)
    return any(id(tensor) in own for module in others for tensor in module.parameters(recurse=False))


FORMAT_RIDGE = 1 / 3
"""Factor on λ for a compressed layer."""


def reads_inputs(layer: nn.Module, moments: Moments) -> bool:
    """Return whether `layer` is as wide as its measured inputs; a dropped part may get no inputs at all."""
    return shape_of(layer)[1] == len(moments.x)


@torch.no_grad()
def refit(lm: LanguageModel, layer: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Refit the matrix of a layer within its format, if cross-validation between the two halves shows a gain.

    Args:
        lm: the model, whose stored dtype the result is rounded to.
        layer: a plain linear layer or a format, changed in place.
        whole: moments over all batches.
        folds: moments over each half of the batches.
    """
    present = matrix_of(layer).double()
    ridge = choose_ridge(present, folds)
    if ridge is None:
        return
    if isinstance(layer, Format):
        ridge *= FORMAT_RIDGE
    target, level = solve_anchored(present, whole, ridge), ridge * whole.C.diagonal().mean()
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
    """Set the bias of a layer so that its mean error is zero.

    Args:
        lm: the model, whose stored dtype the result is rounded to.
        layer: a plain or compressed linear layer with a bias, changed in place.
        moments: moments of its inputs and target outputs.
    """
    bias = bias_of(layer)
    assert bias is not None
    through = matrix_of(layer).double() @ moments.x if reads_inputs(layer, moments) else 0
    bias.copy_((moments.y - through).to(lm.dtype))


@torch.no_grad()
def correct_norm(lm: LanguageModel, norm: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Fit the bias and the gain of each channel of a LayerNorm to target outputs.

    The gains stay unchanged if cross-validation shows no improvement, or if there are too few folds.

    Args:
        lm: the model, whose stored dtype the result is rounded to.
        norm: the norm, changed in place.
        whole: moments over all batches, with the norm's present outputs as x̃ and the target outputs as y*.
        folds: the same over each half of the batches; empty to fit the bias only.
    """
    gain, unit_gain = _gain(whole), torch.ones_like(whole.x)
    pairs = list(zip(folds, reversed(folds), strict=True)) if len(folds) == FOLDS else []
    fitted_error = sum(squared_error(_gain(fold).diag(), other) for fold, other in pairs)
    if not fitted_error < sum(squared_error(unit_gain.diag(), fold) for fold, _ in pairs):
        gain = unit_gain
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    bias.copy_((gain * bias.double() + whole.y - gain * whole.x).to(lm.dtype))
    weight.copy_((gain * weight.double()).to(lm.dtype))


def _gain(moments: Moments) -> Float[Tensor, " d"]:
    variances = moments.C.diagonal()
    return torch.where(variances > 0, moments.D.diagonal() / variances.clamp(min=torch.finfo(variances.dtype).tiny), 1)
