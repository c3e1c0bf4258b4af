"""Tiny random models with a head for texts, of every problem type of transformers."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import BertForSequenceClassification

from laconic.model import LanguageModel
from tests.architectures import BY_NAME
from tests.tokens import letters

MULTI_LABEL = "multi_label_classification"


def classifier(
    outputs: int, names: Sequence[str] | None = None, problem_type: str | None = None, seed: int = 0
) -> LanguageModel:
    """A tiny BERT with so many outputs, called `names`, and a tokenizer of letters."""
    config = BY_NAME["bert-classifier"].build().config
    config.num_labels, config.problem_type = outputs, problem_type
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config).eval()
    # Large enough to tell texts apart.
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    return replace(LanguageModel.of(model), tokenizer=letters("pair"), source="tiny")


def moved(lm: LanguageModel, by: Sequence[float]) -> LanguageModel:
    """The same with a bias on each output."""
    other = lm.copy()
    with torch.no_grad():
        other.model.get_parameter("classifier.bias").add_(torch.tensor(by))
    return other
