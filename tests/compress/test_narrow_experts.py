"""Removing experts of mixtures: which stay, what the smaller model computes, and that it is a stock model."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedModel

from laconic.calibrate import Calibration
from laconic.calibrate.expert_activity import measure_experts
from laconic.compress import Narrow
from laconic.compress.narrow_experts import choose_experts
from laconic.errors import Notice, UserError
from laconic.formats import ExpertLayer
from laconic.model import LanguageModel, load, predict
from laconic.model.expert_removal import keep_experts
from laconic.model.mixture import find_mixtures
from laconic.store import save
from tests.architectures import BY_NAME, Architecture, alike, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import LATENT, MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")

KEPT = [0, 2, 3]


def mixture(name: str) -> LanguageModel:
    return Architecture(name, MIXTURES[name][0]).lm()


def data_for(lm: LanguageModel, count: int = 4) -> Calibration:
    return Calibration(labelled_batches(lm, count))


def cut_by_hand(model: PreTrainedModel, kept: list[int]) -> None:
    """Index every tensor of the experts and the routers, and tell the configuration."""
    for module in model.modules():
        if not type(module).__name__.endswith(("Experts", "Router")):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(parameter[kept].clone()))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer[kept].clone())
        module.__dict__["num_experts"] = len(kept)
    keys = {"num_experts", "num_local_experts", "n_routed_experts"} & vars(model.config).keys()
    assert len(keys) == 1
    setattr(model.config, keys.pop(), len(kept))


@pytest.mark.parametrize("name", MIXTURES)
def test_kept_experts_compute_what_a_model_cut_by_hand_computes(name, tmp_path):
    lm, other = mixture(name), mixture(name).model
    keep_experts(lm, {mixture.path: KEPT for mixture in find_mixtures(lm.model)})
    cut_by_hand(other, KEPT)
    assert torch.equal(outputs(lm.model), outputs(other))
    save(lm, tmp_path / "small")
    # The configuration alone makes the smaller model, without laconic's formats.
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert "quantization_config" not in stock.config.to_dict()
    assert alike(outputs(stock), outputs(lm.model))
    tensors, reloaded = lm.model.state_dict(), stock.state_dict()
    assert tensors.keys() == reloaded.keys()
    assert all(torch.equal(tensors[key], reloaded[key]) for key in tensors)


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "gpt-oss", "qwen3-moe"])
def test_a_loaded_model_is_saved_again_in_its_original_names(name, tmp_path):
    """Loading merges the files' tensors of each expert, and saving splits what is left."""
    save(mixture(name), tmp_path / "whole")
    lm = load(str(tmp_path / "whole"))
    outcome = Narrow(experts=0.5, expert_importance="random").apply(lm, None)
    experts = [path for path in outcome.before if path.endswith(".experts")]
    assert experts and all(2 * outcome.after[path] == outcome.before[path] for path in experts)
    assert all(outcome.after[path] == outcome.before[path] for path in outcome.before if path not in experts)
    save(lm, tmp_path / "small")
    whole, small = (names_in(tmp_path / folder) for folder in ("whole", "small"))
    assert small <= whole
    if name != "gpt-oss":
        assert any(".experts.0." in each for each in small) and not any(".experts.2." in each for each in small)
    assert alike(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "small")), outputs(lm.model))


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


class Calls:
    """The inputs of the experts of one block in every forward pass, without padding."""

    def __init__(self, lm: LanguageModel, data: Calibration, number: int) -> None:
        self.hidden: list[Tensor] = []
        self.index: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.experts = find_mixtures(lm.model)[number].experts
        handle = self.experts.register_forward_pre_hook(self._keep)
        with torch.no_grad():
            for batch in data.batches:
                self._mask = batch["attention_mask"].bool().flatten()
                predict(lm, batch)
        handle.remove()

    def _keep(self, _: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> None:
        for kept, values in zip((self.hidden, self.index, self.weights), args, strict=True):
            kept.append(values[self._mask])

    def saliency(self, expert: int) -> tuple[int, float]:
        """The tokens of an expert, and its saliency by the equation, one token after another."""
        norms = []
        for hidden, index, weights in zip(self.hidden, self.index, self.weights, strict=True):
            for token, place in (index == expert).nonzero().tolist():
                norms.append((weights[token, place] * self.output(hidden[token], expert).norm()).item())
        return len(norms), sum(norms) / max(len(norms), 1)

    @torch.no_grad()
    def output(self, x: Tensor, expert: int) -> Tensor:
        """f_e(x) of gated experts, from their matrices."""
        tensors = {name: tensor[expert] for name, tensor in self.experts.named_parameters(recurse=False)}
        gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
        if "down_proj_bias" in tensors:
            # gpt-oss: (in, out), with rows of gate and up in turn, and a clamped gate.
            both = x @ gate_up + tensors["gate_up_proj_bias"]
            gate, up = both[::2].clamp(max=7), both[1::2].clamp(-7, 7)
            return ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ down + tensors["down_proj_bias"]
        gate, up = (gate_up @ x).chunk(2)
        return down @ (nn.functional.silu(gate) * up)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "deepseek-v3"])
