"""Blocks of llama.cpp as a layer: storage, decoded matrix, conversion."""

import io

import pytest
import torch
from torch import Tensor, nn

from laconic.calibrate import LayerStats
from laconic.formats import GgmlBlocks
from laconic.formats.expert_stacks import stack_formats
from laconic.methods import Rtn
from laconic.methods.quantize.blocks import BlockGridName
from laconic.numerics.ggml_blocks import decode_blocks
from laconic.recover.trainable import StraightThrough
from tests.matrices import case

OUT, IN = 6, 512
GRIDS: tuple[BlockGridName, ...] = ("q4_0", "q5_1", "q2_k", "q3_k", "q4_k", "q6_k")
every_grid = pytest.mark.parametrize("grid", GRIDS)


def weight() -> Tensor:
    return case("blocks", (OUT, IN)).weight.float()


def layer_of(grid: BlockGridName) -> GgmlBlocks:
    layer = Rtn(grid=grid).compress(weight(), LayerStats())
    assert isinstance(layer, GgmlBlocks)
    return layer


@every_grid
def test_its_matrix_is_what_llama_cpp_reads_from_its_bytes(grid: BlockGridName) -> None:
    layer = layer_of(grid)
    assert torch.equal(layer.dense(), decode_blocks(layer.row_bytes, layer.blocks))
    assert layer.nbytes() == layer.row_bytes.numel() == OUT * layer.blocks.row_nbytes(IN)
    assert (layer.dense() - weight()).norm() < 0.4 * weight().norm()
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(0))
    layer.set_bias(torch.arange(OUT).float())
    torch.testing.assert_close(layer(x), x @ layer.dense().T + torch.arange(OUT))


@every_grid
def test_it_comes_back_from_its_tensors_and_its_spec(grid: BlockGridName) -> None:
    layer = layer_of(grid).half()
    layer.set_bias(torch.randn(OUT).half())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    shell = GgmlBlocks.empty(**layer.spec()).half()
    shell.load_state_dict(torch.load(file))
    assert torch.equal(shell.codes, layer.codes)
    assert torch.equal(shell.dense(), layer.dense()) and shell.dense().dtype == torch.float16


@every_grid
def test_nearest_codes_are_its_own_for_its_own_matrix(grid: BlockGridName) -> None:
    layer = layer_of(grid)
    before, dense = layer.codes.clone(), layer.dense()
    torch.testing.assert_close(layer.nearest(dense), dense)
    layer.requantize(dense)
    torch.testing.assert_close(layer.dense(), dense)
    layer.requantize(weight())
    assert (layer.dense() - weight()).norm() < 0.4 * weight().norm()
    assert layer.codes.shape == before.shape


def test_it_is_trained_straight_through() -> None:
    layer = layer_of("q4_k")
    trained = StraightThrough(layer)
    trained(torch.ones(2, IN)).sum().backward()
    assert trained.free.grad is not None and trained.free.grad.any()
    with torch.no_grad():
        trained.free.add_(0.1 * trained.free.abs().max())
    before = layer.codes.clone()
    assert not torch.equal(trained.settle().codes, before)


@every_grid
def test_a_refit_of_scales_comes_nearer_and_keeps_codes(grid: BlockGridName) -> None:
    layer = layer_of(grid)
    codes, nbytes, moment = layer.unpack_codes(), layer.nbytes(), torch.eye(IN)
    target = 1.1 * layer.dense()
    before = (layer.dense() - target).square().sum()
    layer.refit(target, moment)
    # Minima do not change, so that most of the error may stay where there are some.
    assert (layer.dense() - target).square().sum() < (0.99 if layer.blocks.has_minimum else 0.01) * before
    assert torch.equal(layer.unpack_codes(), codes) and layer.nbytes() == nbytes


def test_experts_are_stacked() -> None:
    layers = [layer_of("q4_k"), layer_of("q4_k")]
    layers[1].requantize(-weight())
    stack = stack_formats(iter(layers), experts=2)
    assert stack.kind == "ggml-blocks-experts" and stack.nbytes() == 2 * layers[0].nbytes()
    for index, layer in enumerate(layers):
        slice = stack.slice(index)
        assert isinstance(slice, GgmlBlocks)
        assert torch.equal(slice.dense(), layer.dense())


def test_as_a_word_embedding_its_rows_are_tokens() -> None:
    layer = layer_of("q4_k")
    table = layer.to_embedding(2)
    assert (table.shape, table.padding_idx, table.nbytes()) == ((IN, OUT), 2, layer.nbytes())
    tokens = torch.tensor([[1, 0], [3, 1]])
    assert torch.equal(table(tokens), layer.dense()[tokens]) and torch.equal(table.dense(), layer.dense().T)
    assert table.spec() == {"padding_idx": 2, "by_rows": True}
    with pytest.raises(ValueError, match="blocks are decoded as a whole"):
        layer_of("q4_0").decode(torch.zeros(OUT, 1, dtype=torch.uint8), torch.tensor([0]))


def test_a_plain_linear_has_the_same_outputs() -> None:
    layer = layer_of("q6_k")
    plain = nn.Linear(IN, OUT, bias=False)
    plain.weight = nn.Parameter(layer.dense())
    x = torch.ones(1, IN)
    torch.testing.assert_close(layer(x), plain(x))
