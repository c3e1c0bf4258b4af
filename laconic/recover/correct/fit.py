"""One layer brought as near as it can be to the outputs that are wanted of it, from the inputs that it has now.

With x̃ these inputs and y* the outputs to be reached, C = Cov(x̃) and D = Cov(y*, x̃), or the uncentred moments where
the layer has no bias, the numbers that its format stores are those of least

    E‖y* − Ŵ x̃‖² + λ ‖Ŵ − Ŵ₀‖² = const + tr((W* − Ŵ) H (W* − Ŵ)^T),    H = C + λ I,  W* = (D + λ Ŵ₀) H^{-1},

Ŵ₀ being what it multiplies by now. λ is chosen by cross-validation over two halves of the batches, from no change at
all down. Then b̂ = E[y*] − Ŵ E[x̃] leaves no mean error. (Z. Li et al., "AA-SVD", arXiv 2604.02119, for factors;
E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, for the weights that a mask keeps.)
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.calibrate.anchor import FOLDS, Moments, error_of, wanted
from laconic.formats import Format
from laconic.model import LanguageModel

RIDGES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""λ as multiples of the mean of C's diagonal."""


def bias_of(layer: nn.Module) -> Tensor | None:
    """(out,), or None."""
    return layer.bias if isinstance(layer, Format) else dict(layer.named_parameters(recurse=False)).get("bias")


def matrix_of(layer: nn.Module) -> Float[Tensor, "out in"]:
    """What the layer multiplies by."""
    if isinstance(layer, Format):
        return layer.dense().detach()
    weight = layer.get_parameter("weight").detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def refit(lm: LanguageModel, layer: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Change the numbers that `layer` stores of its matrix, unless that errs more on the other half than leaving it."""
    W = matrix_of(layer).double()
    ridge = _chosen_ridge(lm, layer, W, folds)
    if ridge is not None:
        _fit(lm, layer, W, whole, ridge)


@torch.no_grad()
def centre(lm: LanguageModel, layer: nn.Module, moments: Moments) -> None:
    """Give `layer`, which has a bias, the one that leaves no mean error."""
    bias = bias_of(layer)
    assert bias is not None
    bias.copy_((moments.y - matrix_of(layer).double() @ moments.x).to(lm.dtype))


def _chosen_ridge(
    lm: LanguageModel, layer: nn.Module, W: Float[Tensor, "out in"], folds: Sequence[Moments]
) -> float | None:
    if len(folds) < FOLDS:
        return None
    best, least = None, sum(error_of(W, fold) for fold in folds)
    for ridge in RIDGES:
        error = 0.0
        for fold, other in zip(folds, reversed(folds), strict=True):
            trial = deepcopy(layer)
            _fit(lm, trial, W, fold, ridge)
            error += error_of(matrix_of(trial).double(), other)
        if not error < least:
            break
        best, least = ridge, error
    return best


@torch.no_grad()
def _fit(lm: LanguageModel, layer: nn.Module, W: Float[Tensor, "out in"], moments: Moments, ridge: float) -> None:
    level = ridge * moments.C.diagonal().mean()
    if level <= 0:
        return
    target = wanted(W, moments, ridge)
    if isinstance(layer, Format):
        layer.refit(target, moments.C + level * torch.eye(len(moments.C), dtype=W.dtype, device=W.device))
    else:
        layer.get_parameter("weight").copy_(target.T if isinstance(layer, Conv1D) else target)
    for tensor in layer.parameters():
        if tensor.is_floating_point():
            # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
            tensor.copy_(tensor.to(lm.dtype))