def test_reap_by_hand(name):
    """The mean over the tokens of an expert of its weight times the norm of its output, without padding."""
    lm = mixture(name)
    data = data_for(lm, 6)
    before = outputs(lm.model)
    assert any(not batch["attention_mask"].all() for batch in data.batches)
    measured = measure_experts(lm, data)
    assert torch.equal(outputs(lm.model), before)
    for number, activity in enumerate(measured.values()):
        calls = Calls(lm, data, number)
        by_hand = [calls.saliency(expert) for expert in range(4)]
        assert activity.tokens.tolist() == [tokens for tokens, _ in by_hand]
        torch.testing.assert_close(activity.saliency.float(), torch.tensor([each for _, each in by_hand]))
    # The experts with the highest scores stay, in their order.
    outcome = Narrow(experts=0.5).apply(lm, data)
    for path, activity in measured.items():
        assert outcome.found["experts"]["kept"][path] == sorted(activity.saliency.topk(2).indices.tolist())


def test_measuring_computes_the_same_function_and_does_not_depend_on_the_batch_size():
    lm = mixture("qwen3-moe")
    batches = labelled_batches(lm, 4)
    rows = [{key: tensor[i : i + 1] for key, tensor in batch.items()} for batch in batches for i in range(2)]
    one, other = measure_experts(lm, Calibration(batches)), measure_experts(lm, Calibration(rows))
    for path in one:
        assert torch.equal(one[path].tokens, other[path].tokens)
        torch.testing.assert_close(one[path].weighted, other[path].weighted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt-oss", "deepseek-v3"])
def test_an_expert_that_no_token_reaches_goes_first_and_changes_nothing(name):
    lm = mixture(name)
    for found in find_mixtures(lm.model):
        tensors = dict((*found.router.named_parameters(), *found.router.named_buffers()))
        tensors["bias" if name == "gpt-oss" else "e_score_correction_bias"].data[1] = -1000
    before = outputs(lm.model)
    outcome = Narrow(experts=0.75).apply(lm, data_for(lm))
    assert all(kept == KEPT for kept in outcome.found["experts"]["kept"].values())
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MIXTURES)
def test_fewer_experts_than_a_token_has_lower_their_number(name, tmp_path):
    lm = mixture(name)
    with pytest.warns(Notice, match="^narrow:experts=0.01 keeps . of 4 experts of each block, because "):
        outcome = Narrow(experts=0.01, expert_importance="frequency").apply(lm, data_for(lm))
    # DeepSeek scores a group by its two best experts, so two of them stay.
    left = 2 if name == "deepseek-v3" else 1
    assert outcome.found["experts"]["per_token"] == left
    assert {(found.count, found.per_token) for found in find_mixtures(lm.model)} == {(left, left)}
    save(lm, tmp_path / "one")
    assert alike(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "one")), outputs(lm.model))


def grouped(k: int) -> LanguageModel:
    """Twelve experts in two groups, one of which a token may use, with `k` experts for each token."""
    shape = {**LATENT, "n_routed_experts": 12, "n_group": 2, "topk_group": 1, "num_experts_per_tok": k}
    return Architecture("deepseek-v3", lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**shape))).lm()


@pytest.mark.filterwarnings("ignore:narrow.experts=.* keeps:laconic.errors.Notice")
@pytest.mark.parametrize(("keep", "k", "left", "selected"), [(0.5, 4, 6, 3), (0.5, 2, 6, 2), (0.01, 3, 4, 2)])
def test_every_group_keeps_the_same_number_of_experts(keep, k, left, selected, tmp_path):
    """At least two, whose sum is the score of the group; a token then has at most the experts of its groups."""
    lm = grouped(k)
    data = data_for(lm)
    measured = measure_experts(lm, data)
    outcome = Narrow(experts=keep).apply(lm, data)
    for path, kept in outcome.found["experts"]["kept"].items():
        first, second = measured[path].saliency.split(6)
        best = [first.topk(left // 2).indices, 6 + second.topk(left // 2).indices]
        assert kept == sorted(torch.cat(best).tolist())
    assert {(found.count, found.per_token) for found in find_mixtures(lm.model)} == {(left, selected)}
    save(lm, tmp_path / "small")
    assert alike(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "small")), outputs(lm.model))


