"""Fold a linear map y ↦ T y + b into the module whose output y is."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Constant, Dense, Format, LinearReplacement, LowRank, LowRankReader
from laconic.model import LanguageModel, Site
from laconic.model.width import resize_linear

Matrix = Float[Tensor, "d d"] | None
"""T in float64; None for the identity."""
Bias = Float[Tensor, " d"]


@torch.no_grad()
def fold(lm: LanguageModel, path: str, T: Matrix, b: Bias) -> int:
    """Change the module at `path` so that its output becomes T y + b instead of y.

    T is multiplied into the matrix of a linear layer, or into the output factor of a factored one. After a norm, a
    module that applies T and b is added.

    Args:
        lm: the model, changed in place.
        path: path of a linear layer, a compressed layer or a norm.
        T: (d, d); None for the identity.
        b: (d,).

    Returns:
        The number of bytes that the matrices of the module grow by.

    Raises:
        UserError: T cannot be multiplied into the format of the module.
    """
    module = lm.model.get_submodule(path)
    if isinstance(module, (nn.Linear, Conv1D, Format)):
        _fold_into_linear(lm, path, T, b)
        return 0
    if isinstance(module, LinearReplacement):
        return _fold_into_map(lm, path, module, T, b)
    if T is None and isinstance(module, nn.LayerNorm) and module.bias is not None:
        module.bias = _to_parameter(lm, module.bias.double() + b, module.bias)
        return 0
    like = next(iter(module.parameters()))
    mapped = LinearReplacement.from_map(module, None if T is None else _to_stored(lm, T, like), _to_stored(lm, b, like))
    lm.model.set_submodule(path, mapped.train(module.training).requires_grad_(like.requires_grad))
    return 0 if T is None else T.numel() * lm.dtype.itemsize


def _fold_into_map(lm: LanguageModel, path: str, module: LinearReplacement, T: Matrix, b: Bias) -> int:
    before, like = module.matrix, module.bias
    bias = (module.bias.double() if T is None else T @ module.bias.double()) + b
    matrix = T if before is None else before.double() if T is None else T @ before.double()
    mapped = LinearReplacement.from_map(
        module.norm, None if matrix is None else _to_stored(lm, matrix, like), _to_stored(lm, bias, like)
    )
    lm.model.set_submodule(path, mapped.train(module.training).requires_grad_(like.requires_grad))
    return matrix.numel() * lm.dtype.itemsize if before is None and matrix is not None else 0


def _fold_into_linear(lm: LanguageModel, path: str, T: Matrix, b: Bias) -> None:
    module = lm.model.get_submodule(path)
    assert isinstance(module, (nn.Linear, Conv1D, Format))
    old = module.bias
    bias = b if old is None else (old.double() if T is None else T @ old.double()) + b
    if isinstance(module, Format):
        if T is not None:
            _fold_into_factor(lm, path, module, T)
        module.set_bias(_to_stored(lm, bias, module.weight if old is None else old))
        return
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    W = weight if T is None else _to_stored(lm, T @ weight.double(), weight)
    if old is not None:
        lm.model.set_submodule(path, resize_linear(module, W, _to_stored(lm, bias, weight)))
    else:
        lm.replace(_find_site(lm, path), Dense.from_weight(W), _to_stored(lm, bias, weight))


def check_foldable(lm: LanguageModel, path: str) -> None:
    """Raise UserError if a map cannot be multiplied into the format of the module at `path`."""
    module = lm.model.get_submodule(path)
    while isinstance(module, Format) and not isinstance(module, Constant):
        module = _output_factor(path, module)


def _output_factor(path: str, module: Format) -> nn.Module:
    """The output factor of a format, which T can be multiplied into."""
    child = {Dense: "linear", LowRank: "left", LowRankReader: "left"}.get(type(module))
    if child is None:
        raise UserError(
            f"A map cannot be multiplied into the layer '{path}', which is stored as '{module.kind}'; put shorten "
            "before the step that compresses it."
        )
    return module.get_submodule(child)


def _fold_into_factor(lm: LanguageModel, path: str, module: Format, T: Float[Tensor, "d d"]) -> None:
    """Multiply T into the output factor of a format."""
    if isinstance(module, Constant):
        return
    factor = _output_factor(path, module)
    name = next(f"{path}.{name}" for name, child in module.named_children() if child is factor)
    if isinstance(factor, Format):
        _fold_into_factor(lm, name, factor, T)
        return
    assert isinstance(factor, nn.Linear)
    W = _to_stored(lm, T @ factor.weight.double(), factor.weight)
    lm.model.set_submodule(name, resize_linear(factor, W, factor.bias))


def _find_site(lm: LanguageModel, path: str) -> Site:
    return next(site for site in lm.sites(("blocks",)) if site.name == path)


def _to_parameter(lm: LanguageModel, value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(_to_stored(lm, value, like), requires_grad=like.requires_grad)


def _to_stored(lm: LanguageModel, value: Tensor, like: Tensor) -> Tensor:
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    return value.to(lm.dtype).to(like.dtype)
