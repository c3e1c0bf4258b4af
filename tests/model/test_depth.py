"""Fewer blocks: the same function as with those skipped, and nothing that depends on place is lost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

from laconic.compress import Compress
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.model import LanguageModel
from laconic.model.depth import drop_blocks
from laconic.model.layers import Layers, consecutive_ranges, find_layers, group_schedule
from tests.architectures import BY_NAME, EVERY_ARCHITECTURE, GPT2, SMALL, batch_for, outputs
from tests.tiny_models import RELATIVE

DEEPER = {
    "num_hidden_layers": 4,
    "n_layers": 4,
    "n_layer": 4,
    "num_layers": 4,
    "encoder_layers": 4,
    "decoder_layers": 4,
}


def deep(name: str, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """The architecture with four blocks in each stack, where its configuration says two."""
    import tests.tiny_models as tiny
    import tests.tiny_relatives as relatives

    for table in (tiny.ENCODER, tiny.DISTILBERT, tiny.RELATIVE, tiny.WINDOWED, tiny.GPT2, tiny.GPT_NEO, tiny.OPT,
                  tiny.DECODER, tiny.T5, tiny.BART, tiny.MARIAN, tiny.LED,
                  relatives.BLOOM, relatives.MPT, relatives.FALCON):  # fmt: skip
        for key in table.keys() & DEEPER.keys():
            monkeypatch.setitem(table, key, DEEPER[key])
    monkeypatch.setitem(tiny.GPT_NEO, "attention_types", [[["global", "local"], 2]])
    return BY_NAME[name].lm()


def skip(module: nn.Module, calls: set[int]) -> Callable[[], None]:
    """Make the module give back what it is given, in those of its calls; a function that ends this."""
    seen = [-1]

    def on_return(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        seen[0] += 1
        entered = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if seen[0] not in calls:
            return output
        return (entered, *output[1:]) if isinstance(output, tuple) else entered

    return module.register_forward_hook(on_return, with_kwargs=True).remove


def skipping(lm: LanguageModel, layers: Layers, indices: set[int]) -> torch.Tensor:
    """The outputs of the model when its forward pass skips those layers."""
    calls: dict[str, set[int]] = {}
    for index in indices:
        path = layers.paths[index]
        calls.setdefault(path, set()).add(layers.paths[:index].count(path))
    ends = [skip(lm.model.get_submodule(path), numbers) for path, numbers in calls.items()]
    found = outputs(lm.model)
    for end in ends:
        end()
    return found


CASES = [pytest.param(a.name, id=a.name) for a in EVERY_ARCHITECTURE]


@pytest.mark.parametrize("name", CASES)
def test_dropping_is_skipping(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, one in the middle, two apart and the last, of each stack."""
    lm = deep(name, monkeypatch)
    for layers in find_layers(lm):
        count = len(layers)
        for indices in ({0}, {count // 2}, {0, 2}, {count - 1}):
            if name == "modernbert-masked" and 0 in indices:
                continue
            if name == "albert-groups" and indices not in ({0, 2}, {count - 1}):
                continue
            small = lm.shallow_copy()
            drop_blocks(small, next(one for one in find_layers(small) if one.name == layers.name), indices)
            assert torch.allclose(outputs(small.model), skipping(lm, layers, indices), atol=1e-5), (
                indices,
                layers.name,
            )
            assert len(next(one for one in find_layers(small) if one.name == layers.name)) == count - len(indices)
        assert len(find_layers(lm)[0]) == len(find_layers(deep(name, monkeypatch))[0]), "the twin has its own modules"


GENERATE = [
    "gpt2", "gpt-neo", "gpt-neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi",
    "t5", "t5-gated", "bart", "marian", "led",
]  # fmt: skip


@pytest.mark.parametrize("name", GENERATE)
@pytest.mark.parametrize("indices", [{0}, {1, 3}])
def test_generation_with_a_cache_is_that_without(name: str, indices: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep(name, monkeypatch)
    # Of an encoder-decoder both stacks, of different depth afterwards.
    for layers in find_layers(lm):
        drop_blocks(lm, layers, indices if layers.name != "encoder" else {2})
    model = lm.model
    assert isinstance(model, PreTrainedModel)
    tokens = torch.tensor([[5, 9, 7, 4]])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    cached, plain = (model.generate(tokens, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)


def test_t5_keeps_its_table() -> None:
    lm = BY_NAME["t5"].lm()
    tables = [
        stack.block[0].layer[0].SelfAttention.relative_attention_bias for stack in (lm.model.encoder, lm.model.decoder)
    ]
    for layers in find_layers(lm):
        drop_blocks(lm, layers, {0})
    for stack, table in zip((lm.model.encoder, lm.model.decoder), tables, strict=True):
        attention = stack.block[0].layer[0].SelfAttention
        assert attention.relative_attention_bias is table and attention.has_relative_attention_bias
        assert stack.config.num_layers == 1
    assert (lm.model.config.num_layers, lm.model.config.num_decoder_layers) == (1, 1)


def test_scales_by_place_move_into_the_queries() -> None:
    torch.manual_seed(0)
    config = hf.GPT2Config(**{**GPT2, "n_layer": 3}, **SMALL, scale_attn_by_inverse_layer_idx=True)
    lm = LanguageModel.of(hf.GPT2LMHeadModel(config).eval())
    (layers,) = find_layers(lm)
    expected = skipping(lm, layers, {0})
    small = lm.shallow_copy()
    drop_blocks(small, find_layers(small)[0], {0})
    assert torch.allclose(outputs(small.model), expected, atol=1e-6)
    again = type(small.model)(small.model.config).eval()
    again.load_state_dict(small.model.state_dict())
    assert torch.allclose(outputs(again), expected, atol=1e-6)
    Compress(method=Svd(rank=8), targets=("*.1.attn.c_attn",)).apply(lm, None)
    with pytest.raises(UserError, match=r"'transformer.h.1.attn.c_attn' is compressed already"):
        drop_blocks(lm, layers, {0})


@pytest.mark.parametrize(
    ("name", "indices", "sentence"),
    [
        ("bert-base", {0, 1}, r"^All 2 blocks of the model would be dropped; at least one must stay\.$"),
        ("bart", {0, 1}, r"^All 2 blocks of the encoder would be dropped"),
        ("gpt2", {2}, r"^There is no block 2 in the model: it has 2, numbered from 0\.$"),
        ("modernbert-masked", {0}, r"^Block 0 of 'modernbert' must stay"),
        ("albert-groups", {0}, r"^The groups of 'albert' must be called equally often"),
    ],
)
def test_what_cannot_go_is_one_sentence(name: str, indices: set[int], sentence: str) -> None:
    lm = BY_NAME[name].lm()
    before = outputs(lm.model)
    with pytest.raises(UserError, match=sentence):
        drop_blocks(lm, find_layers(lm)[0], indices)
    assert torch.equal(outputs(lm.model), before)


def test_a_block_that_a_convolution_follows_must_stay() -> None:
    model = hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**RELATIVE, position_buckets=4, conv_kernel_size=3)).eval()
    lm = LanguageModel.of(model)
    with pytest.raises(UserError, match=r"^Block 0 of 'deberta-v2' must stay"):
        drop_blocks(lm, find_layers(lm)[0], {0})
    expected = skipping(lm, find_layers(lm)[0], {1})
    drop_blocks(lm, find_layers(lm)[0], {1})
    assert torch.allclose(outputs(model), expected, atol=1e-6)


def test_an_architecture_found_by_structure_can_be_shortened() -> None:
    config = hf.ErnieConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                            intermediate_size=48, max_position_embeddings=40)  # fmt: skip
    model = hf.ErnieModel(config).eval()
    with pytest.warns(match="has no entry"):
        lm = LanguageModel.of(model)
    expected = skipping(lm, find_layers(lm)[0], {1})
    drop_blocks(lm, find_layers(lm)[0], {1})
    assert torch.allclose(model(**batch_for(model))[0], expected, atol=1e-6)
    assert model.config.num_hidden_layers == 2


def test_numbers_as_runs() -> None:
    assert consecutive_ranges([5, 1, 2, 7]) == [range(1, 3), range(5, 6), range(7, 8)]
    assert group_schedule(5, 2) == [0, 0, 0, 1, 1]
