"""Matrices in int8: exact sums, rows apart from each other, and never a kernel that is wrong or slower."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from laconic.calibrate import LayerStats
from laconic.errors import UserError
from laconic.formats import DynamicInt8, PackedEmbedding, autotune
from laconic.formats import int8 as int8_format
from laconic.formats.autotune import Choice, KernelChoices, ProductShape
from laconic.formats.int8 import INT8, KERNELS, SAFE, Int8Matrix, WholeNumbers, int8_product, to_levels
from laconic.formats.kernels import DTYPES, Kernel, working_kernels
from laconic.methods import Int8

NOTHING = LayerStats([])


def int8(weight: torch.Tensor, support: torch.Tensor | None = None) -> DynamicInt8:
    return Int8().compress(weight, LayerStats([], support))


def always(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setattr("laconic.formats.packed.autotune", lambda family, rows, shape, dtype: Choice(kernel, 1.0))


def matrix(out: int = 48, width: int = 128) -> Int8Matrix:
    generator = torch.Generator().manual_seed(out)
    codes = torch.randint(-128, 128, (out, width), dtype=torch.int8, generator=generator)
    return Int8Matrix(codes, torch.randn(out, generator=generator) / 100)


def test_weights_are_off_by_about_half_a_step():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 20)[:, None]
    layer = int8(weight)
    step = layer.matrix.scale.abs()[:, None]
    steps_off = (layer.dense() - weight).abs() / step
    # With 128 steps to one side only, the largest of the other side is cut by one.
    assert steps_off.max() <= 1.1
    assert steps_off.square().mean() <= 1.1 / 12
    assert (step <= weight.abs().amax(1, keepdim=True) / 127 * 1.001).all()


@given(levels=st.sampled_from([127, 255]), size=st.floats(1e-6, 1e6), shift=st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_inputs_are_off_by_half_a_step_of_their_own_row(levels: int, size: float, shift: float):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) * size + shift
    x[2], x[3] = 0, shift
    q, low, step = to_levels(x, levels)
    assert q.min() >= 0
    assert q.max() <= levels * 1.00001
    assert ((low + step * q.round() - x).abs() <= step * 0.5001 + 1e-6 * x.abs().max()).all()
    assert torch.equal(low[2:4], x[2:4, :1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_is_let_run_computes_what_it_should(name: str, dtype: torch.dtype):
    m, x = matrix(), torch.randn(7, 128, generator=torch.Generator().manual_seed(2)).to(dtype)
    extreme = Int8Matrix(
        torch.where(torch.arange(48)[:, None] % 2 == 0, 127, -128).to(torch.int8).repeat(1, 128), m.scale
    )
    x[0], x[0, 0] = 1, 0
    if name not in working_kernels(INT8, extreme, x):
        pytest.skip(f"'{name}' gives no right sums on this processor, or nothing needs it to")
    kernel = KERNELS[name](m, dtype)
    bias = torch.ones(48, dtype=dtype)
    whole = isinstance(kernel, WholeNumbers)
    y = int8_product(x, *m, kernel.levels) if whole else linear(x.float(), m.dense(torch.float32))
    got = kernel(x, bias)
    assert got.dtype == dtype
    close = 1e-5 if dtype == torch.float32 and name != "weight-only" else 2e-2
    assert (got.float() - 1 - y.float()).norm() <= close * y.float().norm()
    assert kernel(x[:0], bias).shape == (0, 48)


def test_sums_that_overflow_are_found_out(monkeypatch: pytest.MonkeyPatch):
    class Saturating(WholeNumbers):
        def product(self, levels: torch.Tensor) -> torch.Tensor:
            pairs = levels.round()[:, None] * matrix_of["it"].codes
            return pairs.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1).sum(2) * matrix_of["it"].scale

    m = Int8Matrix(torch.full((8, 64), 127, dtype=torch.int8), torch.rand(8))
    x = torch.ones(2, 64)
    x[:, 0] = 0
    matrix_of = {"it": m}
    kernels = {"all": lambda m, dtype: Saturating(m, dtype, 255), "safe": lambda m, dtype: Saturating(m, dtype, SAFE)}
    monkeypatch.setattr(int8_format, "KERNELS", {**kernels, "dense": KERNELS["dense"]})
    assert list(working_kernels(INT8, m, x)) == ["safe", "dense"]


def test_fewer_levels_are_for_where_all_of_a_byte_overflow():
    codes = torch.randint(-128, 128, (16, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(5))
    names = set(working_kernels(INT8, Int8Matrix(codes // 2, torch.rand(16)), torch.rand(3, 64)))
    assert not {"onednn", "onednn, 7-bit inputs"} <= names


def test_a_kernel_that_this_processor_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    def lacking(m: Int8Matrix, dtype: torch.dtype) -> Kernel:
        raise RuntimeError("not built")

    monkeypatch.setattr(int8_format, "KERNELS", {"lacking": lacking, "dense": KERNELS["dense"]})
    assert list(working_kernels(INT8, matrix(), torch.randn(2, 128))) == ["dense"]


@pytest.mark.parametrize("offset", [0, 1, 8, 33])
@pytest.mark.parametrize("rows", [1, 3, 5, 16])
def test_what_lies_anywhere_in_memory_is_read_as_well(offset: int, rows: int):
    codes = torch.randint(-128, 128, (31 * 192 + 64,), dtype=torch.int8)[offset : offset + 31 * 192].view(31, 192)
    m = Int8Matrix(codes, torch.rand(31))
    x = torch.randn(rows * 192 + 64).bfloat16()[offset : offset + rows * 192].view(rows, 192)
    for name, kernel in working_kernels(INT8, m, x).items():
        y = kernel(x, None).float()
        expected = linear(x.float(), m.dense(torch.float32))
        assert (y - expected).norm() < 0.05 * expected.norm(), name


def test_rows_that_torch_would_read_unaligned_are_left_to_others():
    assert "weight-only" not in working_kernels(INT8, matrix(width=96), torch.randn(2, 96))


class Slow(Kernel):
    def __init__(self, m: Int8Matrix, dtype: torch.dtype) -> None:
        self._dense = KERNELS["dense"](m, dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        for _ in range(5):
            self._dense(x, bias)
        return self._dense(x, bias)


def test_what_is_slower_than_dense_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(int8_format, "KERNELS", {"slow": Slow, "dense": KERNELS["dense"]})
    assert autotune.choose_kernel(INT8, ProductShape(16, 512, 512, torch.float32)) == Choice("dense", 1.0)


def test_a_small_matrix_is_dense_without_a_measurement(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(autotune, "choose_kernel")
    assert autotune.autotune(INT8, 4, (64, 64), torch.float32) == Choice("dense", 1.0)


def test_between_two_numbers_of_rows_the_larger_stands():
    asked = [1, 2, 4, 5, 16, 17, 1024, 5000]
    assert [autotune.measured_rows(rows) for rows in asked] == [1, 4, 4, 16, 16, 64, 1024, 1024]


def test_an_answer_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        autotune, "choose_kernel", lambda family, question: asked.append(question) or Choice("onednn", 2.0)
    )
    question = ProductShape(16, 512, 256, torch.float32)
    first, second = KernelChoices(tmp_path / "t.json"), KernelChoices(tmp_path / "t.json")
    assert [table.lookup(INT8, question, {"threads": 1}) for table in (first, first, second)] == [
        Choice("onednn", 2.0)
    ] * 3
    assert asked == [question]
    stored = json.loads((tmp_path / "t.json").read_text())
    assert stored["kernels"] == {"int8 16x512x256 float32": {"kernel": "onednn", "speedup": 2.0}}
    (tmp_path / "t.json").write_text("{")
    assert KernelChoices(tmp_path / "t.json").lookup(INT8, question, {}) == Choice("onednn", 2.0)
    assert len(asked) == 2


def test_the_machine_is_told_by_its_instructions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(autotune, "short_numbers", lambda: ("avx512_vnni",))
    assert autotune.machine()["instructions"] == f"{torch.backends.cpu.get_cpu_capability()} avx512_vnni"


@pytest.mark.parametrize("name", KERNELS)
def test_rows_do_not_touch_each_other(name: str, monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, name)
    layer = int8(torch.randn(32, 64, generator=torch.Generator().manual_seed(3)))
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        alone = layer(x)
        spoilt = x.clone()
        spoilt[0, 1, 5], spoilt[1, 0] = float("nan"), 1e4
        y = layer(spoilt)
    assert alone.shape == (2, 3, 32)
    assert y[0, 1].isnan().all()
    for row in ((0, 0), (0, 2), (1, 1), (1, 2)):
        torch.testing.assert_close(y[row], alone[row])


def test_an_empty_batch_and_rows_of_zeros(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "onednn, 7-bit inputs")
    layer = int8(torch.randn(32, 64))
    layer.set_bias(torch.arange(32.0))
    with torch.inference_mode():
        assert layer(torch.zeros(0, 64)).shape == (0, 32)
        assert torch.equal(layer(torch.zeros(2, 64)), torch.arange(32.0).expand(2, 32))


def test_gradients_are_those_of_the_matrix():
    layer = int8(torch.randn(300, 300))
    layer.set_bias(torch.zeros(300))
    x = torch.randn(4, 300, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y.detach(), linear(x.detach(), layer.dense(), torch.zeros(300)))
    torch.testing.assert_close(x.grad, layer.dense().sum(0).expand(4, 300))
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.codes.grad is None


def test_zeros_stay_zero_and_only_the_others_are_stored():
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(5))
    support = torch.rand(24, 40, generator=torch.Generator().manual_seed(6)) > 0.5
    layer = int8(weight, support)
    assert not layer.dense()[~support].any()
    assert torch.equal(layer.support, support)
    assert layer.nbytes() == int(support.sum()) + 24 * 40 // 8 + 2 * 24
    assert layer.count == int(support.sum())
    torch.testing.assert_close(layer.decode_columns(torch.tensor([3, 0])), layer.dense()[:, [3, 0]])


def test_what_was_packed_follows_the_tensors(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "dense")
    first, second = int8(torch.randn(32, 64)), int8(torch.randn(32, 64))
    x = torch.randn(3, 64)
    with torch.no_grad():
        first(x)
        copied, pickled = copy.deepcopy(first), pickle.loads(pickle.dumps(first))
        first.load_state_dict(second.state_dict())
        torch.testing.assert_close(first(x), linear(x, second.dense()))
        assert torch.equal(copied(x), pickled(x))
        assert not torch.equal(copied(x), first(x))


def test_it_says_what_its_kernels_keep(monkeypatch: pytest.MonkeyPatch):
    sizes = {"dense": 4 * 32 * 128, "decoded": 0}
    for name, kept in sizes.items():
        always(monkeypatch, name)
        layer = int8(torch.randn(32, 128))
        assert (layer.kernel_nbytes, layer.kernel_names) == (0, {})
        with torch.inference_mode():
            layer(torch.randn(3, 128))
        assert (layer.kernel_nbytes, layer.kernel_names) == (kept, {4: name})


def test_half_precision_comes_out_as_it_went_in(monkeypatch: pytest.MonkeyPatch):
    always(monkeypatch, "onednn, 7-bit inputs")
    layer = int8(torch.randn(32, 64))
    layer.set_bias(torch.randn(32))
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(5, 64).to(dtype)
        with torch.inference_mode():
            y = layer.to(dtype)(x)
        assert y.dtype == layer.dense().dtype == dtype
        assert (y.float() - linear(x, layer.dense(), layer.bias).float()).norm() < 0.05 * y.float().norm()


def test_a_word_embedding_is_looked_up():
    layer = int8(torch.randn(16, 30))
    embedding = layer.to_embedding(padding_idx=0)
    assert isinstance(embedding, PackedEmbedding)
    torch.testing.assert_close(embedding(torch.tensor([[3, 7]])), layer.dense().T[torch.tensor([[3, 7]])])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_weights_that_no_scale_can_hold_are_refused(bad: float):
    weight = torch.randn(4, 8)
    weight[1, 2] = bad
    with pytest.raises(UserError, match="dynamic-int8 cannot quantize weights"):
        Int8().compress(weight, NOTHING)
