"""The parameters that a token uses in a mixture of experts, wherever they are told."""

import pytest
import torch

from laconic import evaluate, inspect
from laconic.calibrate.passes import random_batch
from laconic.compress import Narrow
from laconic.evaluate import measure_cost
from laconic.evaluate.footprint import count_macs
from laconic.formats import ExpertLayer
from laconic.model.active_parameters import count_active
from laconic.model.mixture import find_mixtures
from laconic.model.size import count_parameters
from laconic.report.evaluation import cost_tables
from laconic.store.card import model_card
from tests.architectures import BY_NAME, Architecture
from tests.experts import EXPERTS, MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")


@pytest.mark.parametrize("name", MIXTURES)
def test_a_token_uses_all_but_the_experts_that_do_not_read_it(name):
    lm = Architecture(name, MIXTURES[name][0]).lm()
    stacks = [
        parameter.numel()
        for path, parameter in lm.model.named_parameters()
        if ".experts." in path and parameter.shape[0] == EXPERTS
    ]
    active = count_active(lm.model)
    assert active is not None and active.experts == "2 of 4 experts"
    assert active.total == lm.model.num_parameters() == lm.size()[0]
    assert active.active == active.total - sum(stacks) // 2


def test_models_without_experts_say_nothing():
    lm = BY_NAME["llama"].lm()
    assert count_active(lm.model) is None
    cost = measure_cost(lm, None, (1,), (4,)).to_json()
    assert "active_parameters" not in cost
    assert "active parameters" not in [column.heading for column in cost_tables({"a": cost})["Size"].columns]
    assert "active" not in model_card(lm.model, "small", "", 1) and "Mixture" not in str(inspect(lm.model))


def test_every_place_says_the_same_before_and_after():
    whole, lm = (Architecture("qwen3-moe", MIXTURES["qwen3-moe"][0]).lm() for _ in range(2))
    Narrow(experts=0.5, expert_importance="random").apply(lm, None)
    before, after = count_active(whole.model), count_active(lm.model)
    assert before is not None and after is not None
    # As many experts read a token, and nothing else but rows of the router is gone.
    router = sum(found.router.get_parameter("weight").numel() for found in find_mixtures(lm.model))
    assert after.experts == "2 of 2 experts" and after.active == after.total == before.active - router
    assert count_parameters(lm.model) == after.total
    result = evaluate(lm.model, against=whole.model, batch=1, length=4)
    assert result.cost is not None and result.cost.active_parameters == after.active
    costs = {"this model": result.to_dict()["cost"], "original": result.to_dict()["original"]["cost"]}
    assert [cost["active_parameters"] for cost in costs.values()] == [after.active, before.active]
    table = cost_tables(costs)["Size"]
    place = [column.heading for column in table.columns].index("active parameters")
    assert [row[place] for row in table.rows] == [after.active, before.active]
    sentence = f"{after.total:,d} parameters, of which a token uses {after.active:,d} (2 of 2 experts)"
    assert f"A mixture of experts: {sentence}." in model_card(lm.model, "small", "", 1)
    seen = inspect(whole.model)
    assert f"Mixture of experts: {before}" in str(seen)
    assert seen.to_dict()["active_parameters"] == before.active


def test_what_a_router_does_not_say_is_not_counted():
    lm = Architecture("mixtral", MIXTURES["mixtral"][0]).lm()
    owner = find_mixtures(lm.model)[0].owner
    owner.gate = torch.nn.Identity()
    del owner.gate
    assert count_active(lm.model) is None


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "deepseek-v3"])
def test_operations_are_those_of_the_experts_that_read_a_token(name):
    """With all experts for each token there are as many more as the experts that read none have weights."""
    lm = Architecture(name, MIXTURES[name][0]).lm()
    inputs = random_batch(lm, 2, 5)
    few = count_macs(lm, inputs)
    mixtures = find_mixtures(lm.model)
    for found in mixtures:
        lm.model.set_submodule(found.path, ExpertLayer(found.experts))
    assert count_macs(lm, inputs) == few
    for found in mixtures:
        found.router.top_k = EXPERTS
    weights = sum(
        parameter.numel() for found in mixtures for parameter in found.experts.parameters() if parameter.dim() == 3
    )
    assert count_macs(lm, inputs) - few == 10 * weights // 2
