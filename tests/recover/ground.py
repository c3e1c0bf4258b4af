"""Tiny models with a corpus of letters that they can be trained on, and what training must leave as it is."""

from dataclasses import replace

from laconic.calibrate import Calibration
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example, sample
from laconic.model import LanguageModel, ModelTask
from tests.architectures import BY_NAME
from tests.tokens import letters

SHORT = {"epochs": 4.0, "batch_size": 8, "evaluations": 2, "learning_rate": 3e-3}
WORDS = ("a tale of two cities", "it was", "the best of times", "of times", "the worst", "an age", "of wisdom", "it is")


def corpus(rows: int = 40) -> Corpus:
    """Words and what they are: a class by their length, and themselves without their first letter as a target."""
    texts = [f"{WORDS[at % 8]} {WORDS[at * 3 % 7]}" for at in range(rows)]
    examples = tuple(Example(text, label=float(len(text) > 18), target=text[1:6]) for text in texts)
    return Corpus("words", "train", examples)


def lm_of(name: str, seed: int = 0) -> LanguageModel:
    """A tiny model with a tokenizer of letters."""
    special = "start" if name in ("gpt2", "llama", "gpt-neox") else "pair"
    return replace(BY_NAME[name].lm(seed), tokenizer=letters(special))


def data_for(lm: LanguageModel, rows: int = 40) -> Calibration:
    """The corpus, and some rows of it as calibration."""
    whole = corpus(rows)
    if not (lm.task.is_sequence_classification or lm.task is ModelTask.SEQ2SEQ):
        whole = replace(whole, examples=tuple(Example(example.text) for example in whole.examples))
    some = batches(lm, sample(whole, 8, 0), batch_size=4, max_length=16, labelled=True)
    return Calibration(some, corpus=whole, max_length=16)


def with_original(lm: LanguageModel) -> LanguageModel:
    """As a recipe makes it before its first step."""
    return replace(lm, original=lm.copy())
