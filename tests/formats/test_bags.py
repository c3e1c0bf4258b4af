"""Products of codes and few rows by torch's embedding bags: exact sums, by packed codes or a byte for each of them."""

import pytest
import torch
from torch.nn.functional import linear

from laconic.formats.bags import BagKernel, byte_bags
from laconic.formats.int4_kernels import KERNELS, MAX_ROWS, Int4Family
from laconic.formats.kernels import working_kernels
from tests.formats.test_int4 import always, apart, inputs, quantized


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("out", "width", "group"), [(48, 256, 64), (7, 384, 128), (33, 100, None), (5, 100, 48), (768, 100, 48)]
)
def test_bags_compute_the_products_of_the_decoded_matrix(
    out: int, width: int, group: int | None, bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
):
    """The last of three groups of 48 columns has four; 768 outputs are two blocks."""
    always(monkeypatch, "bags")
    layer = quantized(out, width, bits, group, symmetric)
    layer.scale_columns(torch.logspace(-1, 1, width))
    layer.set_bias(torch.arange(float(out)))
    for rows in (1, 2, 5, MAX_ROWS):
        x = inputs(rows, width)
        with torch.inference_mode():
            y = layer(x.view(1, rows, width))[0]
        assert apart(y, linear(x.double(), layer.dense().double(), torch.arange(out).double()).float()) < 1e-6
    assert set(layer.kernel_names.values()) == {"bags"}
    codes = {2: 2, 3: 4, 4: 4}.get(bits, 8)
    assert layer.kernel_nbytes >= width * out * codes // 8


def test_bags_take_every_second_number_of_a_row(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "bags")
    layer, x = quantized(), inputs(1, 512)[:, ::2]
    with torch.inference_mode():
        assert apart(layer(x), linear(x, layer.dense())) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bags_round_only_the_result(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "bags")
    layer, x = quantized().to(dtype), inputs(3).to(dtype)
    with torch.inference_mode():
        y = layer(x)
    assert torch.equal(y, linear(x.double(), layer.float().dense().double()).to(dtype))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), [(48, 256, 64), (33, 100, None), (768, 100, 48)])
def test_bytes_give_the_products_of_the_decoded_matrix(
    out: int, width: int, group: int | None, bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
):
    always(monkeypatch, "byte-bags")
    layer = quantized(out, width, bits, group, symmetric)
    layer.scale_columns(torch.logspace(-1, 1, width))
    for rows in (1, 5):
        x = inputs(rows, width)
        with torch.inference_mode():
            assert apart(layer(x), linear(x.double(), layer.dense().double()).float()) < 1e-6
    assert set(layer.kernel_names.values()) == {"byte-bags"}
    assert layer.kernel_nbytes >= width * out


def test_zero_points_take_no_memory_where_the_differences_fit():
    """Weights that lie to one side have zero points far from the middle; 3 bits and bytes hold every difference."""
    columns, blocks = 256, 48 * 4 * 4
    for bits, symmetric, groups in ((4, False, 4), (4, True, 0), (3, False, 0)):
        kernel = BagKernel(quantized(bits=bits, symmetric=symmetric).matrix)
        assert kernel.nbytes == (columns + groups) * (48 // 2 + 4) + blocks
    assert byte_bags(quantized().matrix, torch.float32).nbytes == columns * (48 + 8) + blocks


def test_bytes_are_for_packed_codes_and_float32():
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(RuntimeError, match="float32"):
            byte_bags(quantized().matrix, dtype)
    with pytest.raises(RuntimeError, match="4 bits; got"):
        byte_bags(quantized(bits=5).matrix, torch.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_all_kernels_for_float32_are_tried(bits: int):
    family = Int4Family(bits, 32, False)
    matrix = family.example((64, 96), torch.Generator().manual_seed(0))
    packed = {"byte-bags"} if bits <= 4 else set()
    assert working_kernels(family, matrix, inputs(20, 96)).keys() == {"decoded", "bags"} | packed
    assert KERNELS.keys() == {"decoded", "bags", "byte-bags", "weight-only"}


def test_the_decoder_that_a_layer_keeps_follows_its_tensors(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "decoded")
    layer, x = quantized(), inputs(100)
    with torch.no_grad():
        assert torch.equal(layer(x), linear(x, layer.dense()))
        layer.scales.copy_(layer.scales.flip(0).view(-1, 2).flip(1).reshape(-1))
        assert torch.equal(layer(x), linear(x, layer.dense()))
        layer.requantize(-layer.dense())
        assert torch.equal(layer(x), linear(x, layer.dense()))
    layer.drop_kernels()
    assert layer.kernel_nbytes == 0
