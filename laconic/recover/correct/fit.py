"""One layer brought as near as it can be to the outputs that are wanted of it, from the inputs that it has now.

With x̃ these inputs and y* the outputs to be reached, C = Cov(x̃) and D = Cov(y*, x̃), or the uncentred moments where
the layer has no bias, the numbers that its format stores are those of least

    E‖y* − Ŵ x̃‖² + λ ‖Ŵ − Ŵ₀‖² = const + tr((W* − Ŵ) H (W* − Ŵ)^T),    H = C + λ I,  W* = (D + λ Ŵ₀) H^{-1},

Ŵ₀ being what it multiplies by now. λ is chosen by cross-validation over two halves of the batches, from no change at
all down, as if the layer could be W* itself, so that one solution in the format is enough; there, where fewer numbers
are free to follow the noise, a part of that λ is taken. Then b̂ = E[y*] − Ŵ E[x̃] leaves no mean error. (AA-SVD, arXiv
2604.02119, is this for a low rank; GPTAQ, arXiv 2504.02692, for codes, which stay here.)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.calibrate.anchor import FOLDS, Moments, chosen_ridge, error_of, wanted
from laconic.formats import Format
from laconic.model import LanguageModel

HELD = 1 / 3
"""The part of λ that is taken for a format."""


def bias_of(layer: nn.Module) -> Tensor | None:
    """(out,), or None."""
    return layer.bias if isinstance(layer, Format) else dict(layer.named_parameters(recurse=False)).get("bias")


def matrix_of(layer: nn.Module) -> Float[Tensor, "out in"]:
    """What the layer multiplies by."""
    if isinstance(layer, Format):
        return layer.dense().detach()
    weight = layer.get_parameter("weight").detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of the matrix of a plain linear or a format, which is not multiplied out for it."""
    if isinstance(layer, Format):
        return layer.shape
    shape = tuple(layer.get_parameter("weight").shape)
    return (shape[1], shape[0]) if isinstance(layer, Conv1D) else (shape[0], shape[1])


def reads(layer: nn.Module, moments: Moments) -> bool:
    """Whether its matrix multiplies what was measured: a part that was dropped may be given nothing at all."""
    return shape_of(layer)[1] == len(moments.x)


@torch.no_grad()
def refit(lm: LanguageModel, layer: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Change what `layer` stores of its matrix, where what one half of the batches asks for helps the other."""
    present = matrix_of(layer).double()
    ridge = chosen_ridge(present, folds)
    if ridge is None:
        return
    if isinstance(layer, Format):
        ridge *= HELD
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
def centre(lm: LanguageModel, layer: nn.Module, moments: Moments) -> None:
    """Give `layer`, which has a bias, the one that leaves no mean error."""
    bias = bias_of(layer)
    assert bias is not None
    through = matrix_of(layer).double() @ moments.x if reads(layer, moments) else 0
    bias.copy_((moments.y - through).to(lm.dtype))


@torch.no_grad()
def adjust(lm: LanguageModel, norm: nn.Module, whole: Moments, folds: Sequence[Moments]) -> None:
    """Give a norm with the outputs x̃ the bias, and the gain of each channel, that bring them nearest to y*.

    Gains stay where those of one of the `folds` err more on the other than none, or where there are too few.
    """
    gain, one = _gain(whole), torch.ones_like(whole.x)
    pairs = list(zip(folds, reversed(folds), strict=True)) if len(folds) == FOLDS else []
    tried = sum(error_of(_gain(fold).diag(), other) for fold, other in pairs)
    if not tried < sum(error_of(one.diag(), fold) for fold, _ in pairs):
        gain = one
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    bias.copy_((gain * bias.double() + whole.y - gain * whole.x).to(lm.dtype))
    weight.copy_((gain * weight.double()).to(lm.dtype))


def _gain(moments: Moments) -> Float[Tensor, " d"]:
    variances = moments.C.diagonal()
    return torch.where(variances > 0, moments.D.diagonal() / variances.clamp(min=torch.finfo(variances.dtype).tiny), 1)
