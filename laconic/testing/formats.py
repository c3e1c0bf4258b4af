"""The contract of a format: what laconic relies on whenever a compressed layer runs, is weighed, saved or loaded."""

import copy
import json
from collections.abc import Callable

import torch
from torch import nn

from laconic.formats import Format


def expect(condition: bool, sentence: str) -> None:
    """Raise AssertionError with `sentence` unless the condition holds; also where Python runs with -O."""
    if not condition:
        raise AssertionError(sentence)


def check_format(layer: Format) -> None:
    """Check that a format keeps the contract of `laconic.formats.Format`.

    Every function of `FORMAT_CHECKS` is called; their docstrings say what each holds.

    Args:
        layer: a layer with numbers, not a word embedding.

    Raises:
        AssertionError: something does not hold.

    Example:
        >>> from laconic.formats import LowRank
        >>> check_format(LowRank.from_factors(torch.ones(6, 2), torch.ones(2, 8)))
    """
    for check in FORMAT_CHECKS:
        check(layer)


def multiplies_by_its_matrix(layer: Format) -> None:
    """`forward` is x W^T + b, with W from `dense`."""
    x = torch.randn(3, layer.shape[1], generator=torch.Generator().manual_seed(0)).to(layer.dense().dtype)
    with torch.no_grad():
        found = layer(x)
        plain = nn.functional.linear(x, layer.dense(), layer.bias)
    expect(torch.allclose(found.float(), plain.float(), atol=1e-2 if x.dtype == torch.float16 else 1e-4),
           f"'{layer.kind}' multiplies by another matrix than its dense()")  # fmt: skip


def has_its_shape(layer: Format) -> None:
    """`dense` has the shape (out, in) that `shape` tells."""
    expect(tuple(layer.dense().shape) == layer.shape, f"'{layer.kind}' tells {layer.shape}, and its matrix is another")


def is_built_from_its_spec(layer: Format) -> None:
    """`empty(**spec)`, with the spec read from JSON, takes the state dict and computes the same."""
    again = _rebuilt(layer).to(layer.dense().dtype)
    again.load_state_dict(copy.deepcopy(layer.state_dict()))
    again.unpack()
    expect(again.spec() == layer.spec(), f"'{layer.kind}' built from its spec has another: {again.spec()}")
    expect(torch.equal(again.dense(), layer.dense()), f"'{layer.kind}' built from its spec has another matrix")


def _rebuilt(layer: Format) -> Format:
    """A format of the same specification without its numbers, and so those within it."""
    again = type(layer).empty(**json.loads(json.dumps(layer.spec())))
    for name, child in layer.named_children():
        if isinstance(child, Format):
            setattr(again, name, _rebuilt(child))
    if (again.bias is None) != (layer.bias is None):
        again.set_bias(layer.bias)
    return again


def weighs_what_it_stores(layer: Format) -> None:
    """`nbytes` are those of its tensors without the bias, and `nbytes_in` of its dtype says the same."""
    bias = 0 if layer.bias is None else layer.bias.nbytes
    stored = sum(tensor.nbytes for tensor in layer.state_dict().values()) - bias
    expect(layer.nbytes() == stored, f"'{layer.kind}' tells {layer.nbytes()} bytes and stores {stored}")
    cast = layer.nbytes_in(layer.dense().dtype)
    expect(cast == stored, f"'{layer.kind}' tells {cast} bytes in its own dtype and stores {stored}")


def leaves_a_sign(layer: Format) -> None:
    """Its tensor `weight` is empty, so that a program without laconic refuses the checkpoint."""
    expect(layer.weight.numel() == 0, f"'{layer.kind}' has numbers in 'weight', which must be empty")


def takes_a_bias(layer: Format) -> None:
    """`set_bias` copies a bias, and None removes it."""
    other, bias = copy.deepcopy(layer), torch.arange(float(layer.shape[0])).to(layer.dense().dtype)
    other.set_bias(bias)
    expect(other.bias is not None and torch.equal(other.bias.detach(), bias), f"'{layer.kind}' takes no bias")
    expect(other.nbytes() == layer.nbytes(), f"'{layer.kind}' counts its bias among its bytes")
    other.set_bias(None)
    expect(other.bias is None, f"'{layer.kind}' does not let go of its bias")


def keeps_its_zeros(layer: Format) -> None:
    """Where `support` is False, the matrix is zero."""
    if layer.support is not None:
        expect(not layer.dense()[~layer.support].any(), f"'{layer.kind}' has numbers outside of its support")


FORMAT_CHECKS: tuple[Callable[[Format], None], ...] = (
    has_its_shape,
    multiplies_by_its_matrix,
    is_built_from_its_spec,
    weighs_what_it_stores,
    leaves_a_sign,
    takes_a_bias,
    keeps_its_zeros,
)
"""What `check_format` calls, in this order; a test can be parametrized over them."""
