"""The activity of experts in an encoder-decoder, and of experts that are called with arguments by name."""

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from laconic.calibrate import Calibration, InputCovariance, collect_stats
from laconic.calibrate.expert_activity import ExpertActivity, measure_experts
from laconic.calibrate.passes import random_batch
from laconic.evaluate.footprint import count_macs
from laconic.model import Batch, LanguageModel
from tests.architectures import DECODER, SMALL, T5, WIDTH, Architecture
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import EXPERTS, MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.Notice")


def encoder_decoder() -> LanguageModel:
    """T5 whose feed-forwards are mixtures."""
    model = hf.T5ForConditionalGeneration(hf.T5Config(**T5))
    config = hf.MixtralConfig(**DECODER, **SMALL, num_local_experts=EXPERTS, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            block.layer[-1].DenseReluDense = MixtralSparseMoeBlock(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=WIDTH**-0.5, generator=generator)
    return LanguageModel.of(model.eval())


def alone(batch: Batch) -> list[Batch]:
    """The rows of a batch without padding."""
    rows = []
    for number in range(len(batch["input_ids"])):
        row = {name: tensor[number : number + 1] for name, tensor in batch.items()}
        source, target = row["attention_mask"][0].bool(), row["labels"][0] != -100
        rows.append({"labels": row["labels"][:, target]} | {key: row[key][:, source] for key in row if key != "labels"})
    return rows


def assert_same(one: dict[str, ExpertActivity], other: dict[str, ExpertActivity]) -> None:
    assert one.keys() == other.keys() and one
    for path, activity in one.items():
        assert torch.equal(activity.tokens, other[path].tokens), path
        torch.testing.assert_close(activity.weighted, other[path].weighted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [6, 7])
def test_padding_of_sources_and_targets_does_not_count(width):
    """Nor if the batch has as many source as target tokens, with different padding."""
    lm = encoder_decoder()
    batches = labelled_batches(lm)
    for batch in batches:
        batch["labels"] = nn.functional.pad(batch["labels"], (0, width - 6), value=-100)
    together = measure_experts(lm, Calibration(batches))
    apart = measure_experts(lm, Calibration([row for batch in batches for row in alone(batch)]))
    assert_same(together, apart)
    assert {path.partition(".")[0] for path in together} == {"encoder", "decoder"}


class ByName(MixtralSparseMoeBlock):
    """The block of Mixtral, which gives the arguments of its experts by name."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        tokens = hidden_states.view(-1, hidden_states.shape[-1])
        _, weights, index = self.gate(tokens)
        outputs = self.experts(top_k_weights=weights, hidden_states=tokens, top_k_index=index)
        return outputs.view_as(hidden_states)


def test_arguments_of_experts_may_be_given_by_name():
    lm, other = (Architecture("mixtral", MIXTURES["mixtral"][0]).lm() for _ in range(2))
    for block in other.model.model.layers:
        block.mlp.__class__ = ByName
    data = Calibration(labelled_batches(lm))
    assert_same(measure_experts(lm, data), measure_experts(other, data))
    inputs = random_batch(lm, 2, 5)
    assert count_macs(lm, inputs) == count_macs(other, inputs)
    one, two = (collect_stats(each, data, {InputCovariance}, each.sites(("experts",))) for each in (lm, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name][InputCovariance].matrix, two[name][InputCovariance].matrix) for name in one)
