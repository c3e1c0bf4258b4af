"""Rows for the tiny models: a tokenizer of letters, a file of data for each task, and a batch of random tokens."""

import json
from inspect import signature
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from laconic.model import first_token_mask
from laconic.testing.models import random_batch

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
LETTERS = "abcdefghijklmnopqrstuvwxyz .,'"
SENTENCES = (
    "the cat sat.", "a dog ran to it.", "we read a book.", "no rain fell.", "it was warm.", "they left at ten.",
    "she sings.", "a red car came.",
)  # fmt: skip
SEPARATOR = 2


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each letter."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL.values(), *LETTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    marks = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], sep_token="</s>", **SPECIAL
    )


def write_data(model: PreTrainedModel, folder: Path) -> Path:
    """Write rows in the form that the class of `model` reads into a file in `folder`, and return its path."""
    name = type(model).__name__
    pairs = list(zip(SENTENCES, reversed(SENTENCES), strict=True))
    if name.endswith("TokenClassification"):
        tags = ["O", "B-A", "I-A"]
        words = [sentence.split() for sentence in SENTENCES]
        rows = [{"tokens": row, "ner_tags": [tags[at % 3] for at in range(len(row))]} for row in words]
    elif name.endswith("QuestionAnswering"):
        rows = [
            {
                "question": question, "context": context,
                "answers": {"text": [context.split()[0]], "answer_start": [0]},
            }
            for question, context in pairs
        ]  # fmt: skip
    elif name.endswith("MultipleChoice"):
        rows = [
            {"text": first, "choices": [second, first], "label": number % 2}
            for number, (first, second) in enumerate(pairs)
        ]
    elif model.config.is_encoder_decoder and not name.endswith("SequenceClassification"):
        rows = [{"source": source, "target": target} for source, target in pairs]
    else:
        rows = [{"text": sentence} for sentence in SENTENCES]
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def batch_for(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows of random tokens in the form that the class of `model` reads."""
    batch, name = random_batch(model), type(model).__name__
    if name.endswith("QuestionAnswering"):
        # Longformer finds the question by its three separators.
        batch["input_ids"][:, [2, 3, 4]] = SEPARATOR
    if name.endswith("MultipleChoice"):
        return {key: torch.stack((tensor, tensor), dim=1) for key, tensor in batch.items()}
    if name.endswith("SequenceClassification"):
        batch.pop("decoder_input_ids", None)
        last = batch["attention_mask"].sum(1) - 1
        # Classifiers among the encoder-decoders read the hidden state of this token.
        batch["input_ids"][range(len(last)), last] = SEPARATOR
    if "global_attention_mask" in signature(model.forward).parameters:
        batch["global_attention_mask"] = first_token_mask(batch["input_ids"])
    return batch


@torch.no_grad()
def outputs_of(model: PreTrainedModel) -> Tensor:
    """The first output of `model` for `batch_for`."""
    return model(**batch_for(model))[0]
