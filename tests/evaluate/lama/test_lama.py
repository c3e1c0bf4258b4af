"""LAMA equals a brute-force reference, one fact at a time, for a model of each kind."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate.lama import Lama
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.architectures import BY_NAME
from tests.tokens import letters
from tests.words import SENTINELS, WORDS, words

CITIES = ("Paris", "London", "Rome", "Oslo", "Berlin", "Madrid", "Vienna", "Lisbon", "New York")
"""The last two are no tokens."""
KINDS = ("bert-masked", "roberta-masked", "gpt2", "llama", "t5", "bart")


def reader(name: str) -> LanguageModel:
    lm = BY_NAME[name].lm()
    tokenizer = {
        "causal": lambda: words("start"),
        "masked": words,
        "seq2seq": lambda: words("end", sentinels=True) if name == "t5" else words(),
    }[lm.task.value]()
    return replace(lm, tokenizer=tokenizer)


def facts(rows: int, seed: int = 0) -> Corpus:
    """Random sentences of two relations and another corpus, some of which cannot be asked."""
    draw = random.Random(seed)
    examples = []
    for _ in range(rows):
        sentence = draw.choices(WORDS, k=draw.randint(2, 7))
        sentence.insert(draw.randrange(len(sentence)), "[MASK]")
        if draw.random() < 0.1:
            sentence.append("[MASK]")
        answer, *also = draw.sample(CITIES, draw.randint(1, 4))
        group = draw.choice(("trex/P36", "trex/P36", "trex/P20", "google_re/place_of_birth"))
        examples.append(Example(" ".join(sentence), target=answer, other_targets=tuple(also), group=group))
    return Corpus("lama", "test", tuple(examples), CITIES)


@torch.no_grad()
def logits_at_the_gap(lm: LanguageModel, sentence: str) -> torch.Tensor:
    """The logits of the model at the gap, computed by hand from the ids of words."""
    assert lm.tokenizer is not None
    number, config = lm.tokenizer.get_vocab(), lm.model.config
    special = {name: number.get(name) for name in ("<s>", "</s>", "<mask>", *SENTINELS)}
    tokens = sentence.split(" ")
    at = tokens.index("[MASK]")
    if lm.task.value == "causal":
        ids = [special["<s>"], *(number[token] for token in tokens[:at])]
        return lm.model(torch.tensor([ids])).logits[0, -1]
    if config.model_type == "t5":
        gaps = iter(SENTINELS)
        ids = [special[next(gaps)] if token == "[MASK]" else number[token] for token in tokens] + [special["</s>"]]
        said = [config.decoder_start_token_id, special["<extra_id_0>"]]
        return lm.model(torch.tensor([ids]), decoder_input_ids=torch.tensor([said])).logits[0, -1]
    filled = [special["<mask>"] if token == "[MASK]" else number[token] for token in tokens]
    ids = [special["<s>"], *filled, special["</s>"]]
    if config.model_type == "bart":
        said = [config.decoder_start_token_id, special["<s>"], *filled[:at]]
        return lm.model(torch.tensor([ids]), decoder_input_ids=torch.tensor([said])).logits[0, -1]
    return lm.model(torch.tensor([ids])).logits[0, at + 1]


def reference(lm: LanguageModel, corpus: Corpus, every_token: bool) -> dict[int, int]:
    """By its place, the rank of each answer that is one token: sorted, without the other right ones."""
    assert lm.tokenizer is not None
    number = lm.tokenizer.get_vocab()
    ranks = {}
    for at, fact in enumerate(corpus.examples):
        if fact.target not in number:
            continue
        scores = logits_at_the_gap(lm, fact.text).tolist()
        candidates = range(len(scores)) if every_token else [number[city] for city in CITIES if city in number]
        right = {number[city] for city in fact.other_targets if city in number}
        ordered = sorted((token for token in candidates if token not in right), key=lambda token: -scores[token])
        ranks[at] = 1 + ordered.index(number[fact.target])
    return ranks


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("vocabulary", ["answers", "all"])
def test_ranks_equal_a_reference_on_two_hundred_facts(name: str, vocabulary: str):
    lm, corpus = reader(name), facts(200)
    judged = Lama(None, vocabulary).evaluate(lm, corpus, silent)
    expected = reference(lm, corpus, every_token=vocabulary == "all")
    assert 100 < len(expected) < 200
    assert judged.rows == tuple(expected)
    assert judged.table[:, 0].tolist() == list(expected.values())
    assert len(set(expected.values())) > 4
    assert judged.settings["left_out"] == {"answer not one token": 200 - len(expected)}
    assert judged.settings["candidates"] == (lm.model.config.vocab_size if vocabulary == "all" else 7)
    by_group = {group: [rank for at, rank in expected.items() if corpus.examples[at].group == group]
                for group in ("trex/P36", "trex/P20", "google_re/place_of_birth")}  # fmt: skip
    for metric, figure in (("p@1", lambda rank: rank <= 1), ("p@5", lambda rank: rank <= 5), ("mrr", lambda r: 1 / r)):
        means = {group: np.mean([figure(rank) for rank in ranks]) for group, ranks in by_group.items()}
        trex = (means["trex/P36"] + means["trex/P20"]) / 2
        assert judged.metrics[f"{metric}/trex"](judged.table) == pytest.approx(trex)
        overall = (trex + means["google_re/place_of_birth"]) / 2
        assert judged.metrics[metric](judged.table) == pytest.approx(overall)
    assert judged.settings["relations"]["trex/P20"] == {
        "rows": len(by_group["trex/P20"]),
        "p@1": np.mean([rank == 1 for rank in by_group["trex/P20"]]),
    }


def test_a_single_corpus_has_its_four_metrics():
    judged = Lama("trex").evaluate(reader("bert-masked"), only("trex/P36"), silent)
    assert set(judged.metrics) == {"p@1", "p@5", "p@10", "mrr"}


def only(group: str) -> Corpus:
    corpus = facts(40)
    return replace(corpus, examples=tuple(row for row in corpus.examples if row.group == group))


def test_what_cannot_be_asked_is_counted_by_reason():
    rows = (
        Example("Paris is [MASK]", target="Rome", group="trex/P1"),
        Example("", target="Rome", group="trex/P1"),
        Example("is " * 100 + "[MASK]", target="Rome", group="trex/P1"),
        Example("is " * 60 + "[MASK]", target="Rome", group="trex/P1"),
        Example("[MASK] is", target="Lisbon", group="trex/P1"),
        Example("[MASK] is", target="Oslo", group="trex/P1"),
        Example("[MASK] is", target="Rome", group="trex/P1"),
    )
    corpus = Corpus("lama/trex", "test", rows, ("Rome", "Paris"))
    lm = reader("gpt2")
    judged = Lama("trex").evaluate(lm, corpus, silent)
    assert judged.rows == (0, 6)
    assert judged.settings["left_out"] == {
        "answer not in the vocabulary": 1,
        "answer not one token": 1,
        "longer than the model reads": 1,
        "no sentence with a gap": 1,
        "over 100 words": 1,
    }
    unstarted = replace(lm, tokenizer=words("start", bos_token=None, eos_token=None))
    judged = Lama("trex").evaluate(unstarted, corpus, silent)
    assert judged.rows == (0,) and judged.settings["left_out"]["nothing before the gap"] == 1


def test_a_model_that_says_the_same_of_every_word_knows_nothing():
    lm = reader("bert-masked")
    decoder = lm.model.get_output_embeddings()
    torch.nn.init.zeros_(decoder.get_parameter("weight"))
    torch.nn.init.zeros_(decoder.get_parameter("bias"))
    judged = Lama("trex").evaluate(lm, only("trex/P36"), silent)
    assert judged.metrics["p@1"](judged.table) == 0


def test_models_that_cannot_be_asked_are_refused_in_a_sentence():
    corpus = facts(3)
    for name, kind in (("bert-classifier", "a classification"), ("bert-base", "an embedding")):
        with pytest.raises(UserError, match=f"'lama' needs a masked or causal or seq2seq model; .* is {kind} model"):
            Lama().evaluate(replace(BY_NAME[name].lm(), tokenizer=words()), corpus, silent)
    with pytest.raises(UserError, match=r"No fact of 'lama' is a question .* \(3 rows: answer not one token\)"):
        Lama().evaluate(replace(BY_NAME["gpt2"].lm(), tokenizer=letters("start")), corpus, silent)
    for name in ("bert-masked", "bart"):
        with pytest.raises(UserError, match="cannot fill gaps: its tokenizer has no mask token"):
            Lama().evaluate(replace(BY_NAME[name].lm(), tokenizer=words(mask_token=None)), corpus, silent)
    with pytest.raises(UserError, match="has no tokenizer"):
        Lama().evaluate(BY_NAME["gpt2"].lm(), corpus, silent)


def test_a_kept_table_has_the_same_figures():
    judged = Lama().evaluate(reader("gpt2"), facts(40), silent)
    kept = Lama().metrics(json.loads(json.dumps(dict(judged.settings))))
    assert [(name, of(judged.table)) for name, of in kept.items()] == [
        (name, of(judged.table)) for name, of in judged.metrics.items()
    ]
    assert len(kept) > 4


def test_two_models_are_compared_on_a_thousand_sentences():
    rows = [Example("It is [MASK].", target=f"{at}", group=f"trex/P{36 if at < 1900 else 20}") for at in range(2000)]
    texts = Lama().texts(Corpus("lama", "test", (Example("", target="Paris", group="trex/P20"), *rows)))
    assert len(texts.examples) == 1000
    assert (texts.examples[0].text, texts.examples[-1].text) == ("It is 0.", "It is 1999.")
    # All of the small relation, and of the large one as many as there is room for.
    assert texts.examples[899].text == "It is 899." and texts.examples[900].text == "It is 1900."
