"""Products with decoded matrices: either library gives the sums of torch's linear layer."""

import pytest
import torch
from torch.nn.functional import linear

from laconic.formats import products
from laconic.formats.autotune import ProductShape, time_kernels
from laconic.formats.products import DenseFamily, multiply
from tests.formats.test_int4 import apart, inputs, quantized


def called(monkeypatch: pytest.MonkeyPatch, fastest: str) -> list[int]:
    """The numbers of weights that oneDNN multiplies by, where `fastest` is measured to be faster."""
    sizes: list[int] = []

    def onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        sizes.append(weight.numel())
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    monkeypatch.setattr(products, "_fastest", lambda threads: fastest)
    monkeypatch.setattr(products, "onednn_linear", onednn)
    return sizes


@pytest.mark.parametrize("fastest", ["dense", "onednn"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_a_linear_layer(fastest: str, has_bias: bool, monkeypatch: pytest.MonkeyPatch):
    sizes = called(monkeypatch, fastest)
    weight, x = inputs(256, 320), inputs(40, 320).view(2, 20, 320)
    bias = inputs(1, 256)[0] if has_bias else None
    with torch.no_grad():
        y = multiply(x, weight, bias)
    assert y.shape == (2, 20, 256)
    assert apart(y, linear(x.double(), weight.double(), None if bias is None else bias.double()).float()) < 1e-6
    assert sizes == ([256 * 320] if fastest == "onednn" else [])


def test_few_rows_small_matrices_other_dtypes_and_gradients_are_torchs(monkeypatch: pytest.MonkeyPatch):
    sizes = called(monkeypatch, "onednn")
    weight = inputs(256, 320)
    with torch.no_grad():
        assert torch.equal(multiply(inputs(2, 320), weight, None), linear(inputs(2, 320), weight))
        assert torch.equal(multiply(inputs(64, 320), weight[:9], None), linear(inputs(64, 320), weight[:9]))
        multiply(inputs(64, 320).bfloat16(), weight.bfloat16(), None)
    x = inputs(64, 320).requires_grad_()
    multiply(x, weight, None).sum().backward()
    assert sizes == []
    assert x.grad is not None


def test_a_layer_multiplies_many_rows_by_its_decoded_matrix(monkeypatch: pytest.MonkeyPatch):
    sizes = called(monkeypatch, "onednn")
    layer, x = quantized(256, 320), inputs(100, 320)
    with torch.no_grad():
        assert apart(layer(x), linear(x, layer.dense())) < 1e-6
    assert sizes == [256 * 320]


def test_both_libraries_are_measured():
    times = time_kernels(DenseFamily(), ProductShape(64, 256, 256, torch.float32))
    assert times.keys() == {"dense", "onednn"}
    assert all(seconds > 0 for seconds in times.values())
