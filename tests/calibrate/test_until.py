"""Runs that end once everything that is listened to has been called."""

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from laconic.calibrate import Calibration, InputCovariance, collect_stats, sequential_calibrate
from laconic.calibrate.activation_capture import ActivationCapture, RunUntil
from laconic.methods import Wanda
from laconic.model import LanguageModel
from tests.calibrate.test_collect_stats import labelled_batches
from tests.tiny_models import DECODER


class Routed(nn.Module):
    """Two experts, of which one may have no token, and a last layer; `reads` counts what each has run on."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        for number, expert in enumerate(self.experts):
            if bool((chosen == number).any()):
                x = torch.where((chosen == number)[:, None], expert(x), x)
        return self.last(x)


def runs(chosen: list[list[int]], *, returned: bool = False) -> list[list[int]]:
    """The number of calls of the experts and of the last layer in each run, and of their returns."""
    model, heard = Routed(), []
    with (
        ActivationCapture(model, ["experts.0", "experts.1", "last"]) as tap,
        RunUntil(model.experts, returned=returned) as until,
    ):
        for tokens in chosen:
            tap.clear()
            with until.run():
                model(torch.ones(len(tokens), 3), torch.tensor(tokens))
            heard.append([*map(len, tap.inputs.values()), *map(len, tap.outputs.values())])
    return heard


def test_the_first_run_goes_to_its_end_and_shows_where_the_others_may() -> None:
    whole = [1, 1, 1, 1, 1, 1]
    assert runs([[0, 1], [0, 1]]) == [whole, [1, 1, 0, 1, 0, 0]]
    assert runs([[0, 1], [0, 1]], returned=True) == [whole, [1, 1, 0, 1, 1, 0]]


def test_an_expert_without_tokens_is_waited_for() -> None:
    only_first = [1, 0, 1, 1, 0, 1]
    # Nothing is known of where runs may end before all were called in one of them.
    assert runs([[0, 0], [0, 1], [0, 0], [1, 0]]) == [only_first, [1] * 6, only_first, [1, 1, 0, 1, 0, 0]]


def test_a_layer_that_is_called_twice_is_heard_twice() -> None:
    layer, calls = nn.Linear(3, 3), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    with RunUntil([layer], returned=True) as until:
        for _ in range(2):
            with until.run():
                layer(layer(torch.ones(1, 3)))
                calls.append(2)
    assert calls == [1, 1, 2, 1, 1]
    assert len(layer._forward_hooks) == 1


@pytest.mark.filterwarnings("ignore:.*experts of .* saw fewer tokens")
def test_a_mixture_of_experts_is_walked_as_any_other() -> None:
    config = hf.Qwen2MoeConfig(
        **DECODER, moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=4, num_experts_per_tok=2
    )
    torch.manual_seed(0)
    lm = LanguageModel.of(hf.Qwen2MoeForCausalLM(config).eval())
    data, sites = Calibration(labelled_batches(lm, 3)), lm.sites()
    assert {"shared_expert", "experts"} <= {site.name.split(".")[4] for site in sites if ".mlp." in site.name}
    for step in sequential_calibrate(lm, data, {InputCovariance}, sites):
        now = collect_stats(lm, data, {InputCovariance}, [site for site, _ in step])
        for site, problem in step:
            mine, other = problem.stats[InputCovariance].matrix, now[site.name][InputCovariance].matrix
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5 * other.abs().max().item()), site.name
            # Experts are replaced stack by stack; here they stay.
            if site.stack is None:
                lm.replace(site, Wanda(sparsity=0.5).compress(problem.weight, problem.stats))
