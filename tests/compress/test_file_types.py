"""Grids that do not fit every width, llama.cpp's file types, and heads that stay tied to their word embedding."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from laconic.calibrate import Calibration, GradCovariance, InputCovariance, LayerStats
from laconic.compress import Compress, solve_and_replace
from laconic.compress.allocators.file_types import block_type
from laconic.compress.fitted import transpose_stats
from laconic.errors import Notice, UserError
from laconic.formats import GgmlBlocks, PackedEmbedding
from laconic.methods import Awq, Gptq, Rtn, Yaqa
from laconic.methods.quantize.blocks import BlockQuantization
from laconic.model import LanguageModel, load
from laconic.model.loading import load_streamed
from laconic.model.tables import join_tables
from laconic.recipe import recipe_from, run
from laconic.store import save
from laconic.store.part_structures import PartStructures
from laconic.testing.matrices import random_matrix
from tests.calibrate.test_collect_stats import labelled_batches
from tests.export.gguf.models import GROUPED, byte_level
from tests.loaned import assert_equal

SIZES: dict[str, Any] = {**GROUPED, "hidden_size": 96, "intermediate_size": 256, "head_dim": 24}


def model(blocks: int = 1, tied: bool = True, **sizes: Any) -> LanguageModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**SIZES, "num_hidden_layers": blocks, "tie_word_embeddings": tied, **sizes})
    return LanguageModel.of(hf.LlamaForCausalLM(config).eval(), byte_level())


def calibration(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 1))


def grids(plan: Any) -> dict[str, str | None]:
    return {name: None if method is None else method.grid for name, method in plan.items()}


def test_a_step_gives_other_widths_the_blocks_of_llama_cpp() -> None:
    lm = model()
    with pytest.warns(Notice, match=r"^q4_k needs .* matrices of 96 columns \(6\) are stored in q5_0"):
        outcome = Compress(method=Rtn(grid="q4_k")).apply(lm, None)
    layer = "model.layers.0"
    found = grids(outcome.plan)
    assert found[f"{layer}.mlp.down_proj"] == "q4_k" and found[f"{layer}.mlp.up_proj"] == "q5_0"
    up = lm.model.get_submodule(f"{layer}.mlp.up_proj")
    assert isinstance(up, GgmlBlocks) and up.blocks.name == "q5_0"


def test_rows_that_no_blocks_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"q4_k needs rows of a multiple of 256 columns; .* has 100"):
        Compress(method=Rtn(grid="q4_k"), targets=("ffn",)).check(model(intermediate_size=100))


# The first, second, third and last of 24 blocks, from the table of llama.cpp's quantizer.
VALUES = {
    "Q4_K_M": ("q6_k", "q6_k", "q6_k", "q4_k", "q6_k"),
    "Q5_K_M": ("q6_k", "q6_k", "q6_k", "q5_k", "q6_k"),
    "Q3_K_M": ("q5_k", "q5_k", "q4_k", "q4_k", "q4_k"),
    "Q4_K_S": ("q5_k", "q5_k", "q5_k", "q4_k", "q4_k"),
    "Q2_K": ("q3_k",) * 5,
    "Q4_0": ("q4_0",) * 5,
}
OUTPUTS = {**VALUES, "Q3_K_M": ("q5_k", "q4_k", "q4_k", "q4_k", "q4_k"), "Q2_K": ("q3_k",) * 5}
ATTENTION = {"Q4_K_M": "q4_k", "Q5_K_M": "q5_k", "Q3_K_M": "q4_k", "Q4_K_S": "q4_k", "Q2_K": "q3_k", "Q4_0": "q4_0"}


@pytest.mark.parametrize("name", VALUES)
def test_file_types_are_those_of_llama_cpp(name: str) -> None:
    lm = model(24, tied=False)
    sites = {site.name: site for site in lm.sites(("*",))}

    def types(path: str) -> tuple[str | None, ...]:
        return tuple(block_type(name, sites[f"model.layers.{block}.{path}"], lm) for block in (0, 1, 2, 4, 23))

    assert types("self_attn.v_proj") == VALUES[name]
    assert types("mlp.down_proj") == OUTPUTS[name]
    assert set(types("self_attn.o_proj")) == {ATTENTION[name]}
    assert block_type(name, sites["lm_head"], lm) == "q6_k"
    (base,) = set(types("mlp.up_proj"))
    assert block_type(name, sites["model.embed_tokens"], lm) == base == f"q{name[1:4].lower()}"


def test_few_keys_and_experts_get_more_bits() -> None:
    few = model(num_attention_heads=8, num_key_value_heads=2)
    (value,) = few.sites(("*.v_proj",))
    assert block_type("Q2_K", value, few) == "q4_k"
    sizes = {**SIZES, "num_local_experts": 8, "num_hidden_layers": 1}
    mixture = LanguageModel.of(hf.MixtralForCausalLM(hf.MixtralConfig(**sizes)), byte_level())
    attention = [block_type("Q4_K_M", site, mixture) for site in mixture.sites(("attention",))]
    assert attention == ["q4_k", "q8_0", "q8_0", "q5_k"]


@pytest.mark.parametrize("method", [Rtn(), Gptq(), Yaqa()], ids=lambda method: method.name)
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_type_covers_the_whole_model(method: BlockQuantization, tied: bool, tmp_path: Path) -> None:
    lm = model(tied=tied)
    whole = lm.copy()
    step = Compress(method=method, allocate="Q4_K_M", targets=("all",))
    step.dry_run(lm.to_meta())
    with pytest.warns(Notice, match="as llama.cpp's own quantizer does"):
        outcome = step.apply(lm, calibration(lm))
    found = grids(outcome.plan)
    assert found["lm_head"] == "q8_0" and found["model.layers.0.self_attn.v_proj"] == "q8_0"
    assert ("model.embed_tokens" in found) == (not tied) and outcome.untied == ()
    table, head = lm.model.get_submodule("model.embed_tokens"), lm.model.get_submodule("lm_head")
    assert isinstance(table, PackedEmbedding) and isinstance(head, GgmlBlocks) and (table.coded is head) == tied
    assert isinstance(table.coded, GgmlBlocks) and table.coded.blocks.name == ("q8_0" if tied else "q5_0")
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(table(ids), table.dense().T[ids])
        expected = lm.model(ids).logits
        assert (expected - whole.model(ids).logits).abs().max() < 0.1
        save(lm, tmp_path / "model")
        again = load(str(tmp_path / "model"))
        assert torch.equal(again.model(ids).logits, expected) and again.size() == lm.size()
    # A tied matrix is stored once.
    assert lm.size()[1] < whole.size()[1] / 3


def test_a_plan_repeats_it() -> None:
    lm = model()
    data = calibration(lm)
    other = lm.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        plan = Compress(method=Gptq(), allocate="Q3_K_M", targets=("all",)).apply(lm, data).plan
        Compress(method=Gptq(), plan=plan).apply(other, data)
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, other.model(ids).logits)
    assert other.model.get_input_embeddings().coded is other.model.get_output_embeddings()


@pytest.mark.parametrize(
    "step",
    [
        Compress(method=Gptq(), allocate="Q4_K_M", targets=("all",)),
        Compress(method=Rtn(), allocate="Q4_0", targets=("all",)),
        Compress(method=Yaqa(grid="q8_0"), targets=("head", "ffn")),
    ],
    ids=["gptq", "rtn", "yaqa"],
)
@pytest.mark.filterwarnings("ignore::laconic.errors.Notice")
def test_a_tied_head_is_streamed(step: Compress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model().model.save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"))
    data = calibration(lm)
    assert step.stream_obstacle(lm) is None
    expected = step.apply(lm, data)
    for number in range(2):
        streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch", structures=PartStructures())
        assert streamed.loans is not None
        streamed.loans.begin("0")
        with monkeypatch.context() as patch:
            if number:
                # The second run takes over what the first one wrote.
                patch.setattr(solve_and_replace, "replace_group", None)
            assert step.apply(streamed, data) == expected
        assert streamed.model.get_input_embeddings().coded is streamed.model.get_output_embeddings()
        ids = torch.arange(2, 20)[None]
        with streamed.loaned_on_call(), torch.no_grad():
            assert torch.equal(streamed.model(ids).logits, lm.model(ids).logits)
        with streamed.on_loan(""):
            assert_equal(streamed.model, lm.model)


def test_a_streamed_recipe_writes_a_tied_head_once(tmp_path: Path) -> None:
    save(model(), tmp_path / "model")
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\n" * 8)
    steps = [{"compress": {"method": "rtn:grid=q8_0", "targets": ["head"]}}, {"compress": {"method": "gptq:grid=q8_0"}}]
    recipe = {"model": str(tmp_path / "model"), "data": str(tmp_path / "texts.txt"), "samples": 4, "steps": steps}
    for stream in (False, True):
        run(recipe_from({**recipe, "stream": stream}), tmp_path / str(stream))
    whole, streamed = (load(str(tmp_path / str(stream))).model for stream in (False, True))
    assert_equal(streamed, whole)
    assert streamed.get_input_embeddings().coded is streamed.get_output_embeddings()


def test_what_a_file_type_needs_is_told() -> None:
    for method, keep, message in (
        (Awq(), None, "Q4_K_M chooses the grid of each matrix; give one of rtn, gptq and yaqa without grid"),
        (Rtn(bits=4), None, "without grid, bits"),
        (Rtn(grid="q4_0"), None, "without grid, bits"),
        (Rtn(), 0.5, "keep must be left out: the file type Q4_K_M"),
    ):
        with pytest.raises(UserError, match=message):
            Compress(method=method, keep=keep, allocate="Q4_K_M")


def test_a_scaled_word_embedding_stays_as_it_is() -> None:
    sizes = {**SIZES, "num_hidden_layers": 1, "query_pre_attn_scalar": 32}
    lm = LanguageModel.of(hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes)).eval(), byte_level())
    outcome = Compress(method=Rtn(), allocate="Q4_0", targets=("all",)).apply(lm, None)
    assert outcome.plan["lm_head"] is None and outcome.plan["model.embed_tokens"] is None
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight


def test_only_a_targeted_head_takes_its_word_embedding() -> None:
    lm = model()
    every = lm.sites(("*",))
    (head,) = join_tables(lm.sites(("head",)), every)
    assert head.replaced_names == ("lm_head", "model.embed_tokens")
    assert [site.tables for site in join_tables(lm.sites(("embedding",)), every)] == [()]
    untied = model(tied=False)
    sites = untied.sites(("head", "embedding"))
    assert join_tables(sites, untied.sites(("*",))) == sites


def test_a_word_embedding_by_tokens_has_the_same_loss() -> None:
    matrix = random_matrix("table", (32, 64))
    C = InputCovariance.from_moment(torch.rand(64, dtype=torch.float64), count=3)
    F = matrix.stats[GradCovariance]
    turned = transpose_stats(LayerStats([C, F]), 32)
    E = torch.randn(32, 64, dtype=torch.float64)
    loss = (F.matrix @ E @ C.matrix.diag() @ E.T).trace()
    assert torch.allclose(
        (turned[GradCovariance].matrix.diag() @ E.T @ turned[InputCovariance].matrix @ E).trace(), loss
    )
    assert set(transpose_stats(LayerStats([C]), 32)[InputCovariance].matrix.tolist()) == {1.0}