def test_random_experts_depend_on_the_seed_and_the_block():
    chosen = [
        Narrow(experts=0.5, expert_importance="random", seed=seed)
        .apply(mixture("mixtral"), None)
        .found["experts"]["kept"]
        for seed in (0, 0, 1, 2)
    ]
    assert chosen[0] == chosen[1] and len({str(kept) for kept in chosen}) > 1
    assert any(len({tuple(kept) for kept in by_block.values()}) > 1 for by_block in chosen)


def test_frequency_keeps_the_experts_of_most_tokens():
    lm = mixture("olmoe")
    data = data_for(lm)
    measured = measure_experts(lm, data)
    outcome = Narrow(experts=0.5, expert_importance="frequency").apply(lm, data)
    for path, kept in outcome.found["experts"]["kept"].items():
        assert kept == choose_experts(measured[path].tokens, 2)
        assert sum(measured[path].tokens[kept]) >= sum(measured[path].tokens) / 2


@pytest.mark.parametrize("name", ["qwen2-moe", "gpt-oss"])
def test_a_dry_run_gives_the_same_structure(name):
    step, lm, dry = Narrow(experts=0.5), mixture(name), mixture(name).to_meta()
    assert step.check_and_dry_run(dry) is None
    step.apply(lm, data_for(lm))
    assert dry.model.config.to_dict() == lm.model.config.to_dict()
    shapes, others = ({key: tensor.shape for key, tensor in each.model.state_dict().items()} for each in (dry, lm))
    assert shapes == others


def test_keeping_all_experts_changes_nothing():
    lm = mixture("mixtral")
    before, config = outputs(lm.model), lm.model.config.to_dict()
    Narrow(experts=1.0).apply(lm, None)
    assert torch.equal(outputs(lm.model), before) and lm.model.config.to_dict() == config


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"experts": 0}, r"^narrow.experts must be in \(0, 1\]; got 0"),
        ({"experts": 0.5, "ranking": "global"}, "ranking must be local or left out with experts, because the config"),
        ({"experts": 0.5, "expert_importance": "most"}, "expert_importance must be 'reap', 'frequency' or 'random'"),
        ({"heads": 0.5, "expert_importance": "random"}, "expert_importance must be left out without experts"),
        ({"experts": 0.5, "seed": 3}, "seed must be left out without expert_importance: random"),
        ({"experts": 0.5, "sequential": True}, "sequential and anchored have no effect on experts"),
    ],
)
def test_contradictions_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Narrow(**arguments)


def test_models_whose_experts_cannot_be_removed_are_one_sentence():
    with pytest.raises(UserError, match=r"^This 'llama' has no experts; leave out experts.$"):
        Narrow(experts=0.5).check(BY_NAME["llama"].lm())
    with pytest.raises(UserError, match="needs calibration data"):
        Narrow(experts=0.5).apply(mixture("mixtral"), None)
    lm = mixture("mixtral")
    first = find_mixtures(lm.model)[0]
    lm.model.set_submodule(first.path, ExpertLayer(first.experts))
    assert alike(outputs(lm.model), outputs(mixture("mixtral").model)) and len(find_mixtures(lm.model)) == 2
    with pytest.raises(UserError, match=r"^The experts 'model.layers.0.mlp.experts' are compressed already; remove"):
        Narrow(experts=0.5).check(lm)
    lm = mixture("mixtral")
    first = find_mixtures(lm.model)[0]
    first.router.register_buffer("table", torch.zeros(5, dtype=torch.long))
    with pytest.raises(UserError, match=r"^The router of 'model.layers.0.mlp.experts' selects experts by a table"):
        Narrow(experts=0.5).check(lm)
    lm = mixture("mixtral")
    first = find_mixtures(lm.model)[0]
    del first.owner.gate
    with pytest.raises(UserError, match=r"^The router of 'model.layers.0.mlp.experts' is not known"):
        Narrow(experts=0.5).check(lm)
    lm = mixture("mixtral")
    vars(find_mixtures(lm.model)[0].experts)["num_experts"] = 3
    with pytest.raises(UserError, match=r"different numbers of experts \(3, 4\)"):
        Narrow(experts=0.5).check(lm)
    lm = mixture("mixtral")
    find_mixtures(lm.model)[0].router.register_parameter("scale", nn.Parameter(torch.ones(4)))
    with pytest.raises(UserError, match=r"because its class would build another model: 'model.layers.0.mlp.gate'"):
        Narrow(experts=0.5).check(lm)
