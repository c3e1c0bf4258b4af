"""Exact match and token accuracy against decoding and scoring row by row."""

from dataclasses import replace

import pytest
import torch
from tokenizers.normalizers import Replace

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate.seq2seq import METRICS, Seq2Seq
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.architectures import WIDTH
from tests.evaluate.models import with_tokenizer
from tests.tokens import letters

SOURCES = ("tale", "of two cities", "it was", "the best", "of times", "wisdom", "a", "the worst", "an age", "hope")
LONGEST = 20


def that_stops(name: str) -> LanguageModel:
    """A random model whose end token is often the likeliest one, so that it ends most of its texts."""
    lm = with_tokenizer(name)
    head = lm.model.get_output_embeddings().get_parameter("weight")
    with torch.no_grad():
        head[lm.model.config.eos_token_id] = 0.8 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    return lm


@torch.no_grad()
def decoded(lm: LanguageModel, source: str) -> str | None:
    """The text that the model generates greedily for one source; None if it does not end."""
    tokenizer, config = lm.tokenizer, lm.model.config
    assert tokenizer is not None
    ids, written = tokenizer(source, return_tensors="pt")["input_ids"], [config.decoder_start_token_id]
    while len(written) < LONGEST:
        logits = lm.model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == config.eos_token_id:
            return tokenizer.decode(written, skip_special_tokens=True).strip()
    return None


@pytest.mark.parametrize("name", ["t5-gated", "bart-untied"])
def test_exact_match_equals_decoding_by_hand(name: str):
    lm = that_stops(name)
    said = {source: text for source in SOURCES if (text := decoded(lm, source))}
    assert len(set(said.values())) > 2
    # Every other row asks for something else; the last one is long, so that no text is cut short.
    examples = [
        Example(source, target=text if at % 2 == 0 else f"{text}x") for at, (source, text) in enumerate(said.items())
    ]
    examples.append(Example("a", target="z" * LONGEST))
    table = Seq2Seq("x").evaluate(lm, Corpus("x", "dev", tuple(examples)), silent).table
    assert table[:, 0].tolist() == [float(at % 2 == 0) for at in range(len(said))] + [0]
    assert METRICS["exact_match"](table) == -(-len(said) // 2) / len(examples)


@pytest.mark.parametrize("name", ["t5", "bart-untied"])
@torch.no_grad()
def test_token_accuracy_equals_a_row_by_row_reference(name: str):
    lm = that_stops(name)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    examples = tuple(Example(source, target=source[::-1]) for source in SOURCES)
    table = Seq2Seq("x").evaluate(lm, Corpus("x", "dev", examples), silent).table
    right, tokens = 0, 0
    for example, line in zip(examples, table.tolist(), strict=True):
        ids, labels = tokenizer(example.text, return_tensors="pt"), tokenizer(example.target, return_tensors="pt")
        logits = lm.model(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], labels=labels["input_ids"]
        ).logits
        counts = [int((logits.argmax(-1) == labels["input_ids"]).sum()), labels["input_ids"].numel()]
        assert line[1:] == counts
        right, tokens = right + counts[0], tokens + counts[1]
    assert right > 0
    assert METRICS["token_accuracy"](table) == right / tokens


def test_a_row_without_tokens_leaves_the_others_with_their_own_targets():
    tokenizer = letters("none")
    # Its tokenizer drops this sign, so the text is there and its tokens are not.
    tokenizer.backend_tokenizer.normalizer = Replace("#", "")
    lm = replace(that_stops("bart-untied"), tokenizer=tokenizer)
    said = {source: text for source in SOURCES if (text := decoded(lm, source))}
    rows = [Example("a", target="z" * LONGEST), Example("a", target="#"), Example("#", target="a")]
    rows += [Example(source, target=text) for source, text in said.items()]
    judged = Seq2Seq("x").evaluate(lm, Corpus("x", "dev", tuple(rows)), silent)
    assert judged.rows == (0, *range(3, len(rows)))
    assert judged.table[:, 0].tolist() == [0] + [1] * len(said)


def test_rows_without_a_target_and_other_models_are_refused():
    corpus = Corpus("x", "dev", (Example("a", target="b"), Example("c")))
    with pytest.raises(UserError, match="'seq2seq:x' needs rows with a source and a target"):
        Seq2Seq("x").evaluate(with_tokenizer("bart"), corpus, silent)
    with pytest.raises(UserError, match=r"needs a seq2seq model; .* is a causal model"):
        Seq2Seq("x").evaluate(with_tokenizer("gpt2"), corpus, silent)
