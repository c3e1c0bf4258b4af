"""Steps that train: what moves, what stays as it is bit for bit, and which numbers are kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, Outcome, Shorten, Step
from laconic.compress.kl_metric import KLMetric
from laconic.formats import LowRank, Masked, PackedCodes, Sum
from laconic.methods import Gptq, Int8, KMeans, Magnitude, Method, Plus, Rtn, Svd
from laconic.model import LanguageModel, load
from laconic.recover import Distil, Finetune
from laconic.recover.training import Checkpoint
from laconic.report.plots import curves
from laconic.store import save
from tests.architectures import outputs
from tests.recover.ground import SHORT, data_for, lm_of, with_original

TASKS = ("bert-classifier", "bert-masked", "gpt2", "llama", "t5", "bart", "albert-masked")
FAMILIES: dict[str, Step] = {
    "low rank": Compress(method=Svd(multiple=1), keep=0.5),
    "zeros": Compress(method=Magnitude(sparsity=0.6), allocate="global"),
    "pattern": Compress(method=Magnitude(pattern="2:4")),
    "codes": Compress(method=Rtn(bits=3, group_size=8)),
    "codebook": Compress(method=KMeans(bits=2, group_size="channel")),
    "int8": Compress(method=Int8()),
    "sum": Compress(method=Plus(base=Rtn(bits=2, group_size=8)), keep=0.4),
    "narrow": Narrow(heads=0.5, channels=0.5),
    "shorten": Shorten(drop=1, select="last"),
}


def kl(lm: LanguageModel, original: LanguageModel, data: Calibration) -> float:
    return KLMetric(original, data.batches)(lm)


def bits(lm: LanguageModel) -> dict[str, Tensor]:
    """Masks and codes, of which training may change nothing."""
    kept: dict[str, Tensor] = {}
    for name, module in lm.model.named_modules():
        if isinstance(module, Masked) and module.mask is not None:
            kept[f"{name}.mask"] = module.mask.clone()
        if isinstance(module, PackedCodes):
            kept |= {f"{name}.{part}": module.get_parameter(part).clone() for part in module.packed_names}
    return kept


@pytest.mark.parametrize("name", TASKS)
def test_finetuning_lowers_the_loss_of_the_task(name: str) -> None:
    lm = lm_of(name)
    outcome = Finetune(**SHORT).apply(lm, data_for(lm))
    losses = _losses(outcome)
    assert min(losses) < losses[0]
    assert (outcome.before, outcome.after) == ({}, {})
    assert [path for path in outcome.files if path.startswith("finetune/events")]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_the_best_numbers_are_kept_or_the_last(checkpoint: Checkpoint) -> None:
    lm, far = lm_of("bert-classifier"), {**SHORT, "learning_rate": 0.05, "evaluations": 4}
    data = data_for(lm)
    losses = _losses(Finetune(**far, checkpoint=checkpoint).apply(lm, data))
    assert min(losses) < losses[-1]
    kept = _losses(Finetune(**far).apply(lm, data))[0]
    assert kept == pytest.approx(min(losses) if checkpoint == "best" else losses[-1])


def _losses(outcome: Outcome) -> list[float]:
    return [line["eval_loss"] for line in outcome.found["finetune"]["lines"] if "eval_loss" in line]


@pytest.mark.parametrize(
    ("name", "family"),
    # Every form of a matrix once, and what changes the structure on both.
    [
        *(("bert-classifier", family) for family in ("zeros", "codes", "int8", "sum", "narrow", "shorten")),
        *(("llama", family) for family in ("low rank", "pattern", "codebook", "narrow", "shorten")),
    ],
)
@pytest.mark.slow
def test_distilling_brings_every_family_back_and_keeps_masks_and_codes(name: str, family: str, tmp_path: Path) -> None:
    lm = with_original(lm_of(name))
    assert lm.original is not None
    data = data_for(lm)
    FAMILIES[family].apply(lm, data)
    before, far = bits(lm), kl(lm, lm.original, data)
    Distil(**SHORT).apply(lm, data)
    after = bits(lm)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for module in lm.model.modules():
        if isinstance(module, Masked) and module.mask is not None:
            assert not module.dense()[~module.mask].any()
    # What is near already may be left as it was.
    assert kl(lm, lm.original, data) < far or far < 5e-3
    save(lm, tmp_path / "out")
    assert torch.equal(outputs(load(str(tmp_path / "out")).model), outputs(lm.model))


@pytest.mark.parametrize(
    "method", [Rtn(bits=3, group_size=8), KMeans(bits=3), Gptq(bits=2, group_size="channel"), Int8()]
)
@pytest.mark.slow
def test_codes_move_straight_through_and_their_grids_stay(method, tmp_path: Path) -> None:
    lm = with_original(lm_of("bert-classifier"))
    assert lm.original is not None
    data = data_for(lm, 120)
    Compress(method=Magnitude(sparsity=0.5)).apply(lm, data)
    Compress(method=method).apply(lm, data)
    before, far = bits(lm), kl(lm, lm.original, data)
    Distil(**{**SHORT, "learning_rate": 1e-2}, quantized="straight-through").apply(lm, data)
    after = bits(lm)
    codes = [name for name in before if name.endswith(".codes")]
    assert any(not torch.equal(before[name], after[name]) for name in codes)
    # Scales, zero points, tables and masks.
    assert all(torch.equal(before[name], after[name]) for name in before if name not in codes)
    assert kl(lm, lm.original, data) < far
    save(lm, tmp_path / "out")
    assert torch.equal(outputs(load(str(tmp_path / "out")).model), outputs(lm.model))


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5"])
def test_adapters_are_merged_where_that_is_exact(name: str) -> None:
    lm = with_original(lm_of(name))
    assert lm.original is not None
    data = data_for(lm)
    Compress(method=Svd(multiple=1), keep=0.5, targets=("ffn",)).apply(lm, data)
    names, far = dict(lm.model.named_parameters()).keys(), kl(lm, lm.original, data)
    frozen = {key: value.clone() for key, value in lm.model.named_parameters() if value.ndim == 1}
    outcome = Distil(**SHORT, lora=2).apply(lm, data)
    assert dict(lm.model.named_parameters()).keys() == names
    assert all(torch.equal(frozen[key], lm.model.get_parameter(key)) for key in frozen)
    assert kl(lm, lm.original, data) < far
    assert outcome.after == {}


def test_adapters_stay_beside_codes_and_zeros(tmp_path: Path) -> None:
    lm = with_original(lm_of("bert-classifier"))
    assert lm.original is not None
    data = data_for(lm)
    Compress(method=Rtn(bits=2, group_size=8), targets=("ffn",)).apply(lm, data)
    Compress(method=Magnitude(sparsity=0.7), targets=("attention",)).apply(lm, data)
    before, far = bits(lm), kl(lm, lm.original, data)
    outcome = Distil(**SHORT, lora=2).apply(lm, data)
    sums = [module for module in lm.model.modules() if isinstance(module, Sum)]
    assert len(sums) == len(lm.original.sites())
    assert all(isinstance(module.second, LowRank) and module.second.rank == 2 for module in sums)
    assert all(torch.equal(tensor, before[key.replace(".first", "")]) for key, tensor in bits(lm).items())
    assert kl(lm, lm.original, data) < far
    assert sum(outcome.after.values()) == sum(outcome.before.values()) + sum(m.second.nbytes() for m in sums)
    save(lm, tmp_path / "out")
    assert torch.equal(outputs(load(str(tmp_path / "out")).model), outputs(lm.model))


def test_what_is_frozen_does_not_move() -> None:
    lm = lm_of("bert-classifier")
    before = {name: tensor.clone() for name, tensor in lm.model.named_parameters()}
    Finetune(**SHORT, freeze=("*embeddings*", "classifier.*")).apply(lm, data_for(lm))
    moved = {name for name, tensor in lm.model.named_parameters() if not torch.equal(before[name], tensor)}
    assert moved
    assert not any("embeddings" in name or name.startswith("classifier.") for name in moved)
    assert all(tensor.requires_grad for tensor in lm.model.parameters())


@pytest.mark.parametrize("method", [Rtn(bits=4), Plus(base=Rtn(bits=3), residual=Svd(rank=2))])
@pytest.mark.slow
def test_what_is_looked_up_in_codes_stays_while_others_move_straight_through(method: Method) -> None:
    lm = lm_of("bert-classifier")
    Compress(method=method, targets=("embedding",)).apply(lm, data_for(lm))
    Compress(method=Rtn(bits=4)).apply(lm, data_for(lm))
    codes = {name: tensor for name, tensor in bits(lm).items() if name.endswith("codes")}
    assert any("word_embeddings" in name for name in codes)
    Finetune(**{**SHORT, "learning_rate": 1e-2}, quantized="straight-through").apply(lm, data_for(lm, 120))
    moved = {name for name, tensor in bits(lm).items() if name in codes and not torch.equal(tensor, codes[name])}
    # The output factor of a low rank is multiplied by, whatever its input factor is.
    assert moved and not any("word_embeddings" in name and ".left." not in name for name in moved)


@pytest.mark.parametrize("how", [{"quantized": "straight-through"}, {"lora": 2}])
def test_codes_and_adapters_of_what_is_frozen_do_not_move(how: dict) -> None:
    lm = lm_of("bert-classifier")
    Compress(method=Rtn(bits=3, group_size=8)).apply(lm, None)
    before = bits(lm)
    Finetune(**SHORT, **how, freeze=("*layer.0*",)).apply(lm, data_for(lm))
    assert not any(isinstance(module, Sum) for name, module in lm.model.named_modules() if "layer.0" in name)
    same = {name for name, tensor in bits(lm).items() if name in before and torch.equal(tensor, before[name])}
    assert {name for name in before if "layer.0" in name} <= same
    assert "lora" in how or not {name for name in before if "layer.1" in name} <= same


def test_adapters_hang_on_the_seed_of_the_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in (1, 2):
        monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / str(seed)))
        torch.manual_seed(seed)
        lm = lm_of("bert-classifier")
        Finetune(**SHORT, lora=2).apply(lm, data_for(lm))
        found.append(dict(lm.model.named_parameters()))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_training_that_leaves_the_numbers_is_undone_and_told_in_plain_values() -> None:
    lm = lm_of("bert-classifier")
    before = {name: tensor.clone() for name, tensor in lm.model.named_parameters()}
    found = diverging(1e30).apply(lm, data_for(lm)).found
    json.dumps(found, allow_nan=False)
    assert curves(found["finetune"]["lines"], "finetune").axes
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.named_parameters())


def diverging(learning_rate: float, **settings: float) -> Finetune:
    """With a rate far beyond those that may be asked for, so that the numbers are left for sure."""
    step = Finetune(**SHORT, **settings)
    object.__setattr__(step, "learning_rate", learning_rate)
    return step


def test_a_teacher_can_be_trained_afterwards() -> None:
    lm = lm_of("bert-classifier")
    movable = [parameter.requires_grad for parameter in lm.model.parameters()]
    Distil(**SHORT).apply(replace(lm.copy(), original=lm), data_for(lm))
    assert [parameter.requires_grad for parameter in lm.model.parameters()] == movable


def test_no_training_is_better_than_a_worse_one() -> None:
    lm = lm_of("bert-classifier")
    Finetune(**{**SHORT, "learning_rate": 3e-3}).apply(lm, data_for(lm, 120))
    best = {name: tensor.clone() for name, tensor in lm.model.named_parameters()}
    diverging(30.0, warmup=0.0).apply(lm, data_for(lm, 120))
    assert all(torch.equal(best[name], tensor) for name, tensor in lm.model.named_parameters())


def test_history_is_plain(tmp_path: Path) -> None:
    lm = lm_of("bert-classifier")
    found = Finetune(**SHORT).apply(lm, data_for(lm)).found
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["finetune"]["rows"] + found["finetune"]["held_out"] == 40
