"""The step `correct`: nearer to the original on held-out rows or not changed at all, whatever came before it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from laconic.calibrate import Calibration
from laconic.calibrate.anchor import split_held_out
from laconic.compress import Compress, Narrow, Shorten, Step
from laconic.compress.kl_metric import KLMetric
from laconic.errors import UserError
from laconic.formats import LowRankReader, Masked, PackedCodes
from laconic.methods import Gptq, Int8, KMeans, Magnitude, Rtn, Svd, Wanda
from laconic.model import LanguageModel
from laconic.recipe.flow import apply_steps
from laconic.recover import Correct
from laconic.recover.comparison import invert_norm
from laconic.recover.correct import correct
from laconic.recover.layer_pairs import pair_stacks
from laconic.store import save
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.model.test_depth import deep

FAMILIES: dict[str, Step] = {
    "low rank": Compress(method=Svd(rank=6)),
    "one input factor": Compress(method=Svd(rank=8), share_inputs=True),
    "zeros": Compress(method=Wanda(sparsity=0.6)),
    "codes": Compress(method=Rtn(bits=2, group_size=16)),
    "fed back": Compress(method=Gptq(bits=2, group_size=16)),
    "tables": Compress(method=KMeans(bits=2)),
    "int8": Compress(method=Int8()),
    "fewer heads": Narrow(heads=0.5, channels=0.5),
    "fewer blocks": Shorten(drop=1, select="last"),
    "fewer parts": Shorten(drop=1, parts="sublayers", replace="bias"),
}
NAMES = ("bert-classifier", "gpt2", "albert-masked", "t5", "bart", "llama", "bert-masked", "gpt-neox")
ONE_OF_EACH_KIND = ("bert-classifier", "gpt2", "t5")
# Every family on these, and on the others what changes their structure most.
PAIRS = [
    (name, family)
    for name in NAMES
    for family in FAMILIES
    if name in ONE_OF_EACH_KIND or family in ("low rank", "fewer heads", "fewer parts")
]


def data_for(lm: LanguageModel, count: int = 12) -> Calibration:
    """`count` pairs of rows, four pairs a batch."""
    pairs = labelled_batches(lm, count)
    fours = [pairs[at : at + 4] for at in range(0, count, 4)]
    return Calibration([{name: torch.cat([pair[name] for pair in four]) for name in four[0]} for four in fours])


def state(lm: LanguageModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in lm.model.named_parameters()}


def compressed(lm: LanguageModel, *steps: Step, data: Calibration | None = None) -> LanguageModel:
    """`lm` after the steps, with what it was before them."""
    lm = replace(lm, original=lm.copy())
    for step in steps:
        lm = replace(lm, dropped=(*lm.dropped, step.apply(lm, data or data_for(lm)).dropped))
    return lm


@pytest.mark.parametrize(("name", "family"), PAIRS)
@pytest.mark.slow
def test_held_out_rows_never_lose(name: str, family: str) -> None:
    if family.startswith("fewer p") and name == "albert-masked":
        pytest.skip("its blocks lose no parts")
    lm = BY_NAME[name].lm()
    data = data_for(lm)
    step = FAMILIES[family]
    if family == "fewer blocks":
        step = Shorten(drop={"encoder": 1, "decoder": 1}, select="last") if name in ("t5", "bart") else step
    lm = compressed(lm, step, data=data)
    assert lm.original is not None
    before, kinds = state(lm), [type(module) for module in lm.model.modules()]
    found = Correct().apply(lm, data).found
    judge = KLMetric(lm.original, split_held_out(data.batches, 0.25, data.seed, "correct")[1])
    assert judge(lm) == pytest.approx(found["kl_after"], rel=1e-6, abs=1e-12)
    assert [type(module) for module in lm.model.modules()] == kinds
    if found["kept"] == "nothing":
        assert all(torch.equal(tensor, before[key]) for key, tensor in state(lm).items())
    else:
        assert found["kl_after"] < found["kl_before"]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_compressed_stays_exactly(name: str) -> None:
    lm = compressed(BY_NAME[name].lm())
    before = state(lm)
    found = Correct().apply(lm, data_for(lm)).found
    assert found == {"kl_before": 0.0, "kl_after": 0.0, "kept": "nothing"}
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(lm).items())


@pytest.mark.parametrize(
    ("name", "family"),
    # Every form of a matrix in one model, and two of them in those whose matrices lie or are read otherwise.
    [
        *(("llama", family) for family in ("low rank", "one input factor", "zeros", "codes", "tables", "int8")),
        *((name, family) for name in ("gpt2", "bart") for family in ("low rank", "codes")),
    ],
)
@pytest.mark.slow
def test_it_gains_and_reloads(name: str, family: str, tmp_path: Path) -> None:
    """Zeros stay zero, codes the same to the bit, and the model in memory is the one on disk."""
    lm = BY_NAME[name].lm().with_dtype(torch.bfloat16)
    lm.model.load_state_dict({key: value.bfloat16().float() for key, value in lm.model.state_dict().items()})
    data = data_for(lm, 40)
    lm = compressed(lm, FAMILIES[family], data=data)
    before = state(lm)
    masks = {name: module.mask for name, module in lm.model.named_modules() if isinstance(module, Masked)}
    found = Correct().apply(lm, data).found
    # Eight bits leave so little to gain that a few texts may not show it.
    assert (found["kl_after"] < found["kl_before"] and found["kept"] == "refit") or family == "int8"
    for path, mask in masks.items():
        layer = lm.model.get_submodule(path)
        assert mask is not None and isinstance(layer, Masked) and not layer.dense()[~mask].any()
    for key, tensor in state(lm).items():
        if key.endswith((".codes", ".zeros", ".kept_bits")):
            assert torch.equal(tensor, before[key])
    save(lm, tmp_path / "out")
    loaded = type(lm.model).from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(outputs(loaded), outputs(lm.model))


def test_biases_alone_leave_every_matrix() -> None:
    lm = compressed(BY_NAME["bert-classifier"].lm(), Compress(method=Svd(rank=4)))
    before = state(lm)
    assert Correct(refit=False).apply(lm, data_for(lm, 40)).found["kept"] == "biases"
    moved = {key for key, tensor in state(lm).items() if not torch.equal(tensor, before[key])}
    assert moved and all(key.endswith("bias") for key in moved)


def test_centred_biases_leave_no_mean_error() -> None:
    """b̂ = E[y*] − Ŵ E[x̃], of the first layers, whose inputs are those of the original."""
    lm = compressed(BY_NAME["bert-classifier"].lm(), Compress(method=Svd(rank=2)))
    data, original = data_for(lm), lm.original
    assert original is not None
    correct(lm, original, data, refits=False)
    path = "bert.encoder.layer.0.attention.self.query"
    means = []
    for model in (lm, original):
        seen: list[Tensor] = []
        hook = model.model.get_submodule(path).register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        for batch in data.batches:
            with torch.no_grad():
                model.model(**batch)
        hook.remove()
        counted = [batch["attention_mask"].bool() for batch in data.batches]
        means.append(torch.cat([y[mask] for y, mask in zip(seen, counted, strict=True)]).mean(0))
    assert torch.allclose(*means, atol=1e-5)


def test_the_matrix_of_a_tied_head_is_left_to_the_embedding() -> None:
    lm = compressed(BY_NAME["gpt2"].lm(), Compress(method=Svd(rank=4)))
    assert lm.original is not None
    correct(lm, lm.original, data_for(lm), refits=True)
    table, whole = (model.get_input_embeddings().weight for model in (lm.model, lm.original.model))
    assert table is lm.model.get_output_embeddings().weight and torch.equal(table, whole)


def test_readers_share_their_factor_still() -> None:
    lm = compressed(BY_NAME["llama"].lm(), FAMILIES["one input factor"])
    readers = {name: module.source for name, module in lm.model.named_modules() if isinstance(module, LowRankReader)}
    assert readers
    Correct().apply(lm, data_for(lm, 40))
    assert all(lm.model.get_submodule(name).source is source for name, source in readers.items())
    assert all(source in set(lm.model.modules()) for source in readers.values())


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2"])
def test_blocks_are_matched_by_what_was_dropped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps that drop: the second numbers what the first left. With norms after the sum and before."""
    lm = compressed(deep(name, monkeypatch), Shorten(blocks=(0,)), Shorten(blocks=(1,)))
    assert lm.original is not None
    (row,) = pair_stacks(lm, lm.original)
    assert (row.numbers, [piece.spans for piece in row.pieces]) == ([1, 3], [2, 1])
    found = Correct().apply(lm, data_for(lm, 60)).found
    assert found["kl_after"] < found["kl_before"]
    with pytest.raises(UserError, match="The 2 blocks in"):
        Correct().apply(replace(lm, dropped=()), data_for(lm))


