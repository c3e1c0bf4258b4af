"""Matrices of few bits on the kernel that reads codes as they are: which have it, that it is right, what it keeps."""

import copy
import pickle
from time import thread_time

import pytest
import torch
from torch.nn.functional import linear

from laconic.formats import Quantized, autotune, int4_kernels
from laconic.formats.autotune import Choice, ProductShape
from laconic.formats.code_matrix import CodeMatrix
from laconic.formats.int4_kernels import KERNELS, MAX_ROWS, Int4Family, WeightOnly4, torch_group_size
from laconic.formats.kernels import DTYPES, DenseKernel, Kernel, working_kernels
from laconic.numerics.grid import GridSpec, fit_grid, quantize

NAME = "weight-only"


def quantized(out: int = 48, width: int = 256, bits: int = 4, group: int | None = 64, symmetric: bool = False):
    """A layer of codes whose weights lie to one side, so that the zero points are far from the middle."""
    W = torch.randn(out, width, generator=torch.Generator().manual_seed(out)) + 0.7
    grid = fit_grid(W, GridSpec(bits, group, symmetric))
    return Quantized.from_codes(quantize(W, grid), grid, symmetric)


def inputs(rows: int, width: int = 256) -> torch.Tensor:
    """Random inputs of mean one, so that an error that all weights of a group share adds up."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) + 1


def always(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setattr("laconic.formats.packed.autotune", lambda family, rows, shape, dtype: Choice(kernel, 1.0))


def apart(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.float() - expected).norm() / expected.norm()).item()


def test_a_matrix_is_decoded_in_tiles_to_other_dtypes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("laconic.formats.code_matrix.TILE", 256 * 16)
    for bits in (3, 4):
        layer = quantized(50, 256, bits)
        layer.scale_columns(torch.logspace(-1, 1, 256))
        exact = layer.dense()
        assert torch.equal(exact, layer.decode(layer.unpack_codes(), None))
        assert torch.equal(layer.bfloat16().dense(), exact.bfloat16())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    ("out", "width", "group"),
    [(48, 256, 64), (16, 256, 32), (50, 256, 256), (7, 384, 128), (32, 352, 64), (20, 96, None), (33, 1408, 1408)],
)
def test_products_are_those_of_the_matrix(
    out: int, width: int, group: int | None, bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
):
    always(monkeypatch, NAME)
    layer = quantized(out, width, bits, group, symmetric).bfloat16()
    for rows in (1, 2, 5, 33, MAX_ROWS):
        x = inputs(rows, width).bfloat16()
        with torch.inference_mode():
            y = layer(x)
        assert y.is_contiguous()
        assert apart(y, linear(x.float(), layer.float().dense())) < 1e-2
        layer.bfloat16()
    assert set(layer.kernel_names.values()) == {NAME}


def test_the_kernel_for_bfloat16_is_not_for_other_inputs():
    layer = quantized()
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(RuntimeError, match="bfloat16"):
            WeightOnly4(layer.matrix, dtype)
    with pytest.raises(RuntimeError, match="bfloat16"):
        WeightOnly4(quantized(bits=5).matrix, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_columns_may_have_scales_too_large_for_the_inputs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, NAME)
    layer = quantized().to(dtype)
    layer.scale_columns(torch.logspace(-3, 3, 256))
    layer.set_bias(torch.ones(48, dtype=dtype))
    x = (inputs(3) * torch.logspace(3, -3, 256)).to(dtype)
    with torch.inference_mode():
        y = layer(x.view(1, 3, 256))[0]
    assert y.dtype == dtype
    assert y.shape == (3, 48)
    assert apart(y - 1, linear(x.float(), layer.float().dense())) < 2e-2


def test_up_to_three_bits_and_symmetric_only_the_scales_are_rounded():
    for bits, symmetric in ((4, True), (3, False), (2, False)):
        layer = quantized(bits=bits, symmetric=symmetric)
        codes, scales = int4_kernels.to_torch_layout(layer.matrix, 64)
        assert not scales[..., 1].any()
        assert codes.min() >= 0
        assert codes.max() <= 15
        exact = layer.grid.scale.bfloat16().float().T
        assert torch.equal(scales[..., 0], exact)


def test_groups_that_no_group_of_torchs_divides_are_refused():
    assert [
        torch_group_size(*asked) for asked in ((64, 256), (48, 96), (256, 1408), (None, 96), (512, 1024), (128, 100))
    ] == [
        64,
        None,
        128,
        32,
        256,
        None,
    ]
    with pytest.raises(RuntimeError, match="no multiple of 32"):
        WeightOnly4(quantized(group=8).matrix, torch.bfloat16)


def test_pruned_matrices_are_decoded():
    W = torch.randn(32, 64)
    grid = fit_grid(W, GridSpec(4, 32))
    assert Quantized.from_codes(quantize(W, grid), grid, False, mask=W > 0).kernel_family is None
    assert Quantized.from_codes(quantize(W, grid), grid, False).kernel_family is not None


def test_many_rows_and_gradients_get_the_exact_matrix(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "bags")
    layer, x = quantized(), inputs(MAX_ROWS + 1)
    with torch.no_grad():
        assert torch.equal(layer(x), linear(x, layer.dense()))
    few = inputs(3).requires_grad_()
    assert torch.equal(layer(few), linear(few, layer.dense()))
    layer(few).sum().backward()
    assert few.grad is not None
    # Of 48 · 4 groups the scales and zero points are kept, and nothing of the products with gradients.
    assert (layer.kernel_names, layer.kernel_nbytes) == ({256: "decoded"}, 48 * 4 * 8)


def test_a_compiler_sees_plain_products(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, NAME)
    # Not compiled really, for the checks of shapes that tests add cannot be.
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    layer, x = quantized(), inputs(3)
    with torch.no_grad():
        assert torch.equal(layer(x), linear(x, layer.dense()))
    assert layer.kernel_names == {}


def test_it_says_what_it_keeps(monkeypatch: pytest.MonkeyPatch):
    bags = (256 + 4) * (48 // 2 + 4) + 48 * 4 * 4
    for name, kept in (("decoded", 48 * 4 * 8), (NAME, 48 * 256 // 2 + 48 * 4 * 2 * 2), ("bags", bags)):
        always(monkeypatch, name)
        layer = quantized().bfloat16()
        before, nbytes = layer.dense(), layer.nbytes()
        with torch.inference_mode():
            layer(inputs(3).bfloat16())
        assert (layer.kernel_nbytes, layer.kernel_names) == (kept, {4: name})
        assert torch.equal(layer.dense(), before)
        assert layer.nbytes() == nbytes


def test_what_was_packed_follows_the_tensors(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "bags")
    layer, x = quantized(), inputs(3)
    with torch.no_grad():
        layer(x)
        copied, pickled = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
        other = Quantized.from_codes(15 - quantize(layer.dense(), layer.grid), layer.grid, False)
        layer.load_state_dict(other.state_dict())
        assert apart(layer(x), linear(x, other.dense())) < 5e-3
        assert torch.equal(copied(x), pickled(x))
        assert apart(copied(x), linear(x, other.dense())) > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_let_run_is_right_and_what_is_wrong_is_not(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    family = Int4Family(4, 32, False)
    matrix = family.example((40, 96), torch.Generator().manual_seed(0))
    x = inputs(20, 96).to(dtype)
    assert ("weight-only" in working_kernels(family, matrix, x)) == (dtype is torch.bfloat16)
    assert next(iter(working_kernels(family, matrix, x))) == "decoded"

    class Swapped(WeightOnly4):
        """As if torch read the two codes of a byte in the other order."""

        def __init__(self, packed: CodeMatrix) -> None:
            super().__init__(packed, torch.bfloat16)
            self._codes = (self._codes >> 4) | (self._codes << 4)

    monkeypatch.setattr(int4_kernels, "KERNELS", {**KERNELS, "swapped": lambda m, _: Swapped(m)})
    assert "swapped" not in working_kernels(family, matrix, x)


class Slow(Kernel):
    def __init__(self, weight: torch.Tensor) -> None:
        self._dense = DenseKernel(weight)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        for _ in range(200):
            self._dense(x, bias)
        return self._dense(x, bias)


def test_never_slower_than_decoding_and_never_dense(monkeypatch: pytest.MonkeyPatch):
    slow = {"decoded": KERNELS["decoded"], NAME: lambda m, dtype: Slow(m.dense(dtype))}
    monkeypatch.setattr(int4_kernels, "KERNELS", slow)
    choice = autotune.choose_kernel(Int4Family(4, 64, True), ProductShape(4, 256, 256, torch.float32))
    assert choice.kernel == "decoded"
    # The dense layer is timed, and far faster.
    assert choice.speedup < 1
    assert "dense" not in KERNELS


def work(seconds: float) -> None:
    start = thread_time()
    while thread_time() - start < seconds:
        pass


class Disturbed(Kernel):
    """Twice as fast as decoding but for the first calls, in which the machine was busy with something else."""

    def __init__(self, calls: list[int]) -> None:
        self._calls = calls

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        self._calls.append(len(x))
        work(0.01 if len(self._calls) <= 2 else 0.005)
        return x


class Steady(Kernel):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        work(self._seconds)
        return x


def test_a_dense_layer_that_cannot_be_chosen_rules_nothing_out():
    kernels = {"decoded": Steady(0.01), NAME: Disturbed([]), "dense": Steady(0.001)}
    times = autotune.least_seconds(kernels, inputs(100), torch.zeros(1), KERNELS)
    assert times["dense"] < times[NAME] < 0.8 * times["decoded"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_example_is_a_matrix_of_its_family(bits: int):
    for group, symmetric in ((32, False), (None, True), (100, False)):
        matrix = Int4Family(bits, group, symmetric).example((7, 97), torch.Generator().manual_seed(0))
        assert matrix.unpacked_codes.int().max() < 2**bits
        assert matrix.dense(torch.float32).isfinite().all()


def test_kinds_of_grids_are_measured_apart():
    layers = [quantized(bits=bits, group=group) for bits in (3, 4) for group in (32, 64, None)]
    families = [layer.kernel_family for layer in (*layers, quantized(symmetric=True))]
    assert len({family.name for family in families if family is not None}) == 7


def test_small_matrices_are_decoded_unmeasured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(autotune, "choose_kernel")
    layer, x = quantized(), inputs(2)
    with torch.no_grad():
        assert torch.equal(layer(x), linear(x, layer.dense()))
    assert layer.kernel_names == {4: "decoded"}
