"""Exact match and token accuracy against generating and scoring row by row."""

import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate.seq2seq import METRICS, Seq2Seq
from laconic.progress import silent
from tests.evaluate.models import with_tokenizer

SOURCES = ("tale", "of two cities", "it was", "the best", "of times")


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_both_metrics_equal_a_row_by_row_reference(name: str):
    lm = with_tokenizer(name)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    said = []
    for source in SOURCES:
        ids = tokenizer(source, return_tensors="pt")
        written = lm.model.generate(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=20, do_sample=False
        )
        said.append(tokenizer.decode(written[0], skip_special_tokens=True))
    # A random model does not stop by itself, so only the rows that it ends in time can be exact.
    examples = tuple(Example(source, target=text or "a") for source, text in zip(SOURCES, said, strict=True))
    table = Seq2Seq("x").judge(lm, Corpus("x", "dev", examples), silent).table
    for example, (_, right, tokens) in zip(examples, table.tolist(), strict=True):
        ids, labels = tokenizer(example.text, return_tensors="pt"), tokenizer(example.target, return_tensors="pt")
        logits = lm.model(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], labels=labels["input_ids"]
        ).logits
        assert right == (logits.argmax(-1) == labels["input_ids"]).sum()
        assert tokens == labels["input_ids"].numel()
    assert METRICS["token_accuracy"](table) == table[:, 1].sum() / table[:, 2].sum()
    assert METRICS["exact_match"](table) == table[:, 0].mean()


def test_rows_without_a_target_and_other_models_are_refused():
    corpus = Corpus("x", "dev", (Example("a", target="b"), Example("c")))
    with pytest.raises(UserError, match="'seq2seq:x' needs rows with a source and a target"):
        Seq2Seq("x").judge(with_tokenizer("bart"), corpus, silent)
    with pytest.raises(UserError, match=r"needs a seq2seq model; .* is a causal model"):
        Seq2Seq("x").judge(with_tokenizer("gpt2"), corpus, silent)
