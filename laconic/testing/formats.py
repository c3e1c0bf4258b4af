"""Checks for a format: its forward pass, its size in bytes, saving and loading."""

import copy
import json
from collections.abc import Callable

import torch
from torch import nn

from laconic.formats import Format


def expect(condition: bool, sentence: str) -> None:
    """Raise AssertionError with `sentence` if the condition is false, also if Python runs with -O."""
    if not condition:
        raise AssertionError(sentence)


def check_format(layer: Format) -> None:
    """Check that a layer satisfies the requirements of `laconic.formats.Format`.

    It calls every function of `FORMAT_CHECKS`; their docstrings state the requirements.

    Args:
        layer: a linear layer with weights, not an embedding.

    Raises:
        AssertionError: a requirement is not met.

    Example:
        >>> from laconic.formats import LowRank
        >>> check_format(LowRank.from_factors(torch.ones(6, 2), torch.ones(2, 8)))
    """
    for check in FORMAT_CHECKS:
        check(layer)


def check_forward(layer: Format) -> None:
    """`forward` computes x W^T + b, with W from `dense`."""
    x = torch.randn(3, layer.shape[1], generator=torch.Generator().manual_seed(0)).to(layer.dense().dtype)
    with torch.no_grad():
        found = layer(x)
        plain = nn.functional.linear(x, layer.dense(), layer.bias)
    expect(torch.allclose(found.float(), plain.float(), atol=1e-2 if x.dtype == torch.float16 else 1e-4),
           f"'{layer.kind}' multiplies by another matrix than its dense()")  # fmt: skip


def check_shape(layer: Format) -> None:
    """The shape of `dense` is `shape`, (out, in)."""
    expect(
        tuple(layer.dense().shape) == layer.shape, f"'{layer.kind}' has the shape {layer.shape}, and its matrix another"
    )


def check_spec(layer: Format) -> None:
    """A layer made by `empty(**spec)`, with the spec read from JSON, loads the state dict and has the same matrix."""
    rebuilt = _rebuilt(layer).to(layer.dense().dtype)
    rebuilt.load_state_dict(copy.deepcopy(layer.state_dict()))
    rebuilt.unpack()
    expect(rebuilt.spec() == layer.spec(), f"'{layer.kind}' built from its spec has another: {rebuilt.spec()}")
    expect(torch.equal(rebuilt.dense(), layer.dense()), f"'{layer.kind}' built from its spec has another matrix")


def _rebuilt(layer: Format) -> Format:
    """A layer with the same specification and without weights, its inner formats included."""
    rebuilt = type(layer).empty(**json.loads(json.dumps(layer.spec())))
    for name, child in layer.named_children():
        if isinstance(child, Format):
            setattr(rebuilt, name, _rebuilt(child))
    if (rebuilt.bias is None) != (layer.bias is None):
        rebuilt.set_bias(layer.bias)
    return rebuilt


def check_nbytes(layer: Format) -> None:
    """`nbytes`, and `nbytes_in` for its own dtype, are the bytes of its tensors without the bias."""
    bias = 0 if layer.bias is None else layer.bias.nbytes
    stored = sum(tensor.nbytes for tensor in layer.state_dict().values()) - bias
    expect(layer.nbytes() == stored, f"nbytes of '{layer.kind}' is {layer.nbytes()}, and it stores {stored} bytes")
    cast = layer.nbytes_in(layer.dense().dtype)
    expect(cast == stored, f"nbytes_in of '{layer.kind}' is {cast} for its own dtype, and it stores {stored} bytes")


def check_weight_is_empty(layer: Format) -> None:
    """Its tensor `weight` is empty, so that loading the checkpoint without laconic fails."""
    expect(layer.weight.numel() == 0, f"the tensor 'weight' of '{layer.kind}' must be empty")


def check_set_bias(layer: Format) -> None:
    """`set_bias` copies a bias, and None removes it."""
    other, bias = copy.deepcopy(layer), torch.arange(float(layer.shape[0])).to(layer.dense().dtype)
    other.set_bias(bias)
    expect(
        other.bias is not None and torch.equal(other.bias.detach(), bias),
        f"set_bias of '{layer.kind}' does not set the bias",
    )
    expect(other.nbytes() == layer.nbytes(), f"'{layer.kind}' counts its bias among its bytes")
    other.set_bias(None)
    expect(other.bias is None, f"set_bias(None) of '{layer.kind}' does not remove the bias")


def check_support(layer: Format) -> None:
    """The matrix is zero at positions where `support` is False."""
    if layer.support is not None:
        expect(not layer.dense()[~layer.support].any(), f"'{layer.kind}' has nonzero weights outside of its support")


FORMAT_CHECKS: tuple[Callable[[Format], None], ...] = (
    check_shape,
    check_forward,
    check_spec,
    check_nbytes,
    check_weight_is_empty,
    check_set_bias,
    check_support,
)
"""The functions that `check_format` calls, in this order; a test can be parametrized over them."""
