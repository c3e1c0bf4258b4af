"""The product by oneDNN is the product, for every layout of the matrices."""

from types import SimpleNamespace

import pytest
import torch

from laconic.numerics import products
from laconic.numerics.products import product


@pytest.fixture(params=["this processor", "AVX-512", "without the operator"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor of this machine; or one on which oneDNN is used, with and without the operator in torch."""
    if request.param == "this processor":
        return
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    if request.param == "without the operator":
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
        assert products._onednn_linear() is None
    else:
        assert products._onednn_linear() is not None


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_it_is_the_product(dtype: torch.dtype, transposed: tuple[bool, bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, dtype=dtype, generator=generator) for shape in ((5, 33), (33, 17)))
    A, B = (X.T.contiguous().T if turn else X for X, turn in zip((A, B), transposed, strict=True))
    expected = A.double() @ B.double()
    found = product(A, B)
    assert found.dtype is dtype and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 1e-12)
