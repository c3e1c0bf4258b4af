"""The grid `any`: the type of llama.cpp's blocks of each matrix is chosen, and losses are predicted from some rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from laconic.allocate import allocate_spectrum
from laconic.calibrate import Calibration, GradCovariance, InputCovariance, LayerStats
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.formats import GgmlBlocks, PackedEmbedding
from laconic.methods import Gptq, Rtn, Yaqa
from laconic.methods.quantize import sampled_rows
from laconic.methods.quantize.blocks import SIZES, BlockQuantization
from laconic.methods.quantize.sampled_rows import rows_by_weight
from laconic.methods.registry import parse_method, to_config
from laconic.model import LanguageModel
from laconic.numerics.factors import UnitFactor
from laconic.numerics.ggml_blocks import BLOCK_TYPES
from laconic.numerics.moments import quadratic_loss
from laconic.testing.matrices import random_matrix
from tests.tiny_models import DECODER, SMALL

METHODS: tuple[type[BlockQuantization], ...] = (Rtn, Gptq, Yaqa)
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)


def test_sizes_are_all_types_from_the_smallest() -> None:
    assert set(SIZES) == set(BLOCK_TYPES)
    nbytes = [BLOCK_TYPES[name].row_nbytes(256) for name in SIZES]
    assert nbytes == sorted(nbytes)


@every_method
def test_keep_chooses_the_largest_type_that_fits(kind: type[BlockQuantization]) -> None:
    method = kind(grid="any")
    assert not method.has_size and method.without_size() == method
    # 5 bits of 32: the types of five bits take 5.5 with their scales.
    assert method.with_keep(5 / 32, (8, 64)) == kind(grid="q4_1")
    assert method.with_keep(5.5 / 32, (8, 256)) == kind(grid="q5_k")
    assert method.smallest_size((8, 256)) == kind(grid="q2_k")
    assert method.smallest_size((8, 64)) == kind(grid="q4_0")
    assert method.meta_format((8, 64)).nbytes() == 8 * 36


@every_method
def test_candidates_are_the_types_that_fit_the_width(kind: type[BlockQuantization]) -> None:
    matrix = random_matrix("narrow", (24, 64))
    offered = kind(grid="any").candidates(matrix.weight, matrix.stats).all
    assert [option.method for option in offered] == [
        *(kind(grid=name) for name in ("q4_0", "iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0")),
        None,
    ]
    losses = [option.loss for option in offered]
    assert losses[0] > losses[3] > losses[5] > losses[6] == 0
    assert offered[0].nbytes == 24 * 36


@every_method
def test_a_list_names_the_types_to_choose_from(kind: type[BlockQuantization]) -> None:
    method = parse_method(f"{kind.name}:grid=[q8_0,q4_0]", "--method")
    assert method == kind(grid=("q8_0", "q4_0")) and not method.has_size
    assert parse_method(to_config(method), "--method") == method
    assert [method.with_keep(keep, (8, 64)) for keep in (5.5 / 32, 8.5 / 32)] == [kind(grid="q4_0"), kind(grid="q8_0")]
    matrix = random_matrix("narrow", (24, 64))
    offered = method.candidates(matrix.weight, matrix.stats).all
    assert [option.method for option in offered] == [kind(grid="q4_0"), kind(grid="q8_0"), None]


def test_types_of_a_list_that_do_not_fit_are_replaced() -> None:
    method = Gptq(grid=("q6_k", "q2_k", "q4_0"))
    assert method.sizes_for((8, 256)) == [Gptq(grid="q2_k"), Gptq(grid="q4_0"), Gptq(grid="q6_k")]
    assert method.sizes_for((8, 64)) == [Gptq(grid="q4_0"), Gptq(grid="q8_0")]


def test_wrong_lists_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"rtn:grid=\[\] names no type of blocks; give one or more, such as \[q4_0,q8_0\]"
    ):
        Rtn(grid=())
    with pytest.raises(UserError, match=r"rtn\.grid\[1\] must be 'q4_0'.*; got 'q9'"):
        parse_method("rtn:grid=[q4_0,q9]", "--method")
    with pytest.raises(UserError, match=r"grid=\[q4_0,q8_0\] sets bits, groups .*; leave out bits, or grid"):
        Rtn(grid=("q4_0", "q8_0"), bits=4)


def test_all_types_share_one_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, made = random_matrix("narrow", (24, 64)), list[int]()
    factor = UnitFactor.from_moment.__func__

    def count(cls: type[UnitFactor], H: torch.Tensor, *others: Any) -> UnitFactor:
        made.append(len(H))
        return factor(cls, H, *others)

    monkeypatch.setattr(UnitFactor, "from_moment", classmethod(count))
    matrix.stats[InputCovariance].readers = 2
    for _ in range(2):
        assert len(Gptq(grid="any").candidates(matrix.weight, matrix.stats).all) == 7
    assert made == [64]


def test_few_rows_predict_the_loss_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random_matrix("tall", (192, 64))
    monkeypatch.setattr(sampled_rows, "ROWS", 48)
    F, C = (matrix.stats[kind].matrix for kind in (GradCovariance, InputCovariance))
    for option in Rtn(grid="any").candidates(matrix.weight, matrix.stats).all[:-1]:
        assert option.method is not None
        E = matrix.weight - option.method.compress(matrix.weight, matrix.stats).dense()
        assert option.loss == pytest.approx(quadratic_loss(E, F.diagonal(), C), rel=0.3)


def test_rows_without_gradients_are_not_asked() -> None:
    weights = torch.zeros(1000)
    weights[[3, 500]] = torch.tensor([1.0, 3.0])
    assert rows_by_weight(weights, 4).tolist() == [3, 500, 500, 500]
    assert rows_by_weight(torch.zeros(4), 4).tolist() == [0, 1, 2, 3]


def test_more_bytes_go_to_the_matrix_that_matters() -> None:
    first = random_matrix("first", (24, 64))
    second = LayerStats([first.stats[InputCovariance], GradCovariance.from_total(1e-4 * torch.eye(24), count=1)])
    method = Gptq(grid="any")
    candidates = {
        "important": method.candidates(first.weight, first.stats),
        "unimportant": method.candidates(first.weight, second),
    }
    plan = allocate_spectrum(candidates, keep=6.5 / 32)
    four_bits = plan.pop("unimportant")
    assert plan == {"important": Gptq(grid="q8_0")} and four_bits in (Gptq(grid="q4_0"), Gptq(grid="iq4_nl"))


def test_a_width_of_no_type_is_refused() -> None:
    matrix = random_matrix("odd", (8, 40))
    with pytest.raises(UserError, match=r"grid=any needs rows of a multiple of 32 columns; a matrix has 40: give bits"):
        Rtn(grid="any").candidates(matrix.weight, matrix.stats)


def test_a_model_takes_types_within_the_budget() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**DECODER, **SMALL, "intermediate_size": 64}
    lm = LanguageModel.of(LlamaForCausalLM(LlamaConfig(**sizes)))
    tokens = torch.randint(3, 50, (8, 16), generator=torch.Generator().manual_seed(0))
    data = Calibration([{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in tokens.split(4)])
    step = Compress(method=Rtn(grid="any"), keep=0.2, allocate="spectrum", targets=("all",))
    outcome = step.apply(lm, data)
    layers = [site.module for site in lm.sites(("all",))]
    matrices = [layer.coded if isinstance(layer, PackedEmbedding) else layer for layer in layers]
    assert len(matrices) > 2 and all(isinstance(matrix, GgmlBlocks) for matrix in matrices)
    assert outcome.nbytes <= 0.2 * outcome.dense_nbytes
    with pytest.raises(UserError, match="needs a size: give keep"):
        replace(step, keep=None, allocate="uniform")