def test_a_block_that_all_layers_share_is_itself_whichever_layer_went() -> None:
    lm = compressed(BY_NAME["albert-masked"].lm(), Compress(method=Svd(), keep=0.5), Shorten(blocks=(0,)))
    found = Correct().apply(lm, data_for(lm, 60)).found
    assert found["kl_after"] <= found["kl_before"]


def test_a_norm_is_undone() -> None:
    norm, x = nn.LayerNorm(8), torch.randn(5, 8)
    nn.init.normal_(norm.weight, 1, 0.1)
    nn.init.normal_(norm.bias)
    assert torch.allclose(invert_norm(norm, norm(x), x), x, atol=1e-4)


def test_rows_are_taken_apart_once() -> None:
    lm = BY_NAME["t5"].lm()
    whole = labelled_batches(lm, 5)
    fitting, judging = split_held_out(whole, 0.3, 0, "correct")
    rows = [row.tolist() for part in (fitting, judging) for batch in part for row in batch["input_ids"]]
    assert sorted(rows) == sorted(row.tolist() for batch in whole for row in batch["input_ids"])
    assert sum(len(batch["labels"]) for batch in judging) == 3
    one = {name: torch.cat([batch[name] for batch in whole]) for name in whole[0]}
    fitting, judging = split_held_out([one], 0.3, 0, "correct")
    assert (len(fitting), len(judging)) == (2, 1)
    with pytest.raises(UserError, match="needs at least 3 rows of data, some held out; got 2"):
        split_held_out(whole[:1], 0.3, 0, "correct")


def test_mistakes() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    with pytest.raises(UserError, match="'correct' needs the original to compare with; run it in one recipe"):
        Correct().apply(lm, data_for(lm))
    with pytest.raises(UserError, match="'correct' needs calibration data"):
        Correct().apply(lm, None)
    with pytest.raises(UserError, match=r"held_out must be in \(0, 1\); got 1"):
        Correct(held_out=1)


def test_in_the_flow_it_sees_what_was_before_the_first_step() -> None:
    lm, data = BY_NAME["bert-classifier"].lm(), None
    data = data_for(lm, 40)
    whole = lm.copy()
    steps = (Shorten(blocks=(1,)), Compress(method=Magnitude(sparsity=0.5)), Correct())
    small, changes = apply_steps(lm, steps, data)
    assert small.original is None and small.dropped == ()
    found = changes.found[-1]
    assert KLMetric(whole, split_held_out(data.batches, 0.25, 0, "correct")[1])(small) == pytest.approx(
        found["kl_after"]
    )
    assert not any(isinstance(module, PackedCodes) for module in small.model.modules())
