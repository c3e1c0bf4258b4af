"""The option `grid`: matrices that are rounded to the values of llama.cpp's blocks, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from laconic.calibrate import Calibration, InputCovariance, LayerStats
from laconic.calibrate.batching import batches
from laconic.calibrate.collect_stats import collect_stats
from laconic.calibrate.sources import read
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.formats import GgmlBlocks, Quantized
from laconic.methods import Gptq, Plus, Rtn, Svd, Yaqa
from laconic.methods.quantize.blocks import BlockGridName, BlockQuantization
from laconic.methods.registry import parse_method, to_config
from laconic.model import LanguageModel, load
from laconic.numerics.ggml_blocks import BLOCK_TYPES
from laconic.testing.matrices import random_matrix
from tests.tiny_models import DECODER, SMALL

METHODS: tuple[type[BlockQuantization], ...] = (Rtn, Gptq, Yaqa)
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)


@pytest.mark.parametrize("grid", BLOCK_TYPES)
@every_method
def test_every_grid_gives_blocks_of_its_type(kind: type[BlockQuantization], grid: str) -> None:
    matrix = random_matrix("blocks", (24, 256))
    method = parse_method(f"{kind.name}:grid={grid}", "method")
    made, form = method.compress(matrix.weight, matrix.stats), method.meta_format((24, 256))
    assert isinstance(made, GgmlBlocks) and made.blocks.name == grid
    assert (made.spec(), made.nbytes()) == (form.spec(), form.nbytes())
    C = matrix.stats[InputCovariance].matrix.double()
    E, W = (matrix.weight - made.dense()).double(), matrix.weight.double()
    assert ((E @ C) * E).sum() < 0.1 * ((W @ C) * W).sum()
    assert method.has_size and method.with_keep(0.1, (24, 256)) == method == method.without_size()
    assert parse_method(to_config(method), "method") == method


def test_q4_0_is_a_symmetric_grid_of_32_columns() -> None:
    matrix = random_matrix("blocks", (24, 64))
    blocks = Rtn(grid="q4_0").compress(matrix.weight, matrix.stats)
    grid = Rtn(bits=4, group_size=32, symmetric=True).compress(matrix.weight, matrix.stats)
    assert isinstance(grid, Quantized)
    assert torch.equal(blocks.dense(), grid.dense()) and blocks.nbytes() == grid.nbytes()


def test_candidates_are_the_one_size_and_the_dense_matrix() -> None:
    matrix = random_matrix("blocks", (24, 256))
    candidates = Gptq(grid="q4_k").candidates(matrix.weight, matrix.stats)
    assert [candidate.method for candidate in candidates.all] == [Gptq(grid="q4_k"), None]
    assert candidates.all[0].nbytes == 24 * 144


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rtn:grid=q4_k,bits=4", "bits"),
        ("gptq:grid=q4_k,bits=4,group_size=32", "bits and group_size"),
        ("gptq:grid=q4_0,symmetric=true", "symmetric"),
        ("rtn:grid=q8_0,clip=false", "clip"),
        ("yaqa:grid=q6_k,sparsity=0.5", "sparsity"),
        ("gptq:grid=q6_k,pattern=2:4", "pattern"),
    ],
)
def test_what_follows_from_the_grid_is_not_given_as_well(text: str, named: str) -> None:
    with pytest.raises(UserError, match=rf"grid=q\d_.* leave out {named}, or grid\.$"):
        parse_method(text, "method")


@pytest.mark.parametrize(
    ("grid", "width", "remedy"),
    [
        ("q4_k", 288, "give grid=q5_0 there"),
        ("q6_k", 896, "give grid=q8_0 there"),
        ("q2_k", 64, "give grid=q4_0 there"),
        ("q4_k", 100, "give bits and group_size in place of grid there"),
        ("q8_0", 40, "give bits and group_size in place of grid there"),
    ],
)
@every_method
def test_a_width_that_does_not_fit_is_refused_with_what_does(
    kind: type[BlockQuantization], grid: str, width: int, remedy: str
) -> None:
    matrix = random_matrix("narrow", (8, width))
    method = parse_method(f"{kind.name}:grid={grid}", "method")
    with pytest.raises(UserError, match=rf"multiple of (32|256) columns; a matrix has {width}: {remedy}, or choose"):
        method.compress(matrix.weight, matrix.stats)


@every_method
def test_a_pruned_matrix_is_refused(kind: type[BlockQuantization]) -> None:
    matrix = random_matrix("pruned", (24, 64))
    mask = matrix.weight > 0
    method = parse_method(f"{kind.name}:grid=q4_0", "method")
    with pytest.raises(UserError, match=r"grid=q4_0 stores every weight and would fill the zeros"):
        method.compress(matrix.weight * mask, LayerStats(matrix.stats, mask))
    assert method.fills_zeros and not kind(bits=4).fills_zeros


def test_a_step_refuses_before_it_reads_data() -> None:
    sizes: dict[str, Any] = {**DECODER, **SMALL}
    lm = LanguageModel.of(LlamaForCausalLM(LlamaConfig(**sizes)))
    for method, targets, message in (
        (Rtn(grid="q4_k"), ("blocks",), r"q4_k needs rows of a multiple of 256 columns; '"),
        (
            Plus(base=Rtn(grid="q4_0"), residual=Svd(rank=1)),
            ("embedding",),
            r"The word embedding '.*' cannot be stored",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Compress(method=method, targets=targets).check(lm)


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["q4_k", "q3_k"])
def test_compensation_lowers_the_error_of_outputs_on_other_texts(
    shared_models: Path, shared_data: Path, grid: BlockGridName
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACONIC_DATA", str(shared_data))
        texts = read("glue/sst2", "train")
    lm = load(str(shared_models / "minilm-sst2"))
    sites = [site for site in lm.sites(("ffn",)) if site.shape[1] % 256 == 0][:2]
    assert len(sites) == 2
    known, held_out = (
        collect_stats(
            lm, Calibration(batches(lm, replace(texts, examples=texts.examples[some]))), {InputCovariance}, sites
        )
        for some in (slice(0, 400), slice(-400, None))
    )
    for site in sites:
        weight, C = site.weight(), held_out[site.name][InputCovariance].matrix.double()
        errors = [
            (weight - method.compress(weight, known[site.name]).dense()).double()
            for method in (Rtn(grid=grid), Gptq(grid=grid))
        ]
        rtn, gptq = (((E @ C) * E).sum() for E in errors)
        assert gptq < 0.8 * rtn
