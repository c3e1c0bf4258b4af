"""A matrix with zeros: packed in a state dict, plain in memory, its zeros held while it is trained."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats import Dense, Format, Masked, Sparse, SparseEmbedding

OUT, IN = 6, 12
PATTERNS = (None, (2, 4), (1, 2))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def mask_of(pattern: tuple[int, int] | None, shape: tuple[int, int] = (OUT, IN)) -> Tensor:
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if pattern is None:
        return scores > 0.5
    groups = scores.view(-1, pattern[1])
    chosen = groups.topk(pattern[0], dim=1).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, chosen, True).view(shape)


def matrix(dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (OUT, IN)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def sparse(pattern: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32, bias: bool = True) -> Sparse:
    mask = mask_of(pattern)
    layer = Sparse.from_dense(torch.where(mask, matrix(dtype), 0), mask, pattern)
    layer.set_bias(torch.arange(OUT).to(dtype) if bias else None)
    return layer


def bits_of(tensor: Tensor) -> Tensor:
    """To compare what == takes for different (NaN) or for the same (0 and −0)."""
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_forward_is_the_product_with_the_zeros(pattern: tuple[int, int] | None) -> None:
    layer, x = sparse(pattern), torch.randn(2, 3, IN)
    W = torch.where(mask_of(pattern), matrix(), 0)
    torch.testing.assert_close(layer(x), x @ W.T + torch.arange(OUT))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ W.T + torch.arange(OUT))
    assert torch.equal(layer.dense(), W)
    assert layer.shape == (OUT, IN)
    assert layer.support is not None and torch.equal(layer.support, mask_of(pattern))
    assert layer.macs() == OUT * IN


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_nbytes_is_what_is_stored(pattern: tuple[int, int] | None, dtype: torch.dtype) -> None:
    for layer in (sparse(pattern, dtype, bias=False), sparse(pattern, dtype, bias=False).to_embedding(None)):
        stored = layer.state_dict()
        assert set(stored) == {"weight", "values", "bits"}
        assert stored["values"].dim() == 1
        assert layer.nbytes() == sum(tensor.nbytes for tensor in stored.values())
        kept, index = int(mask_of(pattern).sum()), {None: OUT * IN, (2, 4): OUT * IN // 4 * 3, (1, 2): OUT * IN // 2}
        assert layer.nbytes() == kept * dtype.itemsize + math.ceil(index[pattern] / 8)


def test_half_zeros_of_float32_are_53_percent_of_the_bytes() -> None:
    mask = mask_of((2, 4), (64, 128))
    weight = torch.where(mask, matrix(shape=(64, 128)), 0)
    assert Sparse.from_dense(weight, mask).nbytes() / weight.nbytes == pytest.approx(0.5 + 1 / 32)
    assert Sparse.from_dense(weight, mask, (2, 4)).nbytes() / weight.nbytes == pytest.approx(0.5 + 3 / 128)


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shell_of_its_spec_receives_the_tensors(
    pattern: tuple[int, int] | None, dtype: torch.dtype, lookup: bool
) -> None:
    layer: Format = sparse(pattern, dtype).to_embedding(1) if lookup else sparse(pattern, dtype)
    shell = type(layer).empty(**layer.spec()).to(dtype)
    assert isinstance(shell, Masked) and isinstance(layer, Masked) and shell.is_packed
    assert shell.spec() == layer.spec()
    assert shell.nbytes() == layer.nbytes()
    # As transformers does: every tensor is put in its place, then the layer is told.
    filled = copy.deepcopy(shell)
    for name, tensor in layer.state_dict().items():
        parent, _, last = name.rpartition(".")
        if last != "weight":
            setattr(filled.get_submodule(parent), last, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    filled.unpack()
    filled.unpack()
    shell.load_state_dict(layer.state_dict())
    for loaded in (filled, shell):
        assert not loaded.is_packed
        assert torch.equal(bits_of(loaded.dense()), bits_of(layer.dense()))
        assert torch.equal(loaded.support, layer.support)
        assert loaded.bias is layer.bias or torch.equal(loaded.bias, layer.bias)
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        assert set(loaded.state_dict()) == set(layer.state_dict())


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_masks_of_any_shape_come_back(rows: int, columns: int, sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) >= sparsity
    layer = Sparse.from_dense(torch.where(mask, torch.randn(rows, columns, generator=generator), 0), mask)
    shell = Sparse.empty(**layer.spec())
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell.dense(), layer.dense())
    assert torch.equal(shell.support, mask)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_nothing_or_everything_may_be_kept(keeps: bool, pattern: tuple[int, int] | None) -> None:
    mask = torch.full((OUT, IN), keeps)
    layer = Sparse.from_dense(torch.where(mask, matrix(), 0), mask, pattern)
    assert layer.pattern is None
    shell = Sparse.empty(**layer.spec())
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell.dense(), torch.where(mask, matrix(), 0))
    x = torch.randn(2, IN)
    assert torch.equal(shell(x), layer(x))


def test_what_equality_hides_survives() -> None:
    mask = mask_of(None)
    weight = torch.where(mask, matrix(), 0)
    places = mask.nonzero()[:4]
    for place, value in zip(places.tolist(), (math.nan, math.inf, -math.inf, -0.0), strict=True):
        weight[tuple(place)] = value
    # What was not kept is a plain zero, whatever it was.
    weight[tuple((~mask).nonzero()[0].tolist())] = -0.0
    weight[tuple((~mask).nonzero()[1].tolist())] = math.nan
    layer = Sparse.from_dense(weight, mask)
    shell = Sparse.empty(**layer.spec())
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(bits_of(shell.dense()[mask]), bits_of(weight[mask]))
    assert torch.equal(bits_of(shell.dense()[~mask]), bits_of(torch.zeros(int((~mask).sum()))))


def test_a_pattern_that_earlier_zeros_break_becomes_a_bitmask() -> None:
    mask = mask_of((2, 4))
    mask[0, mask[0].nonzero()[0]] = False
    layer = Sparse.from_dense(torch.where(mask, matrix(), 0), mask, (2, 4))
    assert layer.pattern is None
    assert "pattern" not in layer.spec()
    assert len(layer.state_dict()["bits"]) == OUT * IN // 8


@pytest.mark.parametrize("lookup", [False, True])
def test_zeros_are_held_while_it_is_trained(lookup: bool) -> None:
    layer = sparse().to_embedding(None) if lookup else sparse()
    assert isinstance(layer, (Sparse, SparseEmbedding))
    before = layer.dense().detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x = torch.randint(IN, (8,), generator=generator) if lookup else torch.randn(8, IN, generator=generator)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    mask = mask_of(None)
    assert torch.equal(bits_of(layer.dense().detach()[~mask]), bits_of(torch.zeros(int((~mask).sum()))))
    assert (layer.dense() != before)[mask].all()
    shell = type(layer).empty(**layer.spec())
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell.dense(), layer.dense())


def test_a_gradient_that_is_not_finite_leaves_the_zeros() -> None:
    layer = sparse()
    (layer(torch.full((1, IN), 1e30)) * 1e30).sum().backward()
    grad = layer.linear.get_parameter("weight").grad
    assert grad is not None
    assert not grad[mask_of(None)].isfinite().all()
    assert not grad[~mask_of(None)].any()


def test_training_resumes_from_packed_tensors() -> None:
    layer, other = sparse(), sparse()
    with torch.no_grad():
        other.linear.get_parameter("weight").mul_(2)
    weight = layer.linear.get_parameter("weight")
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.dense(), other.dense())
    # The optimizer's parameter is still the layer's.
    assert layer.linear.get_parameter("weight") is weight


@pytest.mark.parametrize("wrong", ["bits", "values"])
def test_tensors_that_do_not_fit_are_refused(wrong: str) -> None:
    layer = sparse()
    state = layer.state_dict()
    state[wrong] = state[wrong][:-1]
    with pytest.raises(RuntimeError, match=r"the mask (must have|keeps)"):
        sparse().load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"the mask (must have|keeps)"):
        Sparse.empty(**layer.spec()).load_state_dict(state)


def test_a_damaged_file_is_refused() -> None:
    layer = sparse()
    shell = Sparse.empty(**layer.spec())
    assert shell.bits is not None
    shell.bits.zero_()
    with pytest.raises(UserError, match="keeps 0 weights by its mask"):
        shell.unpack()


def test_a_damaged_pattern_is_refused() -> None:
    """Three bits of ones are 7; the combinations of 2:4 have the numbers 0 to 5."""
    layer = sparse((2, 4))
    shell = Sparse.empty(**layer.spec())
    assert shell.bits is not None
    shell.bits.fill_(255)
    with pytest.raises(UserError, match="a group that is no combination of 2 of 4: the file is damaged"):
        shell.unpack()
    with pytest.raises(UserError, match="a group that is no combination of 2 of 4"):
        sparse((2, 4)).load_state_dict({**layer.state_dict(), "bits": shell.bits})


def test_a_copy_is_packed_and_loaded_by_itself() -> None:
    layer = sparse()
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        with torch.no_grad():
            other.linear.weight.mul_(2)
        again = copy.deepcopy(other)
        again.load_state_dict(layer.state_dict())
        assert torch.equal(again.dense(), layer.dense())
        assert torch.equal(other.dense(), 2 * layer.dense())
        assert torch.equal(layer.dense(), sparse().dense())


def test_casting_keeps_mask_and_bytes() -> None:
    layer = sparse().half()
    assert layer.support is not None and layer.support.dtype == torch.bool
    assert layer.nbytes() == sparse(dtype=torch.float16).nbytes()
    assert layer.state_dict()["bits"].dtype == torch.uint8
    assert layer.weight.dtype == torch.float16


def test_it_compiles_in_one_piece() -> None:
    layer, x = sparse(), torch.randn(2, IN)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


def test_inside_another_model_the_names_are_the_whole_path() -> None:
    model, other = nn.Sequential(nn.Linear(3, IN), sparse()), nn.Sequential(nn.Linear(3, IN), sparse())
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.values", "1.bits", "1.linear.bias"}
    with torch.no_grad():
        model[1].linear.weight.mul_(2)
    assert not other.load_state_dict(model.state_dict()).missing_keys
    assert torch.equal(other[1].dense(), model[1].dense())


def test_lookup_is_the_transposed_matrix_row_by_row() -> None:
    table = sparse((2, 4), bias=False).to_embedding(padding_idx=2)
    tokens = torch.tensor([[0, 11], [3, 3]])
    W = torch.where(mask_of((2, 4)), matrix(), 0)
    assert torch.equal(table(tokens), W.T[tokens])
    assert table.shape == (OUT, IN)
    assert table.macs() == 0
    assert table.to_embedding(None) is table
    with pytest.raises(ValueError, match="no bias"):
        table.set_bias(torch.zeros(OUT))


def test_a_plain_matrix_with_a_bias_of_its_own() -> None:
    layer, x = Dense.from_weight(matrix()), torch.randn(2, IN)
    layer.set_bias(torch.arange(OUT).float())
    torch.testing.assert_close(layer(x), x @ matrix().T + torch.arange(OUT))
    assert layer.nbytes() == OUT * IN * 4
    assert layer.macs() == OUT * IN
    assert layer.support is None
    shell = Dense.empty(**layer.spec())
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell.dense(), matrix())
    with pytest.raises(ValueError, match="no bias"):
        layer.to_embedding(None)
