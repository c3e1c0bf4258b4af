"""The number of experts that stay and of those that read a token: notices, and a router with a number of its own."""

import warnings

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from laconic import processes
from laconic.compress import Narrow
from laconic.errors import Notice, UserError
from laconic.model import LanguageModel
from laconic.model.active_parameters import count_active
from laconic.model.expert_removal import keep_experts
from laconic.model.mixture import find_mixtures
from laconic.store import save
from tests.architectures import DECODER, SMALL, Architecture, alike, outputs
from tests.compress.test_narrow_experts import mixture
from tests.experts import LATENT

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")


def phimoe(per_token: int = 2, experts: int = 4) -> LanguageModel:
    """PhiMoE, whose router always selects two experts."""
    config = {**DECODER, **SMALL, "num_local_experts": experts, "num_experts_per_tok": per_token}
    return Architecture("phimoe", lambda: hf.PhimoeForCausalLM(hf.PhimoeConfig(**config))).lm()


def deepseek(experts: int, groups: int, per_token: int) -> LanguageModel:
    """DeepSeek-V3, of whose groups a token may use one."""
    shape = {**LATENT, "n_routed_experts": experts, "n_group": groups, "num_experts_per_tok": per_token}
    return Architecture("deepseek-v3", lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**shape))).lm()


def random(keep: float) -> Narrow:
    return Narrow(experts=keep, expert_importance="random")


@pytest.mark.parametrize(
    ("lm", "keep", "kept", "said"),
    [
        (
            lambda: deepseek(8, 2, 3),
            0.25,
            (4, 2),
            "4 of 8 experts of each block, because its router scores each of its 2 groups by the 2 best experts; "
            "2 experts in place of 3 read a token",
        ),
        (lambda: deepseek(12, 2, 2), 0.6, (8, 2), "8 of 12 experts of each block, because each of its 2 groups keeps "
         "the same number"),
        (lambda: deepseek(4, 1, 2), 0.2, (2, 2), "2 of 4 experts of each block, because its router scores them by the "
         "2 best experts"),
        (lambda: mixture("mixtral"), 0.1, (1, 1), "1 of 4 experts of each block, because at least one must stay; "
         "1 expert in place of 2 read a token"),
        (lambda: mixture("mixtral"), 0.25, (1, 1), "1 of 4 experts of each block; 1 expert in place of 2 read a token"),
    ],
)  # fmt: skip
def test_a_number_that_was_not_asked_for_is_said(lm, keep, kept, said):
    model = lm()
    with pytest.warns(Notice) as given:
        outcome = random(keep).apply(model, None)
    assert [str(notice.message) for notice in given] == [f"narrow:experts={keep:g} keeps {said}."]
    assert {(found.count, found.per_token) for found in find_mixtures(model.model)} == {kept}
    assert outcome.found["experts"]["per_token"] == kept[1]


def test_a_number_that_was_asked_for_is_not_said(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        random(0.5).apply(mixture("mixtral"), None)
        random(0.5).apply(deepseek(8, 2, 2), None)
        # The other processes would say the same once more.
        monkeypatch.setattr(processes, "is_rank_zero", lambda: False)
        random(0.25).apply(mixture("mixtral"), None)


@pytest.mark.parametrize("per_token", [1, 2, 3])
def test_a_router_that_always_selects_two_experts_keeps_two(per_token, tmp_path):
    """Whatever its configuration says: with a single expert it weights the second choice by 0 / 0."""
    lm, other = phimoe(per_token), phimoe(per_token)
    assert {found.per_token for found in find_mixtures(lm.model)} == {2}
    active = count_active(lm.model)
    assert active is not None and active.experts == "2 of 4 experts"
    message = (
        r"^The router of 'model\.layers\.0\.mlp\.experts' sends each token to 2 experts, whatever its configuration "
        "says, and 1 would stay; keep at least 2 with a larger experts.$"
    )
    with pytest.raises(UserError, match=message):
        random(0.25).check(lm)
    kept = random(0.5).apply(lm, None).found["experts"]["kept"]
    for path, numbers in kept.items():
        block = other.model.get_submodule(path.rpartition(".")[0])
        block.experts.num_experts = block.router.num_experts = 2
        for module in (block.experts, block.router):
            for name, parameter in list(module.named_parameters()):
                module.register_parameter(name, torch.nn.Parameter(parameter[numbers]))
    assert torch.equal(outputs(lm.model), outputs(other.model)) and outputs(lm.model).isfinite().all()
    save(lm, tmp_path / "small")
    assert alike(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "small")), outputs(lm.model))


def test_one_expert_of_a_router_that_selects_two_is_no_number():
    lm = phimoe()
    keep_experts(lm, {found.path: [0] for found in find_mixtures(lm.model)})
    assert outputs(lm.model).isnan().all()


def test_a_class_that_fails_with_fewer_experts_is_refused(monkeypatch):
    """A router whose forward pass needs more experts than its attributes say."""
    forward = MixtralTopKRouter.forward
    monkeypatch.setattr(MixtralTopKRouter, "forward", lambda self, x: forward(self, x + 0 * self.weight[3].sum()))
    lm = Architecture("mixtral", lambda: hf.MixtralForCausalLM(hf.MixtralConfig(
        **DECODER, **SMALL, num_local_experts=6, num_experts_per_tok=2
    ))).lm()  # fmt: skip
    random(2 / 3).check(lm)
    with pytest.raises(UserError, match=r"^The class 'MixtralForCausalLM' cannot be run with 3 experts in a block; l"):
        random(0.5).check(lm)
