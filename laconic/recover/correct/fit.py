"""One layer brought as near as it can be to the outputs that are wanted of it, from the inputs that it has now.

With x̃ these inputs and y* the outputs to be reached, C = Cov(x̃) and D = Cov(y*, x̃), or the uncentred moments where
the layer has no bias, the numbers that its format stores are those of least

    E‖y* − Ŵ x̃‖² + λ ‖Ŵ − Ŵ₀‖² = const + tr((W* − Ŵ) H (W* − Ŵ)^T),    H = C + λ I,  W* = (D + λ Ŵ₀) H^{-1},

Ŵ₀ being what it multiplies by now. λ is chosen by cross-validation over two halves of the batches, from no change at
all down, as if the layer could be W*: what serves that serves any format of it, and one format is solved for. Then b̂ = E[y*] − Ŵ E[x̃] leaves no mean error. (Z. Li et al., "AA-SVD", arXiv 2604.02119, for factors;
E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, for the weights that a mask keeps.)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.calibrate.anchor import Moments, chosen_ridge, error_of, wanted
from laconic.formats import Format
from laconic.model import LanguageModel

def bias_of(layer: nn.Module) -> Tensor | None:
    """(out,), or None."""
    return layer.bias if isinstance(layer, Format) else dict(layer.named_parameters(recurse=False)).get("bias")


def matrix_of(layer: nn.Module) -> Float[Tensor, "out in"]:
    """What the layer multiplies by."""
    if isinstance(layer, Format):
        return layer.dense().detach()
    weight = layer.get_parameter("weight").detach()
    return weight.T if isinstance(layer, Conv1D) else weight


@torch.no_grad()
def refit(lm: LanguageModel, layer: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Change the numbers that `layer` stores of its matrix, where what one half of the batches wants helps the other."""
    W = matrix_of(layer).double()
    ridge = chosen_ridge(W, folds)
    if ridge is None:
        return
    target, level = wanted(W, whole, ridge), ridge * whole.C.diagonal().mean()
    if isinstance(layer, Format):
        layer.refit(target, whole.C + level * torch.eye(len(whole.C), dtype=W.dtype, device=W.device))
    else:
        layer.get_parameter("weight").copy_(target.T if isinstance(layer, Conv1D) else target)
    for tensor in layer.parameters():
        if tensor.is_floating_point():
            # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
            tensor.copy_(tensor.to(lm.dtype))


@torch.no_grad()
def centre(lm: LanguageModel, layer: nn.Module, moments: Moments) -> None:
    """Give `layer`, which has a bias, the one that leaves no mean error."""
    bias = bias_of(layer)
    assert bias is not None
    bias.copy_((moments.y - matrix_of(layer).double() @ moments.x).to(lm.dtype))


@torch.no_grad()
def adjust(lm: LanguageModel, norm: nn.Module, whole: Moments, folds: Sequence[Moments], gains: bool) -> None:
    """Give a norm with the outputs x̃ the bias, and the gain of each channel, that bring them nearest to y*."""
    gain = _gain(whole)
    tried = [error_of(_gain(fold).diag(), other) for fold, other in zip(folds, reversed(folds), strict=True)]
    if not gains or not sum(tried) < sum(error_of(torch.ones_like(gain).diag(), fold) for fold in folds):
        gain = torch.ones_like(gain)
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    bias.copy_((gain * bias.double() + whole.y - gain * whole.x).to(lm.dtype))
    weight.copy_((gain * weight.double()).to(lm.dtype))


def _gain(moments: Moments) -> Float[Tensor, " d"]:
    variances = moments.C.diagonal()
    return torch.where(variances > 0, moments.D.diagonal() / variances.clamp(min=torch.finfo(variances.dtype).tiny), 1)
