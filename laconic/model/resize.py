"""Plain linears of another shape than their class gives them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.formats import Dense
from laconic.model.lm import LanguageModel
from laconic.model.site import Linear, Site


def empty_linear(like: Linear, shape: tuple[int, int]) -> Linear:
    """A linear of the kind of `like`, with a bias where that has one, of `shape` (out, in), on the meta device."""
    out_features, in_features = shape
    with torch.device("meta"):
        if isinstance(like, Conv1D):
            return Conv1D(out_features, in_features)
        return nn.Linear(in_features, out_features, bias=like.bias is not None)


def resized(like: Linear, weight: Float[Tensor, "out in"], bias: Tensor | None) -> Linear:
    """A linear of the kind of `like` with this matrix and bias, trainable and in training as that is."""
    linear = empty_linear(like, (weight.shape[0], weight.shape[1]))
    own = weight.T if isinstance(linear, Conv1D) else weight
    trains = like.weight.requires_grad
    linear.weight = nn.Parameter(own.contiguous(), requires_grad=trains)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=trains)
    return linear.train(like.training)


def put(lm: LanguageModel, site: Site, weight: Float[Tensor, "out in"], bias: Tensor | None) -> None:
    """A linear of the kind of the one at `site`, with this matrix and bias, in its place."""
    old = site.module
    if isinstance(old, Dense):
        lm.replace(site, Dense.of(weight.to(lm.dtype)), bias)
        return
    assert isinstance(old, (nn.Linear, Conv1D))
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    rounded = [None if tensor is None else tensor.to(lm.dtype).to(old.weight.dtype) for tensor in (weight, bias)]
    assert rounded[0] is not None
    lm.model.set_submodule(site.name, resized(old, rounded[0], rounded[1]))
